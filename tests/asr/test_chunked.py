"""Encoders that attend: what is refused, the contexts of training, and memory that is given up for time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.encoders import (
    ConformerEncoder,
    ConformerEncoderConfig,
    Latency,
    TransformerEncoderConfig,
    build_encoder,
)
from asr.errors import ConfigError, StreamingError
from asr.layers.attention import PositionKind, positions
from asr.layers.context import ContextConfig
from asr.layers.residual import Branch
from asr.layers.subsampling import SubsamplingConfig

BINS = 6
STREAMS = (ContextConfig(chunk=6, left_chunks=2), ContextConfig(chunk=2, left_chunks=4))


def build(**options: Any) -> ConformerEncoder:
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "layers": 3, "kernel": 5, "subsampling": SubsamplingConfig(channels=8)}
    encoder = build_encoder(ConformerEncoderConfig(**{**sizes, **options}), BINS, 0.01)
    assert isinstance(encoder, ConformerEncoder)
    return encoder


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 90, BINS, generator=torch.Generator().manual_seed(1)), torch.tensor([90, 61, 30])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 18, "heads": 4}, "an even width within 18 channels, found 4 heads: set heads to 3 or 9"),
        ({"kernel": 8}, "expected an odd kernel: 9 would do"),
        ({"pool_after": (4,)}, r"expected layers from 1 to 3 in pool_after, each once, found \(4,\)"),
        ({"pool_after": (1, 1)}, "each once"),
        (
            {"contexts": (ContextConfig(chunk=6, left_chunks=1),), "pool_after": (1, 2)},
            "chunk 6 is not a multiple of 4, by which the frames are pooled: 8 would do",
        ),
        (
            {"lookahead": 2},
            "lookahead is for chunks, and full context sees all: set lookahead to 0, or every",
        ),
        ({"lookahead": 2, "contexts": (*STREAMS, ContextConfig())}, "set lookahead to 0, or every chunk"),
        ({"contexts": ()}, "at least 1 item"),
    ],
)
def test_refused_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_history_without_chunks_is_refused() -> None:
    with pytest.raises(ValueError, match="set chunk, or left_chunks to None"):
        ContextConfig(left_chunks=3)


def test_refused_contexts_of_a_built_encoder() -> None:
    with pytest.raises(ConfigError, match="this network has a lookahead, which is for chunks"):
        build(contexts=STREAMS, lookahead=1).with_context(ContextConfig())
    with pytest.raises(ConfigError, match=r"chunk 3 is not a multiple of 2.*4 would do"):
        build(contexts=STREAMS, pool_after=(1,)).with_context(ContextConfig(chunk=3, left_chunks=1))


def test_full_context_asked_to_stream_says_what_would() -> None:
    several = build(contexts=(ContextConfig(), *STREAMS))
    with pytest.raises(StreamingError, match=r"choose one of its latencies, 80, 240 ms \(--latency 80\)"):
        several.initial_state(1)
    several.with_latency(Latency(0.24)).initial_state(1)
    with pytest.raises(StreamingError, match="its context is the whole utterance; give it whole"):
        build().initial_state(1)
    unbounded = build(contexts=(ContextConfig(chunk=4),))
    with pytest.raises(StreamingError, match="cannot stream: it remembers all that it has heard"):
        unbounded.initial_state(1)
    assert unbounded.algorithmic_latency_s == several.algorithmic_latency_s == float("inf")


@pytest.mark.parametrize(
    ("latency", "left_chunks"),
    [
        (Latency(0.24), 2),  # as trained
        (Latency(0.08), 4),
        (Latency(0.48), 1),  # not trained: the longest history, 480 ms
        (Latency(0.36), 2),  # rounded up to chunks
        (Latency(0.24, 0.0), 0),
        (Latency(0.24, 0.5), 3),
        (Latency(0.08, 0.16), 2),
    ],
)
def test_a_latency_has_the_history_of_its_training(latency: Latency, left_chunks: int) -> None:
    view = build(contexts=(*STREAMS, ContextConfig())).with_latency(latency)
    assert view.context == ContextConfig(chunk=round(latency.chunk_s / 0.04), left_chunks=left_chunks)


@pytest.mark.parametrize("contexts", [(ContextConfig(),), (ContextConfig(chunk=6),)])
def test_a_history_that_was_not_trained_has_to_be_chosen(contexts: tuple[ContextConfig, ...]) -> None:
    encoder = build(contexts=contexts)
    with pytest.raises(ConfigError, match=r"not trained with a limited history.*--latency 240:2000"):
        encoder.with_latency(Latency(0.24))
    assert encoder.with_latency(Latency(0.24, 2.0)).context == ContextConfig(chunk=6, left_chunks=9)


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        (Latency(float("nan")), "expected chunks of up to 60 s, found nan ms: 80 ms is the shortest"),
        (Latency(float("inf")), "found inf ms"),
        (Latency(0.0), "found 0 ms"),
        (Latency(-0.24), "found -240 ms"),
        (Latency(1e9), "expected chunks of up to 60 s"),
        (Latency(0.12), "expected chunks of whole frames of 80 ms, found 120 ms: 80 or 160 would do"),
        (Latency(0.01), "found 10 ms: 80 or 160 would do"),
        (Latency(0.24, float("nan")), "expected a history of 0 to 300000 ms, found nan ms"),
        (Latency(0.24, -1.0), "found -1000 ms"),
        (Latency(0.24, 1e9), "expected a history"),
    ],
)
def test_latencies_that_cannot_be(latency: Latency, message: str) -> None:
    """In milliseconds, of frames as they are behind the pooling."""
    with pytest.raises(ConfigError, match=message):
        build(contexts=STREAMS, pool_after=(1,)).with_latency(latency)


def test_latencies_are_listed() -> None:
    assert build(contexts=(*STREAMS, ContextConfig())).latencies == (
        pytest.approx((0.08, 0.32)),
        pytest.approx((0.24, 0.48)),
        Latency(None),
    )
    assert build(contexts=(ContextConfig(chunk=4),)).latencies == ()


def test_training_warms_up_with_the_first_context_and_then_draws() -> None:
    contexts = (*STREAMS, ContextConfig())
    encoder = build(contexts=contexts, context_warmup_steps=10)
    assert {encoder.at_step(step).context for step in range(10) for _ in range(10)} == {contexts[0]}
    drawn = [encoder.at_step(10 + step).context for step in range(60)]
    assert all(12 <= drawn.count(context) <= 30 for context in contexts)
    assert {encoder.at_step(None).context for _ in range(60)} == set(contexts)
    assert encoder.context == contexts[0]
    # what is drawn shares its weights
    drawn_encoder = encoder.at_step(None)
    assert all(a is b for a, b in zip(drawn_encoder.parameters(), encoder.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "branches"),
    [
        (ConformerEncoderConfig(dim=16, heads=2, layers=3), 12),
        (TransformerEncoderConfig(dim=16, heads=2, layers=3), 6),
    ],
)
def test_branches_begin_small(
    config: ConformerEncoderConfig | TransformerEncoderConfig, branches: int
) -> None:
    """Their last layers are drawn as nn.Linear draws them, up to 1 / sqrt(inputs), over sqrt(branches)."""
    torch.manual_seed(0)
    found = [
        module.out for module in build_encoder(config, BINS, 0.01).modules() if isinstance(module, Branch)
    ]
    assert len(found) == branches
    for layer in found:
        largest = (layer.in_features * branches) ** -0.5
        assert 0.9 * largest < float(layer.weight.detach().abs().max()) <= largest
        assert float(layer.bias.detach().abs().max()) <= largest


@pytest.mark.parametrize("kind", ["rotary", "relative"])
def test_far_positions_are_as_exact_as_near_ones(kind: PositionKind) -> None:
    """Twenty minutes of 40 ms frames; angles rounded to float32 would be off by 1e-3 there."""
    far, dim, heads = 30_000, 16, 2
    where = positions(kind, dim, heads, far, 2, torch.zeros(1))
    if where.rotation is not None:
        rate = 10000.0 ** -(np.arange(dim // heads // 2) / (dim // heads // 2))
        exact = np.arange(-far, 2)[:, None] * rate
        found, expected = torch.stack(where.rotation), np.stack((np.cos(exact), np.sin(exact)))
    else:
        assert where.distances is not None
        exact = np.arange(far + 1, -2, -1)[:, None] * 10000.0 ** -(np.arange(dim // 2) / (dim // 2))
        found, expected = where.distances, np.concatenate((np.sin(exact), np.cos(exact)), axis=1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-7)


def test_use_has_the_first_context() -> None:
    x, lengths = batch()
    several = build(contexts=(*STREAMS, ContextConfig())).eval()
    alone = build(contexts=STREAMS[:1]).eval()
    torch.testing.assert_close(several(x, lengths).y, alone(x, lengths).y, rtol=0, atol=0)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("context", [ContextConfig(), STREAMS[0]])
def test_checkpointing_changes_no_gradient(context: ContextConfig, views: bool) -> None:
    x, lengths = batch()
    found, runs = [], []
    for checkpointing in (False, True):
        encoder = build(contexts=(context,), checkpointing=checkpointing, dropout=0.3).eval()
        # A view shares its layers, and with them whether they train.
        view = encoder.with_context(context)
        encoder = (encoder.train(), view)[views]
        runs.append(0)

        def count(*_: object) -> None:
            runs[-1] += 1

        for layer in encoder.layers:
            layer.register_forward_pre_hook(count)
        torch.manual_seed(3)
        y, y_lengths, _ = encoder(x, lengths)
        valid = torch.arange(y.shape[1]) < y_lengths[:, None]
        y[valid].square().sum().backward()
        found.append([parameter.grad for parameter in encoder.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert runs == [3, 6]


@pytest.mark.parametrize("kind", ["rotary", "relative"])
def test_bfloat16_is_near(kind: str) -> None:
    x, lengths = batch()
    encoder = build(positions=kind, contexts=STREAMS).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder(x, lengths).y
    y.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    encoder.eval()
    with torch.inference_mode():
        exact = encoder(x, lengths).y
        with torch.autocast("cpu", torch.bfloat16):
            near = encoder(x, lengths).y.float()
    assert float((near - exact)[0].abs().max()) < 0.1


def test_a_transformer_transducer_has_its_context_in_its_layers() -> None:
    config = TransformerEncoderConfig(dim=16, heads=2, layers=3, left=4, right=1)
    encoder = build_encoder(config, BINS, 0.01)
    assert encoder.streaming
    for latency in (Latency(None), Latency(0.24, 1.0)):
        with pytest.raises(ConfigError, match="remembers what it was trained to"):
            encoder.with_latency(latency)
