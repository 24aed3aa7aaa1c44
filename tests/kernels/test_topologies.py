"""Every topology and both criteria: losses, gradients and best paths against the enumeration of all paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import BACKENDS, TOPOLOGIES, Case, agree, expected, make, run, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Rules
from torch import Tensor

from asr_kernels import CTC, MONOTONIC, RNNT, Alignment, Topology, align, multi_blank, rnnt_loss, tdt

# Every length up to 5 frames and 4 labels in one batch: T = 1, U = 0, U = T, U > T, and no frames at all.
GRID = [(T, U) for T in range(6) for U in range(5)]
V = 4


def grid(rules: Rules, seed: int = 0, blank: int = 0) -> Case:
    return make(GRID, V, len(rules.durations), seed=seed, blank=blank)


def loss(case: Case, blank: int = 0, **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda logits: rnnt_loss(logits, *case[1:], blank, **options)


def assert_best(
    found: Alignment, case: Case, rules: Rules, blank: int = 0, delay_penalty: float = 0.0
) -> None:
    U = case.targets.shape[1]
    assert found.frames.dtype == found.end_frames.dtype == torch.int64
    for b, (logits, y) in enumerate(case.utterances()):
        best = oracles.best(logits, y, blank, rules, delay_penalty=delay_penalty)
        padding = [-1] * (U - len(y))
        assert found.frames[b].tolist() == best.frames + padding
        assert found.end_frames[b].tolist() == best.end_frames + padding
        assert found.score[b].item() == pytest.approx(best.score, rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equals_the_enumeration_of_all_paths(name: str, criterion: str, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = grid(rules)
    wanted = expected(case, rules, options=lambda b: {"criterion": criterion})
    assert wanted.losses.isinf().any()  # no frames; monotonic, ctc and some tdt: too few for the labels
    assert wanted.losses.isfinite().sum() >= 10
    found = run(loss(case, topology=topology, criterion=criterion, backend=backend), [case.logits])
    agree(found, wanted)
    assert not found.grads[0][wanted.losses.isinf()].any()
    assert not found.grads[0][case.padding()].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_best_paths_equal_the_enumeration(name: str, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = grid(rules, seed=1)
    found = align(*case, topology=topology, backend=backend)
    assert_best(found, case, rules)
    losses = rnnt_loss(*case, topology=topology, criterion="max", backend=backend)
    torch.testing.assert_close(found.score, -losses)
    assert not align(case.logits.requires_grad_(), *case[1:], topology=topology).score.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_delay_penalty_and_fastemit(name: str, criterion: str, backend: str) -> None:
    """The penalty moves the score of every new label, FastEmit its gradient (symbol and duration)."""
    topology, rules = TOPOLOGIES[name]
    case = grid(rules, seed=2)
    options = {"criterion": criterion, "delay_penalty": 0.3, "fastemit": 0.5}
    wanted = expected(case, rules, options=lambda b: options)
    found = run(loss(case, topology=topology, backend=backend, **options), [case.logits])
    agree(found, wanted)
    plain = run(loss(case, topology=topology, backend=backend, criterion=criterion), [case.logits])
    assert not torch.equal(found.losses, plain.losses)
    best = align(*case, topology=topology, delay_penalty=-3.0, backend=backend)
    assert_best(best, case, rules, delay_penalty=-3.0)
    assert not torch.equal(best.frames, align(*case, topology=topology, backend=backend).frames)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_any_blank_and_labels_equal_to_it(name: str, backend: str) -> None:
    """-1 is the last symbol, before the topology's own columns. A label may have the id of blank."""
    topology, rules = TOPOLOGIES[name]
    for blank in (2, -1):
        case = grid(rules, seed=3, blank=blank)
        assert not (case.targets == blank % V).any()
        options = {"topology": topology, "backend": backend}
        agree(run(loss(case, blank, **options), [case.logits]), expected(case, rules, blank % V))
        case.targets[::2, 1] = blank % V
        case.targets[1::3, 0] = blank % V
        agree(run(loss(case, blank, **options), [case.logits]), expected(case, rules, blank % V))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_impossible_symbols(name: str, criterion: str, backend: str) -> None:
    """Logits of -inf close arcs; where they close every path the loss is infinite and the gradient zero."""
    topology, rules = TOPOLOGIES[name]
    case = make([(5, 2)] * 24, V, len(rules.durations), seed=4)
    hit = torch.rand(case.logits.shape, generator=torch.Generator().manual_seed(4)) < 0.25
    hit[..., 3] &= ~hit[..., :3].all(-1)  # a softmax needs something to share out
    if rules.name == "tdt":
        hit[..., -1] &= ~hit[..., V:-1].all(-1)
    case = case._replace(logits=case.logits.masked_fill(hit, -math.inf))
    wanted = expected(case, rules, options=lambda b: {"criterion": criterion})
    assert wanted.losses.isfinite().any()
    if rules.name in ("rnnt", "monotonic"):
        assert wanted.losses.isinf().any()
    found = run(loss(case, topology=topology, criterion=criterion, backend=backend), [case.logits])
    agree(found, wanted)
    assert not found.grads[0][wanted.losses.isinf()].any()
    assert_best(align(*case, topology=topology, backend=backend), case, rules)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_of_equally_good_paths_one_is_taken(name: str, backend: str) -> None:
    """Logits that say nothing: the alignment and the gradient are those of one path, any of the best."""
    topology, rules = TOPOLOGIES[name]
    case = make([(4, 2)], V, len(rules.durations))
    case = case._replace(logits=torch.zeros_like(case.logits))
    found = run(loss(case, topology=topology, criterion="max", backend=backend), [case.logits])
    aligned = align(*case, topology=topology, backend=backend)
    logits = case.logits[0].requires_grad_()
    paths = oracles.paths_of(rules, 4, tuple(case.targets[0].tolist()), 0, V)
    scores = oracles.scores_of(oracles.log_probs_of(logits, rules), paths, rules.sigma, 0.0, 0.0)
    torch.testing.assert_close(-found.losses[0], scores.max().detach())
    best = [(path, score) for path, score in zip(paths, scores, strict=True) if score > scores.max() - 1e-9]
    gradients = (torch.autograd.grad(-score, logits, retain_graph=True)[0] for _, score in best)
    assert any(torch.allclose(found.grads[0][0], gradient) for gradient in gradients)
    emitted = [(oracles.emissions(path), oracles.ends(path)) for path, _ in best]
    assert (aligned.frames[0].tolist(), aligned.end_frames[0].tolist()) in emitted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("band", [0, 1, 2])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_bands_around_given_frames(name: str, band: int, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = grid(rules, seed=5)
    rng = torch.Generator().manual_seed(5)
    frames = torch.randint(-1, 5, case.targets.shape, generator=rng).sort(dim=1).values
    near = [oracles.banded(frames[b, :U].tolist(), band) for b, (_, U) in enumerate(GRID)]
    wanted = expected(case, rules, options=lambda b: {"allowed": near[b]})
    assert wanted.losses.isinf().any()
    assert wanted.losses.isfinite().any()
    frames[case.beyond()] = 1 << 40  # padding means nothing
    options = {"topology": topology, "backend": backend, "alignment": frames, "alignment_band": band}
    agree(run(loss(case, **options), [case.logits]), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_bands_around_the_best_path(name: str, backend: str) -> None:
    """Band 0 leaves the paths that emit as the best one does: one, unless durations or big blanks differ."""
    topology, rules = TOPOLOGIES[name]
    case = grid(rules, seed=6)
    options = {"topology": topology, "backend": backend}
    best = align(*case, **options)
    # CTC's labels have ends of their own
    ends = [best.end_frames[b, :U].tolist() if name == "ctc" else None for b, (_, U) in enumerate(GRID)]
    near = [oracles.banded(best.frames[b, :U].tolist(), 0, ends[b]) for b, (_, U) in enumerate(GRID)]
    found = run(loss(case, alignment=best, **options), [case.logits])
    agree(found, expected(case, rules, options=lambda b: {"allowed": near[b]}))
    again = rnnt_loss(*case, alignment=best, criterion="max", **options)
    torch.testing.assert_close(again, -best.score)
    if name in ("rnnt", "monotonic", "ctc"):
        agree(found, run(loss(case, criterion="max", **options), [case.logits]))
    everything = rnnt_loss(*case, alignment=best, alignment_band=5, **options)
    torch.testing.assert_close(everything, rnnt_loss(*case, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_band_around_a_ctc_alignment_holds_the_ends_of_labels_too(backend: str) -> None:
    case = make([(5, 2)] * 3 + [(5, 1), (4, 0)], 3, seed=7)
    best = align(*case, topology=CTC)
    near = [
        oracles.banded(best.frames[b, : len(y)].tolist(), 1, best.end_frames[b, : len(y)].tolist())
        for b, (_, y) in enumerate(case.utterances())
    ]
    wanted = expected(case, Rules("ctc"), options=lambda b: {"allowed": near[b]})
    options = {"topology": CTC, "alignment_band": 1, "backend": backend}
    agree(run(loss(case, alignment=best, **options), [case.logits]), wanted)
    assert (rnnt_loss(*case, alignment=best.frames, **options)[:3] < wanted.losses[:3] - 1e-6).any()


@given(
    kind=st.sampled_from(["rnnt", "monotonic", "ctc", "tdt", "multi_blank"]),
    durations=st.sets(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    sigma=st.sampled_from([0.0, 0.2]),
    lengths=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=4),
    symbols=st.integers(2, 4),
    criterion=st.sampled_from(["sum", "max"]),
    fastemit=st.sampled_from([0.0, 0.1]),
    delay_penalty=st.sampled_from([0.0, -0.2]),
    scale=st.sampled_from([0.5, 3.0, 30.0]),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=60, deadline=None)
def test_any_lattice_equals_the_enumeration(
    kind: str,
    durations: tuple[int, ...],
    sigma: float,
    lengths: list[tuple[int, int]],
    symbols: int,
    criterion: str,
    fastemit: float,
    delay_penalty: float,
    scale: float,
    seed: int,
) -> None:
    topology: Topology = {"rnnt": RNNT, "monotonic": MONOTONIC, "ctc": CTC}.get(kind, RNNT)
    rules = Rules(kind)
    if kind == "tdt":
        durations = (*durations, 6) if max(durations) == 0 else durations
        topology, rules = tdt(durations, sigma), Rules("tdt", durations, sigma)
    if kind == "multi_blank":
        durations = tuple(d + 2 for d in durations)
        topology, rules = multi_blank(durations, sigma), Rules("multi_blank", durations, sigma)
    blank = seed % symbols
    case = make(lengths, symbols, len(rules.durations), seed=seed, blank=blank, scale=scale)
    options = {"criterion": criterion, "fastemit": fastemit, "delay_penalty": delay_penalty}
    wanted = expected(case, rules, blank, lambda b: options)
    found = run(loss(case, blank, topology=topology, backend="cpu", **options), [case.logits])
    agree(found, wanted)
    agree(run(loss(case, blank, topology=topology, backend="reference", **options), [case.logits]), wanted)
    best = align(*case, blank, topology=topology, delay_penalty=delay_penalty)
    assert_best(best, case, rules, blank, delay_penalty)


@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_gradient_of_the_reference_is_its_derivative(name: str, criterion: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = make([(4, 2), (3, 1), (4, 0)], 3, len(rules.durations), seed=8)
    options = {"criterion": criterion, "delay_penalty": 0.1, "topology": topology, "backend": "reference"}
    assert torch.autograd.gradcheck(loss(case, **options), case.logits.requires_grad_())


@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize(("B", "T", "U", "symbols"), [(3, 23, 9, 13), (2, 6, 11, 2), (5, 17, 1, 70)])
def test_fast_equals_the_reference(name: str, criterion: str, B: int, T: int, U: int, symbols: int) -> None:
    topology, rules = TOPOLOGIES[name]
    case = uneven(B, T, U, symbols, len(rules.durations), seed=9)
    options = {"topology": topology, "criterion": criterion, "fastemit": 0.2, "delay_penalty": 0.05}
    wanted = run(loss(case, backend="reference", **options), [case.logits])
    agree(run(loss(case, backend="cpu", **options), [case.logits]), wanted)
    agree(run(loss(case, backend="cpu", **options), [case.logits], torch.float32), wanted, 1e-4)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_half_precision_and_strides(name: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = uneven(3, 12, 4, 7, len(rules.durations), seed=10)
    turned = case.logits.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    wanted = run(loss(case, topology=topology, backend="reference"), [case.logits])
    agree(run(loss(case, topology=topology), [turned]), wanted)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        rounded = case._replace(logits=case.logits.to(dtype).double())
        wanted = run(loss(rounded, topology=topology, backend="reference"), [rounded.logits])
        found = run(loss(rounded, topology=topology), [rounded.logits], dtype)
        torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
        agree(found._replace(losses=wanted.losses), wanted, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filling", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_padding_influences_nothing(name: str, filling: float, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = make([(6, 3), (2, 1), (4, 3), (5, 0), (0, 2)], V, len(rules.durations), seed=11)
    options = {"topology": topology, "backend": backend}
    wanted, best = run(loss(case, **options), [case.logits]), align(*case, **options)
    assert_best(best, case, rules)
    padding = case.padding()
    logits = case.logits.masked_fill(padding[..., None], filling)
    targets = case.targets.masked_fill(case.beyond(), -(1 << 40))
    poisoned = case._replace(logits=logits, targets=targets)
    found = run(loss(poisoned, **options), [logits])
    assert torch.equal(found.losses, wanted.losses)
    assert torch.equal(found.grads[0], wanted.grads[0])
    assert not found.grads[0][padding].any()
    for one, other in zip(align(*poisoned, **options), best, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_nan_is_not_hidden(name: str, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = make([(4, 2), (4, 2)], V, len(rules.durations), seed=12)
    case.logits[0, 0, 0, 0] = math.nan
    found = run(loss(case, topology=topology, backend=backend), [case.logits])
    assert found.losses.isnan().tolist() == [True, False]
    assert found.grads[0][0].isnan().any()
    assert found.grads[0][1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_simpler_topologies_are_special_cases_on_larger_lattices(backend: str) -> None:
    """Beyond enumeration: impossible big blanks give rnnt; one duration of 1, monotonic and then a blank."""
    case = uneven(3, 40, 8, 6, seed=13)
    options = {"backend": backend}
    never = torch.cat((case.logits, torch.full_like(case.logits[..., :2], -math.inf)), dim=-1)
    wanted = rnnt_loss(*case, **options)
    torch.testing.assert_close(rnnt_loss(never, *case[1:], topology=multi_blank(), **options), wanted)
    one = torch.cat((case.logits, torch.randn_like(case.logits[..., :1])), dim=-1)
    found = rnnt_loss(one, *case[1:], topology=tdt((1,)), **options)
    short = case._replace(logit_lengths=case.logit_lengths - 1)
    last = torch.stack([x[-1, -1].log_softmax(-1)[0] for x, _ in case.utterances()])
    torch.testing.assert_close(found, rnnt_loss(*short, topology=MONOTONIC, **options) - last)
    at = rnnt_loss(case.logits[:, :, :1].expand_as(case.logits), *case[1:], topology=CTC, **options)
    log_probs = case.logits[:, :, 0].log_softmax(-1).transpose(0, 1)
    ctc = torch.nn.functional.ctc_loss(log_probs, *case[1:], reduction="none")
    torch.testing.assert_close(at, ctc)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions(reduction: str) -> None:
    case = make([(4, 2), (3, 3)], V, 2, seed=14)
    options = {"topology": multi_blank(), "criterion": "max"}
    losses = rnnt_loss(*case, **options)
    assert rnnt_loss(*case, reduction=reduction, **options) == getattr(losses, reduction)()


ALIGNMENT = torch.tensor([[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topology": tdt((0, 1, 2, 4))}, "more than 4 columns for topology tdt, found 4"),
        ({"topology": multi_blank((2, 3, 4, 5))}, "more than 4 columns for topology multi_blank, found 4"),
        ({"topology": tdt((0, 1))}, r"targets within \[0, 2\), found 3 at \[1, 1\]"),
        ({"topology": multi_blank((2, 3))}, r"targets within \[0, 2\), found 3 at \[1, 1\]"),
        ({"topology": tdt((0, 1)), "blank": 2}, r"integer blank within \[-2, 2\), found 2"),
        ({"criterion": "min"}, "criterion among sum, max, found 'min'"),
        ({"alignment": ALIGNMENT[:1]}, r"alignment frames of shape \(2, 2\), found \(1, 2\)"),
        ({"alignment": ALIGNMENT.double()}, "alignment frames of dtype int32 or int64, found torch.float64"),
        ({"alignment": ALIGNMENT, "alignment_band": -1}, "alignment_band of at least 0 frames, found -1"),
        (
            {"alignment": Alignment(ALIGNMENT, ALIGNMENT[:, :1], torch.zeros(2)), "topology": CTC},
            r"alignment end_frames of shape \(2, 2\), found \(2, 1\)",
        ),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "logits": torch.zeros(2, 3, 3, 4),
        "targets": torch.tensor([[1, 1], [1, 3]]),
        "logit_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
    }
    assert rnnt_loss(**good, alignment=ALIGNMENT).isfinite().all()
    with pytest.raises(ValueError, match=message) as error:
        rnnt_loss(**(good | change))
    assert "\n" not in str(error.value)
    if "criterion" not in change:
        with pytest.raises(ValueError, match=message):
            align(**(good | change))


@pytest.mark.parametrize("durations", [(), (0,), (1, 1), (-1, 2), (1.5,)])
def test_durations_of_tdt(durations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="distinct integer durations"):
        tdt(durations)


@pytest.mark.parametrize("durations", [(), (1, 2), (2, 2), (0,)])
def test_durations_of_big_blanks(durations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="distinct integer durations"):
        multi_blank(durations)


@pytest.mark.parametrize("sigma", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("make_topology", [tdt, multi_blank])
def test_sigma(make_topology: Callable[..., Topology], sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        make_topology((2, 3), sigma=sigma)
