"""The loss within a band of the lattice, on logits and fused, against the paths that stay within the band."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import BACKENDS, TOPOLOGIES, Case, agree, am_and_lm, joiner_of, make, occupations_of, run, uneven
from oracles import Rules
from torch import Tensor

from asr_kernels import (
    fused_pruned_rnnt_loss,
    multi_blank,
    pruned_rnnt_loss,
    pruning_bounds,
    rnnt_loss,
    simple_rnnt_loss,
    tdt,
)

# Every length up to 5 frames and 3 labels.
GRID = [(T, U) for T in range(6) for U in range(4)]
V = 4


def random_ranges(case: Case, S: int, seed: int) -> Tensor:
    """Legal ranges, one choice in all for every utterance; anything in the padding."""
    rng = torch.Generator().manual_seed(seed)
    B, T, width = case.logits.shape[:3]
    ranges = torch.randint(0, width - S + 1, (B, T, 1), generator=rng)
    for b, (frames, labels) in enumerate(zip(*case[2:], strict=True)):
        choices = list(oracles.legal_bounds(int(frames), int(labels), S, width - S)) if frames > 0 else []
        if choices:
            chosen = choices[int(torch.randint(0, len(choices), (), generator=rng))]
            ranges[b, : len(chosen), 0] = torch.tensor(chosen)
    return ranges + torch.arange(S)


def possible(case: Case, S: int) -> Case:
    """The utterances that S can prune."""
    some = (case.logit_lengths - 1).clamp(min=0) * (S - 1) + S > case.target_lengths
    return Case(*(x[some] for x in case))


def gathered(logits: Tensor, ranges: Tensor) -> Tensor:
    """(B, T, S, V'): the logits within the ranges."""
    return logits.gather(2, ranges[..., None].expand(*ranges.shape, logits.shape[-1]))


def pruned(case: Case, ranges: Tensor, blank: int = 0, **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda logits: pruned_rnnt_loss(
        logits, case.targets, ranges, case.logit_lengths, case.target_lengths, blank, **options
    )


def by_enumeration(
    case: Case, ranges: Tensor, rules: Rules, blank: int = 0, **options: Any
) -> Callable[[Tensor], Tensor]:
    """Loss of logits (B, T, S, V'): of the paths that read nothing outside the ranges."""

    def op(logits: Tensor) -> Tensor:
        losses = []
        for b, (full, y) in enumerate(case.utterances()):
            T = full.shape[0]
            inside = ranges[b, :T]
            x = oracles.spread_over_lattice(logits[b, :T], inside, case.logits.shape[2])[:, : len(y) + 1]
            allowed = oracles.pruned(inside.tolist())
            losses.append(oracles.loss(x, y, blank, rules, allowed=allowed, **options))
        return torch.stack(losses)

    return op


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equals_the_paths_within_the_ranges(name: str, S: int, criterion: str, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = possible(make(GRID, V, len(rules.durations), seed=7), S)
    ranges = random_ranges(case, S, seed=7)
    options: dict[str, Any] = {"criterion": criterion, "fastemit": 0.2, "delay_penalty": 0.1}
    logits = gathered(case.logits, ranges)
    wanted = run(by_enumeration(case, ranges, rules, **options), [logits])
    assert wanted.losses.isfinite().any()
    found = run(pruned(case, ranges, topology=topology, backend=backend, **options), [logits])
    agree(found, wanted)
    single = run(pruned(case, ranges, topology=topology, backend=backend, **options), [logits], torch.float32)
    agree(single, wanted, 1e-4)
    for b, (T, U) in enumerate(zip(*case[2:], strict=True)):
        assert not found.grads[0][b, int(T) :].any()
        assert not found.grads[0][b][ranges[b] > U].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_full_range_is_the_full_loss(name: str, backend: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = uneven(4, 12, 5, 7, len(rules.durations), seed=8)
    ranges = torch.arange(6).expand(4, 12, 6)
    options = {"topology": topology, "backend": backend}
    wanted = run(lambda x: rnnt_loss(x, *case[1:], **options), [case.logits])
    agree(run(pruned(case, ranges, **options), [case.logits]), wanted)


def test_wider_ranges_never_raise_the_loss() -> None:
    """Each S contains the ranges of the one before, cut to the lattice."""
    case = uneven(5, 30, 12, 9, seed=9)
    case = case._replace(target_lengths=torch.minimum(case.target_lengths, case.logit_lengths))
    label, blank = occupations_of(case, seed=9)
    narrow = pruning_bounds(label, blank, *case[2:], 2)
    losses = []
    for S in range(2, 14):
        ranges = narrow[..., :1].clamp(max=13 - S) + torch.arange(S)
        losses.append(pruned(case, ranges)(gathered(case.logits, ranges)))
    losses.append(rnnt_loss(*case))
    for wider, narrower in zip(losses[1:], losses, strict=False):
        assert (wider <= narrower + 1e-9).all()
    assert (losses[0] > losses[-1] + 1e-3).any()
    torch.testing.assert_close(losses[-2], losses[-1])


def test_pruning_by_the_occupations_of_a_sure_model_loses_little() -> None:
    """The whole way: simple loss, bounds, pruned loss, on am and lm that know the alignment."""
    case = uneven(3, 24, 8, 10, seed=10)
    case = case._replace(target_lengths=torch.minimum(case.target_lengths, case.logit_lengths // 2))
    am, lm = am_and_lm(case, seed=10)
    for b, (T, U) in enumerate(zip(*case[2:], strict=True)):
        for u in range(int(U)):
            am[b, int(T) * u // int(U), case.targets[b, u]] += 12
    found = simple_rnnt_loss(am, lm, *case[1:])
    ranges = pruning_bounds(*found[1:], *case[2:], 4)
    logits = am[:, :, None] + lm[:, None]
    loss = pruned(case, ranges)(gathered(logits, ranges))
    assert (loss >= found.loss - 1e-9).all()
    torch.testing.assert_close(loss, found.loss, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_pruned_loss_is_its_derivative(backend: str) -> None:
    case = make([(4, 3), (3, 2), (4, 0)], 3, 2, seed=11)
    ranges = random_ranges(case, 2, seed=11)
    logits = gathered(case.logits, ranges).requires_grad_()
    for criterion in ("sum", "max"):
        options = {"criterion": criterion, "topology": multi_blank(), "backend": backend}
        assert torch.autograd.gradcheck(pruned(case, ranges, **options), logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filling", [math.nan, math.inf])
def test_padding_does_not_influence_the_pruned_loss(backend: str, filling: float) -> None:
    """Padding is also where a range reaches beyond the labels of a shorter utterance."""
    case = make([(6, 4), (3, 1), (5, 2), (6, 0), (0, 3)], V, seed=12)
    ranges = random_ranges(case, 3, seed=12)
    logits = gathered(case.logits, ranges)
    wanted = run(pruned(case, ranges, backend=backend), [logits])
    beyond = ranges > case.target_lengths[:, None, None]
    beyond |= (torch.arange(6) >= case.logit_lengths[:, None])[..., None]
    assert beyond[2, :5].any()
    poisoned = case._replace(targets=case.targets.masked_fill(case.beyond(), -1))
    filled = logits.masked_fill(beyond[..., None], filling)
    found = run(pruned(poisoned, ranges, backend=backend), [filled])
    agree(found, wanted, 1e-12)
    assert not found.grads[0][beyond].any()
    assert not found.grads[0][-1].any()


# -- Fused -------------------------------------------------------------------------------------------------


def joiner_logits(inputs: tuple[Tensor, ...], activation: str) -> Tensor:
    encoder, predictor, weight, bias = inputs
    hidden = encoder[:, :, None] + predictor[:, None]
    return (hidden.tanh() if activation == "tanh" else hidden.relu()) @ weight.T + bias


def fused(case: Case, ranges: Tensor, **options: Any) -> Callable[..., Tensor]:
    """Dense, unless told."""
    options = {"skip_below": 0.0} | options
    return lambda *inputs: fused_pruned_rnnt_loss(
        *inputs, case.targets, ranges, case.logit_lengths, case.target_lengths, **options
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_fused_equals_the_loss_of_stored_logits(
    name: str, activation: str, criterion: str, backend: str
) -> None:
    topology, rules = TOPOLOGIES[name]
    case = possible(
        make([(9, 4), (6, 0), (0, 2), (3, 4), (1, 0), (1, 1)], 6, len(rules.durations), seed=13), 3
    )
    ranges = random_ranges(case, 3, seed=13)
    inputs = joiner_of(case, 5, seed=13)
    options: dict[str, Any] = {"topology": topology, "criterion": criterion}
    options |= {"fastemit": 0.2, "delay_penalty": 0.1}

    def stored(*inputs: Tensor) -> Tensor:
        logits = gathered(joiner_logits(inputs, activation), ranges)
        return pruned(case, ranges, backend="reference", **options)(logits)

    wanted = run(stored, inputs)
    assert wanted.losses.isfinite().any()
    options |= {"activation": activation, "backend": backend}
    agree(run(fused(case, ranges, **options), inputs), wanted)
    agree(run(fused(case, ranges, **options), inputs, torch.float32), wanted, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_without_bias_and_with_padding(backend: str) -> None:
    case = make([(6, 4), (3, 1), (5, 2), (6, 0)], V, seed=14)
    ranges = random_ranges(case, 3, seed=14)
    encoder, predictor, weight, _ = joiner_of(case, 4, seed=14)
    zero = torch.zeros(V, dtype=torch.float64)
    wanted = run(
        lambda e, p, w: fused(case, ranges, backend=backend)(e, p, w, zero), (encoder, predictor, weight)
    )
    beyond_frames = torch.arange(6) >= case.logit_lengths[:, None]
    beyond_labels = torch.arange(5) > case.target_lengths[:, None]
    encoder = encoder.masked_fill(beyond_frames[..., None], math.nan)
    predictor = predictor.masked_fill(beyond_labels[..., None], math.inf)
    found = run(
        lambda e, p, w: fused(case, ranges, backend=backend)(e, p, w, None), (encoder, predictor, weight)
    )
    agree(found, wanted, 1e-12)
    assert not found.grads[0][beyond_frames].any()
    assert not found.grads[1][beyond_labels].any()


def test_fused_on_the_full_range_is_the_full_loss() -> None:
    case = uneven(3, 20, 6, 11, seed=15)
    ranges = torch.arange(7).expand(3, 20, 7)
    inputs = joiner_of(case, 8, seed=15)

    def stored(*inputs: Tensor) -> Tensor:
        return rnnt_loss(joiner_logits(inputs, "tanh"), *case[1:])

    agree(run(fused(case, ranges), inputs), run(stored, inputs))


# -- Options and errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_impossible_pruning_has_infinite_loss_and_no_gradient(backend: str) -> None:
    """Bands that do not touch, one that does not arrive, and a good one."""
    case = make([(3, 3)] * 3, V, seed=16)
    first = torch.tensor([[0, 2, 2], [0, 0, 1], [0, 1, 2]])
    ranges = first[..., None] + torch.arange(2)
    logits = gathered(case.logits, ranges)
    for name in ("rnnt", "monotonic"):
        topology, rules = TOPOLOGIES[name]
        wanted = run(by_enumeration(case, ranges, rules), [logits])
        # the last label of a monotonic path needs no node behind it
        assert wanted.losses.isinf().tolist() == [True, name == "rnnt", False]
        found = run(pruned(case, ranges, topology=topology, backend=backend), [logits])
        agree(found, wanted)
        assert not found.grads[0][wanted.losses.isinf()].any()
    inputs = joiner_of(case, 4, seed=16)
    found = run(fused(case, ranges, backend=backend), inputs)
    assert found.losses.isinf().tolist() == [True, True, False]
    assert not found.grads[0][:2].any()
    assert found.grads[0][2].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_at_all(backend: str) -> None:
    index = torch.ones(2, 2, dtype=torch.int64), torch.tensor([0, 0]), torch.tensor([2, 0])
    ranges = pruning_bounds(torch.zeros(2, 0, 2), torch.zeros(2, 0, 3), *index[1:], 2)
    assert ranges.shape == (2, 0, 2)
    logits = torch.zeros(2, 0, 2, V, requires_grad=True)
    losses = pruned(Case(logits, *index), ranges, backend=backend)(logits)
    assert losses.isinf().all()
    assert torch.autograd.grad(losses.sum(), logits)[0].shape == logits.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_index_dtypes_and_reductions(backend: str) -> None:
    case = uneven(3, 14, 5, 9, seed=18)
    ranges = random_ranges(possible(case, 6), 6, seed=18)
    index = [x.to(torch.int32) for x in (case.targets, ranges, case.logit_lengths, case.target_lengths)]
    logits = gathered(case.logits, ranges)
    losses = pruned(case, ranges, backend=backend)(logits)
    assert torch.equal(pruned_rnnt_loss(logits, *index, backend=backend), losses)
    for reduction in ("sum", "mean"):
        found = pruned_rnnt_loss(logits, *index, reduction=reduction, backend=backend)
        torch.testing.assert_close(found, getattr(losses, reduction)())
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 3e-2)):
        rounded = logits.to(dtype).double()
        exact = run(pruned(case, ranges, backend="reference"), [rounded])
        half = run(pruned(case, ranges, backend=backend), [rounded], dtype)
        torch.testing.assert_close(half.losses, exact.losses, rtol=1e-5, atol=1e-5)
        agree(half._replace(losses=exact.losses), exact, tolerance)


def test_double_backward_is_refused() -> None:
    case = make([(4, 2)], V, seed=19)
    ranges = random_ranges(case, 2, seed=19)
    leaf = gathered(case.logits, ranges).requires_grad_()
    (grad,) = torch.autograd.grad(pruned(case, ranges)(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match='twice only with backend="reference"'):
        (grad**2).sum().backward()


RANGES = torch.tensor([[[0, 1], [0, 1], [1, 2]], [[0, 1], [1, 2], [1, 2]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, r"logits of shape .*found \(2, 3, 4\)"),
        ({"ranges": RANGES[:, :2]}, r"ranges of shape .*found \(2, 2, 2\)"),
        ({"ranges": RANGES.double()}, "ranges of dtype int32 or int64, found torch.float64"),
        ({"ranges": RANGES[0]}, r"ranges of shape .*found \(3, 2\)"),
        ({"ranges": RANGES[0, 0, 0]}, "ranges of shape"),
        ({"ranges": RANGES + 1}, r"consecutive .*within \[0, 2\], found \[2, 3\] at utterance 0, frame 2"),
        ({"ranges": RANGES - 1}, r"found \[-1, 0\] at utterance 0, frame 0"),
        ({"ranges": RANGES.flip(-1)}, r"found \[1, 0\] at utterance 0, frame 0"),
        ({"targets": torch.tensor([[1, 1], [2, 4]])}, r"targets within \[0, 4\), found 4 at \[1, 1\]"),
        ({"logit_lengths": torch.tensor([3, 4])}, r"logit_lengths within \[0, 3\], found 4 for utterance 1"),
        ({"topology": tdt((0, 1, 2, 3))}, "more than 4 columns"),
        ({"criterion": "mean"}, "criterion among sum, max, found 'mean'"),
        ({"reduction": "max"}, "reduction among none, sum, mean, found 'max'"),
    ],
)
def test_wrong_input_of_the_pruned_loss_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "logits": torch.zeros(2, 3, 2, 4),
        "targets": torch.tensor([[1, 1], [2, 3]]),
        "ranges": RANGES,
        "logit_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
    }
    assert pruned_rnnt_loss(**good).isfinite().all()
    with pytest.raises(ValueError, match=message) as error:
        pruned_rnnt_loss(**(good | change))
    assert "\n" not in str(error.value)
    if "logits" not in change:
        del good["logits"]
        good |= {
            "encoder": torch.zeros(2, 3, 5),
            "predictor": torch.zeros(2, 3, 5),
            "weight": torch.zeros(4, 5),
        }
        assert fused_pruned_rnnt_loss(**good, bias=None).isfinite().all()
        with pytest.raises(ValueError, match=message):
            fused_pruned_rnnt_loss(**(good | change), bias=None)
