"""Every encoder keeps the streaming contract of asr/encoders/base.py."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from asr import state as states
from asr.encoders import (
    ConformerEncoderConfig,
    Encoder,
    EncoderConfig,
    LstmEncoderConfig,
    RecurrentEncoderConfig,
    TransformerEncoderConfig,
    WhisperEncoderConfig,
    build_encoder,
)
from asr.errors import StreamingError
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig

BINS = 6


def conformer(chunk: int, left_chunks: int, **options: Any) -> ConformerEncoderConfig:
    context = ContextConfig(chunk=chunk, left_chunks=left_chunks)
    sizes = {"dim": 16, "heads": 2, "layers": 3, "kernel": 5, "subsampling": SubsamplingConfig(factor=2)}
    return ConformerEncoderConfig(contexts=(context,), **{**sizes, **options})


def recurrent(mixer: str, **options: Any) -> RecurrentEncoderConfig:
    sizes = {"dim": 16, "layers": 2, "subsampling": SubsamplingConfig(factor=2)}
    return RecurrentEncoderConfig(mixer={"kind": mixer}, **{**sizes, **options})


def transformer(**options: Any) -> TransformerEncoderConfig:
    sizes = {"dim": 16, "heads": 2, "layers": 3, "subsampling": SubsamplingConfig(factor=2)}
    return TransformerEncoderConfig(**{**sizes, **options})


def whisper(chunk: int, left_chunks: int, **options: Any) -> WhisperEncoderConfig:
    context = ContextConfig(chunk=chunk, left_chunks=left_chunks)
    return WhisperEncoderConfig(contexts=(context,), dim=16, heads=2, layers=2, **options)


STREAMING = {
    "lstm": LstmEncoderConfig(hidden=16, layers=2),
    "lstm-lookahead": LstmEncoderConfig(hidden=16, layers=1, lookahead=3),
    "lstm-2x": LstmEncoderConfig(hidden=16, layers=1, subsampling=SubsamplingConfig(factor=2)),
    "lstm-8x": LstmEncoderConfig(hidden=16, layers=1, subsampling=SubsamplingConfig(factor=8)),
    "lstm-1x": LstmEncoderConfig(hidden=16, layers=1, subsampling=SubsamplingConfig(factor=1)),
    "lstm-stack": LstmEncoderConfig(
        hidden=16, layers=8, lookahead=1, subsampling=SubsamplingConfig(kind="stack", factor=4)
    ),
    "lstm-conv2d": LstmEncoderConfig(
        hidden=16, layers=1, subsampling=SubsamplingConfig(kind="conv2d", factor=4, channels=5)
    ),
    "conformer": conformer(4, 2),
    "conformer-causal": conformer(1, 6, convolution="causal"),
    "conformer-relative": conformer(3, 1, positions="relative"),
    "conformer-no-history": conformer(5, 0),
    "conformer-lookahead": conformer(2, 3, lookahead=3, convolution="causal"),
    "conformer-funnel": conformer(8, 1, pool_after=(1, 2), positions="relative"),
    "recurrent": recurrent("min_gru", expansion=0),
    "recurrent-griffin": recurrent("rg_lru", others=({"kind": "local_attention", "window": 6, "heads": 2},)),
    "recurrent-convolution": recurrent("min_gru", kernel=4, lookahead=2),
    "transformer": transformer(left=5, right=1),
    "transformer-causal": transformer(left=4, right=0, positions="relative"),
    "transformer-no-history": transformer(left=0, right=2),
    "transformer-funnel": transformer(left=3, right=1, pool_after=(1, 2), positions="relative"),
    "transformer-funnel-end": transformer(left=3, right=1, pool_after=(3,)),
    "whisper": whisper(4, 2),
    "whisper-funnel": whisper(6, 1, pool_after=(2,)),
    "fast-conformer": conformer(
        2, 2, kernel=9, subsampling=SubsamplingConfig(kind="separable", factor=8, channels=4)
    ),
}


def build(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(config, BINS, 0.01).eval()


@pytest.fixture(params=STREAMING)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return build(STREAMING[request.param])


def feed_ragged(encoder: Encoder, x: Tensor, lengths: list[int], seed: int) -> list[Tensor]:
    """Each stream feeds its own random amounts, none included; returns the outputs of each stream."""
    rng = random.Random(seed)
    state, position, out = encoder.initial_state(len(lengths)), [0] * len(lengths), [[] for _ in lengths]
    while any(p < n for p, n in zip(position, lengths, strict=True)):
        new = [min(rng.choice([0, 1, 2, 3, 9, 17]), n - p) for p, n in zip(position, lengths, strict=True)]
        chunk = torch.full((len(lengths), max(new), BINS), torch.nan)  # what is not valid must not matter
        for b, count in enumerate(new):
            chunk[b, :count] = x[b, position[b] : position[b] + count]
            position[b] += count
        y, y_lengths, state = encoder(chunk, torch.tensor(new), state)
        for b in range(len(lengths)):
            out[b].append(y[b, : y_lengths[b]])
    y, y_lengths, _ = encoder.flush(state)
    return [torch.cat([*parts, y[b, : y_lengths[b]]]) for b, parts in enumerate(out)]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_any_chunking_equals_the_whole(encoder: Encoder, seed: int) -> None:
    lengths = [61, 40, 8, 1]
    x = torch.randn(4, 61, BINS, generator=torch.Generator().manual_seed(seed))
    whole = encoder(x, torch.tensor(lengths))
    for b, y in enumerate(feed_ragged(encoder, x, lengths, seed)):
        expected = -(-lengths[b] // encoder.subsampling)
        assert y.shape[0] == expected == int(whole.y_lengths[b])
        torch.testing.assert_close(y, whole.y[b, :expected], rtol=1e-4, atol=1e-4)


def drawn(rng: random.Random) -> EncoderConfig:
    """Any streaming configuration, small."""
    subsampling = SubsamplingConfig(
        kind=rng.choice(["conv", "stack", "conv2d", "separable"]),
        factor=rng.choice([1, 2, 4, 8]),
        channels=rng.choice([3, 8]),
    )
    layers = rng.randint(1, 4)
    pool_after = tuple(sorted(rng.sample(range(1, layers), rng.randint(0, min(2, layers - 1)))))
    stack = {
        "dim": 8,
        "heads": 2,
        "layers": layers,
        "pool_after": pool_after,
        "positions": rng.choice(["rotary", "relative"]),
        "subsampling": subsampling,
    }
    kind = rng.choice(["conformer", "conformer", "transformer", "lstm"])
    if kind == "lstm":
        return LstmEncoderConfig(
            hidden=8, layers=layers, lookahead=rng.randint(0, 4), subsampling=subsampling
        )
    if kind == "transformer":
        return TransformerEncoderConfig(left=rng.randint(0, 6), right=rng.randint(0, 3), **stack)
    chunk = 2 ** len(pool_after) * rng.randint(1, 5)
    return ConformerEncoderConfig(
        kernel=rng.choice([1, 3, 5, 9]),
        convolution=rng.choice(["chunk", "causal"]),
        lookahead=rng.choice([0, 0, 1, 3]),
        contexts=(ContextConfig(chunk=chunk, left_chunks=rng.randint(0, 4)),),
        **stack,
    )


@torch.no_grad()
@pytest.mark.parametrize("seed", range(30))
def test_any_configuration_in_any_chunking(seed: int) -> None:
    rng = random.Random(seed)
    encoder = build(drawn(rng))
    lengths = [rng.randint(0, 90) for _ in range(3)]
    x = torch.randn(3, max(lengths), BINS, generator=torch.Generator().manual_seed(seed))
    whole = encoder(x, torch.tensor(lengths))
    for b, y in enumerate(feed_ragged(encoder, x, lengths, seed)):
        torch.testing.assert_close(y, whole.y[b, : whole.y_lengths[b]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_in_a_batch_changes_nothing(encoder: Encoder) -> None:
    x = torch.randn(2, 50, BINS)
    x[1, 23:] = 1e3
    batch = encoder(x, torch.tensor([50, 23]))
    alone = encoder(x[1:, :23], torch.tensor([23]))
    torch.testing.assert_close(batch.y[1, : batch.y_lengths[1]], alone.y[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_future_beyond_the_lookahead_changes_nothing(encoder: Encoder) -> None:
    x = torch.randn(1, 64, BINS)
    y = encoder(x, torch.tensor([64])).y[0]
    for frame in (20, 33):
        changed = x.clone()
        changed[0, frame] += 5
        moved = (encoder(changed, torch.tensor([64])).y[0] - y).abs().amax(-1) > 1e-6
        first = int(moved.nonzero()[0])
        # No output moves that was given before the frame was heard, and the first one that may move does.
        assert encoder.last_needed(first) >= frame
        assert first == 0 or encoder.last_needed(first - 1) < frame


@torch.no_grad()
def test_sessions_may_start_and_stop_at_different_times(encoder: Encoder) -> None:
    x = torch.randn(2, 48, BINS)
    long = encoder(x[:1], torch.tensor([48])).y[0]
    short = encoder(x[1:, :24], torch.tensor([24])).y[0]
    first = encoder(x[:1, :24], torch.tensor([24]), encoder.initial_state(1))
    both = states.stack([first.state, encoder.initial_state(1)])  # the second session joins
    chunk = torch.stack([x[0, 24:], x[1, :24]])
    second = encoder(chunk, torch.tensor([24, 24]), both)
    tails = [encoder.flush(state) for state in states.split(second.state)]
    for b, (expected, start) in enumerate(
        [(long, first.y[0, : first.y_lengths[0]]), (short, first.y[0, :0])]
    ):
        y = torch.cat([start, second.y[b, : second.y_lengths[b]], tails[b].y[0, : tails[b].y_lengths[0]]])
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_state_does_not_grow(encoder: Encoder) -> None:
    state = encoder.initial_state(1)
    size = states.bytes_per_stream(state)
    for _ in range(20):
        state = encoder(torch.randn(1, 13, BINS), torch.tensor([13]), state).state
        assert states.bytes_per_stream(state) == size


@torch.no_grad()
def test_state_is_of_the_dtype_of_the_weights(encoder: Encoder) -> None:
    encoder = encoder.double()
    x, length = torch.randn(1, 60, BINS, dtype=torch.float64), torch.tensor([60])
    y, y_lengths, _ = encoder(x, length, encoder.initial_state(1))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y[:, :y_lengths], encoder(x, length).y[:, :y_lengths])


def test_gradients_reach_every_parameter(encoder: Encoder) -> None:
    encoder(torch.randn(2, 40, BINS), torch.tensor([40, 31])).y.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


@torch.no_grad()
def test_bidirectional_sees_both_sides_and_refuses_to_stream() -> None:
    encoder = build(LstmEncoderConfig(hidden=8, layers=2, bidirectional=True))
    x = torch.randn(2, 40, BINS)
    y = encoder(x, torch.tensor([40, 20])).y
    changed = x.clone()
    changed[0, 39] += 5
    assert float((encoder(changed, torch.tensor([40, 20])).y[0, 0] - y[0, 0]).abs().max()) > 1e-7
    alone = encoder(x[1:, :20], torch.tensor([20])).y[0]
    torch.testing.assert_close(y[1, :5], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(StreamingError, match="bidirectional"):
        encoder.initial_state(1)
    assert encoder.algorithmic_latency_s == float("inf")


@torch.no_grad()
def test_bidirectional_layer_equals_torch() -> None:
    encoder = build(LstmEncoderConfig(hidden=8, layers=1, bidirectional=True))
    oracle = torch.nn.LSTM(16, 8, batch_first=True, bidirectional=True)
    for suffix, lstm in (("", encoder.lstms[0]), ("_reverse", encoder.reversed_lstms[0])):
        for name, weight in lstm.named_parameters():
            getattr(oracle, name + suffix).copy_(weight)
    x, lengths = torch.randn(3, 9, 16), torch.tensor([9, 1, 6])
    y = encoder._layer(0, x, lengths)
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[b, :length], oracle(x[b : b + 1, :length])[0][0])


def test_lookahead_of_a_bidirectional_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="set lookahead to 0"):
        LstmEncoderConfig(bidirectional=True, lookahead=2)


def test_stated_latency() -> None:
    encoder = build(LstmEncoderConfig(hidden=8, layers=1, lookahead=4))
    assert encoder.lookahead_s == pytest.approx(0.16)
    assert encoder.algorithmic_latency_s == pytest.approx(0.19)
    assert encoder.frame_rate == pytest.approx(25)
