"""The transducer's criteria and topologies: what they train, greedy search finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asr.encoders import LstmEncoderConfig
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, PrunedLossConfig, TopologyConfig, TransducerLossConfig
from asr.predictors import LstmPredictorConfig
from asr.search import GreedySearch
from asr.transducer import Transducer, TransducerConfig

WIDTH, VOCAB = 8, 6
TARGETS, TARGET_LENGTHS = torch.tensor([[3, 1, 1, 5], [2, 4, -7, 99]]), torch.tensor([4, 2])
LENGTHS = torch.tensor([14, 9])
TOPOLOGIES = [
    TopologyConfig(),
    TopologyConfig(name="monotonic"),
    TopologyConfig(name="ctc"),
    TopologyConfig(name="tdt", sigma=0.05),
    TopologyConfig(name="multi_blank", durations=(2, 3)),
]


def make(seed: int = 0, ctc: CtcLossConfig | None = None, **loss: Any) -> Transducer:
    torch.manual_seed(seed)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1, dropout=0),
        predictor=LstmPredictorConfig(dim=12, dropout=0),
        joiner=JoinerConfig(dim=16),
        loss=LossConfig(transducer=TransducerLossConfig(**loss), ctc=ctc or CtcLossConfig()),
    )
    return Transducer(config, 4, VOCAB)


def frames() -> Tensor:
    """Encoder frames (2, 14, WIDTH)."""
    return torch.randn(2, 14, WIDTH, generator=torch.Generator().manual_seed(0))


def losses(model: Transducer, step: int | None = None) -> Tensor:
    return model.losses(frames(), LENGTHS, TARGETS, TARGET_LENGTHS, step).total


def search(model: Transducer, chunks: list[int]) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """(id, frame) of the tokens of both streams, searched in chunks of so many frames; truncations."""
    greedy = GreedySearch(model, 4)
    state = greedy.initial_state(2)
    found: list[list[tuple[int, int]]] = [[], []]
    truncated, start = [0, 0], 0
    for size in chunks:
        lengths = (LENGTHS - start).clamp(0, size)
        output = greedy(frames()[:, start : start + size], lengths, state)
        state, start = output.state, start + size
        for b in range(2):
            found[b] += [(token.id, token.frame) for token in output.tokens[b]]
            truncated[b] += output.truncated[b]
    return found, truncated


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["full", "fused", "pruned"])
def test_greedy_search_finds_what_was_trained(kind: str, topology: TopologyConfig) -> None:
    model = make(kind=kind, topology=topology, pruned=PrunedLossConfig(range=3, warmup_steps=20)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(150):
        optimizer.zero_grad()
        losses(model, step).sum().backward()
        optimizer.step()
    found, truncated = search(model.eval(), [14])
    expected = [[3, 1, 1, 5], [2, 4]]
    assert [[id for id, _ in stream] for stream in found] == expected
    assert truncated == [0, 0]
    assert [[frame for _, frame in stream] == sorted(frame for _, frame in stream) for stream in found]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_any_chunking_equals_the_whole(topology: TopologyConfig) -> None:
    emitted = 0
    for seed in range(6):
        model = make(seed, topology=topology).eval()
        with torch.no_grad():
            model.joiner.output.weight.mul_(8)
        whole = search(model, [14])
        emitted += len(whole[0][0])
        for chunks in ([1] * 14, [5, 5, 4], [3, 0, 9, 2]):
            assert search(model, chunks) == whole
    assert emitted


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
@pytest.mark.parametrize("criterion", ["sum", "max"])
def test_fused_is_the_full_loss(criterion: str, topology: TopologyConfig) -> None:
    gradients = []
    for kind in ("full", "fused"):
        model = make(kind=kind, topology=topology, criterion=criterion, skip_below=0)
        value = losses(model)
        value.sum().backward()
        gradients.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 5
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_pruned_with_every_position_kept_is_the_full_loss_beside_the_simple_one() -> None:
    options = PrunedLossConfig(range=5, simple_weight=0.0, warmup_steps=10)
    full, pruned = make(), make(kind="pruned", pruned=options)
    pruned.load_state_dict(full.state_dict(), strict=False)
    torch.testing.assert_close(losses(pruned), losses(full), rtol=1e-4, atol=1e-4)
    assert options.weights(0) == (1.0, pytest.approx(0.1))
    assert options.weights(5) == (0.5, pytest.approx(0.55))
    assert options.weights(10) == options.weights(None) == (0.0, 1.0)
    assert (losses(pruned, 0) > losses(pruned)).any()


def test_frames_needed_follow_topology_and_band() -> None:
    target = [1, 1, 2, 3, 3, 4, 5]
    needed = {topology.name: make(topology=topology).frames_needed(target) for topology in TOPOLOGIES}
    assert needed == {"rnnt": 1, "monotonic": 7, "ctc": 9, "tdt": 1, "multi_blank": 1}
    assert make(kind="pruned", pruned=PrunedLossConfig(range=3)).frames_needed(target) == 4
    model = make(kind="pruned", pruned=PrunedLossConfig(range=3))
    targets, target_lengths = torch.tensor([target, target]), torch.tensor([7, 7])
    value = model.losses(frames(), torch.tensor([4, 3]), targets, target_lengths).total
    assert torch.isfinite(value).tolist() == [True, False]


def test_k2_is_refused_what_it_does_not_know() -> None:
    k2 = PrunedLossConfig(backend="k2")
    assert TransducerLossConfig(kind="pruned", pruned=k2).pruned.backend == "k2"
    with pytest.raises(ValueError, match=r"found rnnt, max, 0: set pruned.backend to own"):
        TransducerLossConfig(kind="pruned", criterion="max", pruned=k2)


def test_the_maximum_may_follow_the_sum() -> None:
    """The best path of an untrained network is worth nothing: the sum shows it the way."""
    model = make(criterion="max", max_after_steps=10)
    assert torch.equal(losses(model, 9), losses(make(), None))
    assert torch.equal(losses(model, 10), losses(make(criterion="max")))
    assert torch.equal(losses(model), losses(make(criterion="max")))


def test_ctc_may_begin_alone() -> None:
    """Nothing but its head gets a gradient; then all losses are there, their warm-ups at the beginning."""
    options: dict[str, Any] = {
        "ctc": CtcLossConfig(weight=0.5),
        "kind": "pruned",
        "pruned": PrunedLossConfig(warmup_steps=10),
    }
    model, without = make(after_steps=7, **options), make(**options)
    alone = model.losses(frames(), LENGTHS, TARGETS, TARGET_LENGTHS, 6)
    assert alone.transducer is None
    assert alone.ctc is not None
    assert torch.equal(alone.total, 0.5 * alone.ctc)
    alone.total.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["ctc.weight", "ctc.bias"]
    for step, own in ((7, 0), (12, 5), (17, 10), (None, None)):
        assert torch.equal(losses(model, step), losses(without, own))
    assert not torch.equal(losses(model, 12), losses(without, 12))


def test_where_ctc_has_no_path_it_costs_nothing_while_it_is_alone() -> None:
    """The transducer will have one: the utterance is not to be reported, or to stop the run, before."""
    model = make(after_steps=1, ctc=CtcLossConfig(weight=1))
    short = torch.tensor([4, 9])  # of four labels, two of them equal
    value = model.losses(frames(), short, TARGETS, TARGET_LENGTHS, 0).total
    assert value[0] == 0
    assert 0 < value[1] < torch.inf
    assert torch.isfinite(model.losses(frames(), short, TARGETS, TARGET_LENGTHS, 1).total).all()


def test_a_ctc_warm_start_needs_both_heads_and_an_end() -> None:
    for loss in ({}, {"ctc": CtcLossConfig(weight=1), "weight": 0}):
        with pytest.raises(ValueError, match=r"after_steps trains a CTC head alone .* above 0"):
            make(after_steps=1, **loss)
    model = make(after_steps=100, ctc=CtcLossConfig(weight=1))
    model.check_steps(101)
    with pytest.raises(ConfigError, match=r"begins at step 100 and the training has 100: .*, 10 would do"):
        model.check_steps(100)


def test_ctc_by_its_best_alignment() -> None:
    values = {}
    for criterion in ("sum", "max"):
        torch.manual_seed(0)
        config = TransducerConfig(
            encoder=LstmEncoderConfig(hidden=WIDTH, layers=1, dropout=0),
            predictor=None,
            loss=LossConfig(
                transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1, criterion=criterion)
            ),
        )
        values[criterion] = losses(Transducer(config, 4, VOCAB))
    assert (values["max"] > values["sum"]).all()


def test_durations_belong_to_the_topologies_that_have_them() -> None:
    with pytest.raises(ValueError, match="belong to tdt and multi_blank, not to rnnt"):
        TopologyConfig(durations=(1, 2))
    with pytest.raises(ValueError, match="distinct integer durations"):
        TopologyConfig(name="tdt", durations=(0,))
