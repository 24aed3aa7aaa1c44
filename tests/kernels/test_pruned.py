"""Pruned losses: the simple loss and its occupations, the bounds chosen from them, the loss within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import BACKENDS, TOPOLOGIES, Case, agree, make, run, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
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
SCALES = [(0.0, 0.0), (0.1, 0.25), (0.0, 0.5)]  # am_scale, lm_scale


# -- The simple loss ---------------------------------------------------------------------------------------


def am_and_lm(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    B, T, width, columns = case.logits.shape
    am = 2 * torch.randn(B, T, columns, generator=rng, dtype=torch.float64)
    return am, 2 * torch.randn(B, width, columns, generator=rng, dtype=torch.float64)


def simple(case: Case, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda am, lm: simple_rnnt_loss(am, lm, *case[1:], **options).loss


def log_probs_by_definition(
    am: Tensor, lm: Tensor, target_lengths: Tensor, am_scale: float, lm_scale: float
) -> Tensor:
    """(B, T, U+1, V), as in Kuang et al. 2022, "Pruned RNN-T"; the padding of lm is not part of the mean."""
    joint = (am[:, :, None] + lm[:, None]).log_softmax(-1)
    valid = torch.arange(lm.shape[1]) <= target_lengths[:, None]
    log_unigram = lm.log_softmax(-1)[valid].logsumexp(0) - math.log(int(valid.sum()))
    am_only = (am + log_unigram).log_softmax(-1)[:, :, None]
    lm_only = lm.log_softmax(-1)[:, None]
    return (1 - am_scale - lm_scale) * joint + am_scale * am_only + lm_scale * lm_only


def simple_by_enumeration(
    case: Case, blank: int, am_scale: float, lm_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    def op(am: Tensor, lm: Tensor) -> Tensor:
        log_probs = log_probs_by_definition(am, lm, case.target_lengths, am_scale, lm_scale)
        utterances = case._replace(logits=log_probs).utterances()
        return torch.stack([oracles.loss_from_log_probs(x, y, blank, Rules("rnnt")) for x, y in utterances])

    return op


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("am_scale", "lm_scale"), SCALES)
@pytest.mark.parametrize("blank", [0, 2])
def test_simple_loss_equals_the_enumeration(
    backend: str, am_scale: float, lm_scale: float, blank: int
) -> None:
    case = make(GRID, V, blank=blank)
    options: dict[str, Any] = {"blank": blank, "am_scale": am_scale, "lm_scale": lm_scale}
    wanted = run(simple_by_enumeration(case, **options), am_and_lm(case))
    assert wanted.losses.isinf().sum() == 4  # no frames
    found = run(simple(case, backend=backend, **options), am_and_lm(case))
    agree(found, wanted)
    agree(run(simple(case, backend=backend, **options), am_and_lm(case), torch.float32), wanted, 1e-4)
    if am_scale == 0.0:
        beyond = torch.arange(4) > case.target_lengths[:, None]
        assert not found.grads[1][beyond].any()
    assert not found.grads[0][torch.arange(5) >= case.logit_lengths[:, None]].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("am_scale", "lm_scale"), SCALES)
def test_occupations_are_the_shares_of_the_paths(backend: str, am_scale: float, lm_scale: float) -> None:
    """Counted path by path: how probable it is that a path takes the arc."""
    case = make(GRID, V, seed=1)
    am, lm = am_and_lm(case, seed=1)
    log_probs = log_probs_by_definition(am, lm, case.target_lengths, am_scale, lm_scale)
    label, blank = torch.zeros(len(GRID), 5, 3, dtype=torch.float64), torch.zeros(len(GRID), 5, 4).double()
    for b, (x, y) in enumerate(case._replace(logits=log_probs).utterances()):
        paths = oracles.paths_of(Rules("rnnt"), x.shape[0], tuple(y), 0, V)
        shares = oracles.scores_of(x, paths, 0.0, 0.0, 0.0).softmax(0) if paths else []
        for path, share in zip(paths, shares, strict=True):
            for step in path:
                (label if step.emits else blank)[b, step.t, step.u] += share
    options = {"am_scale": am_scale, "lm_scale": lm_scale, "backend": backend}
    found = simple_rnnt_loss(am.requires_grad_(), lm, *case[1:], **options)
    torch.testing.assert_close(found.label_occupation.double(), label, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.blank_occupation.double(), blank, rtol=1e-5, atol=1e-6)
    assert not found.label_occupation.requires_grad
    assert not found.blank_occupation.requires_grad
    assert found.loss.requires_grad
    with torch.no_grad():
        again = simple_rnnt_loss(am, lm, *case[1:], **options)
    for one, other in zip(again, found, strict=True):
        torch.testing.assert_close(one, other)
    assert not again.loss.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_simple_loss_is_the_loss_of_the_linear_joiner(backend: str) -> None:
    case = uneven(4, 30, 12, 40, seed=2)
    am, lm = am_and_lm(case, seed=2)

    def stored(am: Tensor, lm: Tensor) -> Tensor:
        return rnnt_loss(am[:, :, None] + lm[:, None], *case[1:])

    wanted = run(stored, (am, lm))
    agree(run(simple(case, backend=backend), (am, lm)), wanted)
    agree(run(simple(case, backend=backend), (am, lm), torch.float32), wanted, 1e-4)
    for reduction in ("sum", "mean"):
        found = simple(case, backend=backend, reduction=reduction)(am, lm)
        torch.testing.assert_close(found, getattr(wanted.losses, reduction)())


@pytest.mark.parametrize("offset", [0.0, 300.0, -300.0])
@pytest.mark.parametrize("opposite", [40.0, 400.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_simple_loss_of_large_and_opposite_logits(backend: str, opposite: float, offset: float) -> None:
    """exp(am) exp(lm) must not overflow; a label large in am and improbable by lm must not vanish."""
    case = uneven(3, 12, 5, 7, seed=3)
    case.targets[0, 2] = 1
    am, lm = am_and_lm(case, seed=3)
    am[..., 1] += opposite
    lm[..., 1] -= opposite
    am, lm = ((x * 64).round() / 64 for x in (am, lm))  # which no offset rounds away
    options: dict[str, Any] = {"am_scale": 0.1, "lm_scale": 0.25}

    def exact(am: Tensor, lm: Tensor) -> Tensor:
        log_probs = log_probs_by_definition(am, lm, case.target_lengths, **options)
        return torch.stack([recursion(x, y) for x, y in case._replace(logits=log_probs).utterances()])

    wanted = run(exact, (am, lm))
    shifted = am + offset, lm - offset
    agree(run(simple(case, backend=backend, **options), shifted), wanted, 1e-8)
    agree(run(simple(case, backend=backend, **options), shifted, torch.float32), wanted, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_symbol_that_is_impossible_by_lm(backend: str, dtype: torch.dtype) -> None:
    """-inf in its column of lm: as if the symbol were not there, also for the unigram and every gradient."""
    case = uneven(3, 8, 4, 5, seed=20)
    am, lm = am_and_lm(case, seed=20)
    for scales in SCALES:
        options: dict[str, Any] = {"am_scale": scales[0], "lm_scale": scales[1], "backend": backend}
        wanted = run(simple(case, **options), (am, lm))
        more = torch.randn_like(am[..., :1]), torch.full_like(lm[..., :1], -math.inf)
        inputs = [torch.cat(pair, dim=-1) for pair in zip((am, lm), more, strict=True)]
        found = run(simple(case, **options), inputs, dtype)
        assert not found.grads[0][..., 5].any()
        found = found._replace(grads=tuple(grad[..., :5] for grad in found.grads))
        agree(found, wanted, 1e-9 if dtype == torch.float64 else 1e-4)


def recursion(log_probs: Tensor, y: list[int]) -> Tensor:
    """Graves 2012, eq. 16 to 18, of log-probabilities (T, U+1, V) that need not be normalised."""
    alpha: dict[tuple[int, int], Tensor] = {}
    T = log_probs.shape[0]
    for t in range(T):
        for u in range(len(y) + 1):
            terms = [] if t + u else [log_probs.new_zeros(())]
            if t > 0:
                terms.append(alpha[t - 1, u] + log_probs[t - 1, u, 0])
            if u > 0:
                terms.append(alpha[t, u - 1] + log_probs[t, u - 1, y[u - 1]])
            alpha[t, u] = torch.stack(terms).logsumexp(0)
    return -(alpha[T - 1, len(y)] + log_probs[T - 1, len(y), 0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["rnnt", "monotonic"])
def test_options_of_the_simple_loss(name: str, backend: str) -> None:
    """Topology, delay penalty and FastEmit as in rnnt_loss; the occupations are those without FastEmit."""
    topology, rules = TOPOLOGIES[name]
    case = make(GRID, V, seed=17)
    own = {"delay_penalty": 0.2, "fastemit": 0.3}
    unigram = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def by_enumeration(am: Tensor, lm: Tensor) -> Tensor:
        joint = (am[:, :, None] + lm[:, None]).log_softmax(-1)
        log_probs = 0.75 * joint + 0.25 * (am + unigram.log()).log_softmax(-1)[:, :, None]
        utterances = case._replace(logits=log_probs).utterances()
        return torch.stack([oracles.loss_from_log_probs(x, y, 0, rules, **own) for x, y in utterances])

    options = {"topology": topology, "am_scale": 0.25, "unigram": unigram, "backend": backend}
    wanted = run(by_enumeration, am_and_lm(case, seed=17))
    agree(run(simple(case, **options, **own), am_and_lm(case, seed=17)), wanted)
    plain, scaled = (
        simple_rnnt_loss(*am_and_lm(case, seed=17), *case[1:], **options, delay_penalty=0.2, fastemit=x)
        for x in (0.0, 0.3)
    )
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other)
    found = plain.label_occupation.sum(1)[wanted.losses.isfinite()]
    labels = case.target_lengths[wanted.losses.isfinite()]
    torch.testing.assert_close(found, (torch.arange(3) < labels[:, None]).double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_simple_loss_is_its_derivative(backend: str) -> None:
    case = make([(4, 2), (3, 3), (2, 0)], V, seed=4)
    inputs = [x.requires_grad_() for x in am_and_lm(case, seed=4)]
    for am_scale, lm_scale in SCALES:
        options = {"am_scale": am_scale, "lm_scale": lm_scale, "backend": backend}
        assert torch.autograd.gradcheck(simple(case, **options), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filling", [math.nan, math.inf])
def test_padding_does_not_influence_the_simple_loss(backend: str, filling: float) -> None:
    case = make([(5, 3), (2, 1), (4, 3), (5, 0)], V, seed=5)
    am, lm = am_and_lm(case, seed=5)
    options: dict[str, Any] = {"am_scale": 0.1, "lm_scale": 0.25, "backend": backend}
    wanted = run(simple(case, **options), (am, lm))
    occupations = simple_rnnt_loss(am, lm, *case[1:], **options)
    beyond_frames = torch.arange(5) >= case.logit_lengths[:, None]
    beyond_labels = torch.arange(4) > case.target_lengths[:, None]
    am = am.masked_fill(beyond_frames[..., None], filling)
    lm = lm.masked_fill(beyond_labels[..., None], filling)
    poisoned = case._replace(targets=case.targets.masked_fill(case.beyond(), 1 << 40))
    found = run(simple(poisoned, **options), (am, lm))
    agree(found, wanted, 1e-12)
    assert not found.grads[0][beyond_frames].any()
    assert not found.grads[1][beyond_labels].any()
    for one, other in zip(simple_rnnt_loss(am, lm, *poisoned[1:], **options), occupations, strict=True):
        torch.testing.assert_close(one, other)


# -- Bounds ------------------------------------------------------------------------------------------------


def kept(label: Tensor, blank: Tensor, bounds: tuple[int, ...], S: int) -> float:
    """Occupation of the nodes within the bounds, of one utterance: label (T, U), blank (T, U+1)."""
    width = blank.shape[1]
    node = blank + torch.nn.functional.pad(label, (0, 1))
    return sum(float(node[t, first : min(first + S, width)].sum()) for t, first in enumerate(bounds))


def occupations_of(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    found = simple_rnnt_loss(*am_and_lm(case, seed), *case[1:])
    return found.label_occupation, found.blank_occupation


def assert_legal(ranges: Tensor, case: Case, S: int) -> None:
    B, T, width = case.logits.shape[:3]
    S = min(S, width)
    assert ranges.dtype == torch.int64
    assert ranges.shape == (B, T, S)
    assert torch.equal(ranges, ranges[..., :1] + torch.arange(S))
    assert ranges.min() >= 0 or ranges.numel() == 0
    assert (ranges < width).all()
    for b, (frames, labels) in enumerate(zip(*case[2:], strict=True)):
        first = ranges[b, : int(frames), 0].tolist()
        if first:
            assert tuple(first) in set(oracles.legal_bounds(len(first), int(labels), S, width - S))


@pytest.mark.parametrize("S", [1, 2, 3, 4, 7])
def test_bounds_are_legal_and_keep_the_most(S: int) -> None:
    """By trying every legal pruning; where there is none, with too few frames, nothing is promised."""
    case = make([(T, U) for T in range(1, 6) for U in range(5)] * 2, V, seed=6)
    width = 5
    possible = (case.logit_lengths - 1) * (min(S, width) - 1) + min(S, width) > case.target_lengths
    assert possible.any()
    label, blank = occupations_of(case, seed=6)
    ranges = pruning_bounds(label, blank, *case[2:], S)
    some = [x[possible] for x in case]
    assert_legal(ranges[possible], Case(*some), S)
    S = min(S, width)
    for b in possible.nonzero().flatten().tolist():
        T, U = int(case.logit_lengths[b]), int(case.target_lengths[b])
        own, highest = (label[b, :T], blank[b, :T]), width - S
        best = max(kept(*own, bounds, S) for bounds in oracles.legal_bounds(T, U, S, highest))
        assert kept(*own, tuple(ranges[b, :T, 0].tolist()), S) == pytest.approx(best, abs=1e-6)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=4),
    S=st.integers(2, 9),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=40, deadline=None)
def test_bounds_of_any_batch_are_legal(lengths: list[tuple[int, int]], S: int, seed: int) -> None:
    lengths = [(T, min(U, T * (S - 1))) for T, U in lengths]
    case = make(lengths, V, seed=seed)
    ranges = pruning_bounds(*occupations_of(case, seed), *case[2:], S)
    B, T, width = case.logits.shape[:3]
    size = min(S, width)
    assert ranges.shape == (B, T, size)
    assert torch.equal(ranges, ranges[..., :1] + torch.arange(size))
    assert 0 <= int(ranges.min()) <= int(ranges.max()) < width
    for b, (frames, labels) in enumerate(lengths):
        first = ranges[b, :frames, 0]
        assert first[0] == 0
        assert (first.diff() >= 0).all()
        assert (first.diff() <= size - 1).all()
        assert first[-1] <= labels < first[-1] + size


def test_bounds_follow_a_sure_alignment() -> None:
    """Occupations of a single path: every one of its nodes is kept, by ranges of two."""
    emitted = [[0, 2, 3, 6, 7], [1, 2, 3, 4, 5]]
    label, blank = torch.zeros(2, 8, 5), torch.zeros(2, 8, 6)
    for b, frames in enumerate(emitted):
        for t in range(8):
            blank[b, t, sum(frame <= t for frame in frames)] = 1
        for u, frame in enumerate(frames):
            label[b, frame, u] = 1
    lengths = torch.tensor([8, 8]), torch.tensor([5, 5])
    ranges = pruning_bounds(label, blank, *lengths, 2)
    for b in range(2):
        assert kept(label[b], blank[b], tuple(ranges[b, :, 0].tolist()), 2) == 8 + 5


# -- The loss within bounds --------------------------------------------------------------------------------


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


def joiner_of(case: Case, D: int, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    B, T, width, columns = case.logits.shape
    shapes = (B, T, D), (B, width, D), (columns, D), (columns,)
    return [1.5 * torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


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
    am, lm = torch.zeros(2, 0, V, requires_grad=True), torch.zeros(2, 3, V, requires_grad=True)
    case = Case(am, torch.ones(2, 2, dtype=torch.int64), torch.tensor([0, 0]), torch.tensor([2, 0]))
    found = simple_rnnt_loss(am, lm, *case[1:], backend=backend)
    ranges = pruning_bounds(*found[1:], *case[2:], 2)
    assert ranges.shape == (2, 0, 2)
    logits = torch.zeros(2, 0, 2, V, requires_grad=True)
    losses = pruned(case, ranges, backend=backend)(logits)
    for loss, leaves in ((found.loss, (am, lm)), (losses, (logits,))):
        assert loss.isinf().all()
        for grad in torch.autograd.grad(loss.sum(), leaves):
            assert not grad.any()


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
        inputs = [x.to(dtype).double() for x in am_and_lm(case, seed=18)]
        exact = run(simple(case, backend="reference"), inputs)
        half = run(simple(case, backend=backend), inputs, dtype)
        torch.testing.assert_close(half.losses, exact.losses, rtol=1e-4, atol=1e-4)
        agree(half._replace(losses=exact.losses), exact, tolerance)


def test_double_backward_is_refused() -> None:
    case = make([(4, 2)], V, seed=19)
    ranges = random_ranges(case, 2, seed=19)
    am, lm = am_and_lm(case, seed=19)
    ops = ((pruned(case, ranges), gathered(case.logits, ranges)), (lambda x: simple(case)(x, lm), am))
    for op, leaf in ops:
        (grad,) = torch.autograd.grad(op(leaf.requires_grad_()).sum(), leaf, create_graph=True)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"am": torch.zeros(2, 3)}, r"am of shape .*found \(2, 3\)"),
        ({"lm": torch.zeros(2, 3, 5)}, r"lm of shape .*found \(2, 3, 5\)"),
        ({"lm": torch.zeros(1, 3, 4)}, r"lm of shape .*found \(1, 3, 4\)"),
        ({"targets": torch.tensor([[1, 1], [2, 4]])}, r"targets within \[0, 4\), found 4 at \[1, 1\]"),
        ({"blank": 4}, r"blank within \[-4, 4\), found 4"),
        ({"am_scale": math.nan}, "am_scale"),
        ({"lm_scale": -0.1}, "lm_scale"),
        ({"am_scale": 0.6, "lm_scale": 0.6}, "lm_scale"),
        ({"reduction": "max"}, "reduction among none, sum, mean, found 'max'"),
    ],
)
def test_wrong_input_of_the_simple_loss_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "am": torch.zeros(2, 3, 4),
        "lm": torch.zeros(2, 3, 4),
        "targets": torch.tensor([[1, 1], [2, 3]]),
        "logit_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
    }
    assert simple_rnnt_loss(**good).loss.isfinite().all()
    with pytest.raises(ValueError, match=message) as error:
        simple_rnnt_loss(**(good | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"S": 0}, "S of at least 1, found 0"),
        ({"label_occupation": torch.zeros(1, 3, 3)}, r"label_occupation of shape .*found \(1, 3, 3\)"),
        ({"blank_occupation": torch.zeros(3, 3)}, r"blank_occupation of shape .*found \(3, 3\)"),
        ({"logit_lengths": torch.tensor([4])}, r"logit_lengths within \[0, 3\], found 4"),
        ({"target_lengths": torch.tensor([3])}, r"target_lengths within \[0, 2\], found 3"),
    ],
)
def test_wrong_input_of_the_bounds_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "label_occupation": torch.zeros(1, 3, 2),
        "blank_occupation": torch.zeros(1, 3, 3),
        "logit_lengths": torch.tensor([3]),
        "target_lengths": torch.tensor([2]),
        "S": 2,
    }
    assert pruning_bounds(**good).shape == (1, 3, 2)
    with pytest.raises(ValueError, match=message) as error:
        pruning_bounds(**(good | change))
    assert "\n" not in str(error.value)
