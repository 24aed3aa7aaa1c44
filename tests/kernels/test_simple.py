"""The simple loss of pruned RNN-T, and its occupations, against the enumeration of all paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import BACKENDS, TOPOLOGIES, Case, agree, am_and_lm, make, run, uneven
from oracles import Rules
from torch import Tensor

from asr_kernels import rnnt_loss, simple_rnnt_loss
from asr_kernels.pruned import simple as implementation

# Every length up to 5 frames and 3 labels.
GRID = [(T, U) for T in range(6) for U in range(4)]
V = 4
SCALES = [(0.0, 0.0), (0.1, 0.25), (0.0, 0.5)]  # am_scale, lm_scale


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend: str) -> None:
    case = uneven(3, 14, 5, 9, seed=18)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 3e-2)):
        inputs = [x.to(dtype).double() for x in am_and_lm(case, seed=18)]
        exact = run(simple(case, backend="reference"), inputs)
        half = run(simple(case, backend=backend), inputs, dtype)
        torch.testing.assert_close(half.losses, exact.losses, rtol=1e-4, atol=1e-4)
        agree(half._replace(losses=exact.losses), exact, tolerance)


def test_many_lost_nodes_take_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where am and lm agree on nothing, nodes are done some at a time; those that are NaN not at all."""
    case, sizes = uneven(3, 20, 8, 50, seed=4), list[int]()
    am, lm = (400 * x for x in am_and_lm(case, seed=4))
    monkeypatch.setattr(implementation, "_LOST", 500)
    rows = implementation._logits

    def noted(*args: Tensor) -> Any:
        for nodes, logits in rows(*args):
            sizes.append(logits.numel())
            yield nodes, logits

    monkeypatch.setattr(implementation, "_logits", noted)
    agree(run(simple(case), (am, lm)), run(simple(case, backend="reference"), (am, lm)), 1e-9)
    assert len(sizes) > 20
    assert max(sizes) <= 500
    sizes.clear()
    assert simple(case)(am, torch.full_like(lm, torch.nan)).isnan().all()
    assert sum(sizes) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_at_all(backend: str) -> None:
    am, lm = torch.zeros(2, 0, V, requires_grad=True), torch.zeros(2, 3, V, requires_grad=True)
    index = torch.ones(2, 2, dtype=torch.int64), torch.tensor([0, 0]), torch.tensor([2, 0])
    found = simple_rnnt_loss(am, lm, *index, backend=backend)
    assert found.loss.isinf().all()
    assert found.label_occupation.shape == (2, 0, 2)
    assert found.blank_occupation.shape == (2, 0, 3)
    for grad in torch.autograd.grad(found.loss.sum(), (am, lm)):
        assert not grad.any()


def test_double_backward_is_refused() -> None:
    case = make([(4, 2)], V, seed=19)
    inputs = [x.requires_grad_() for x in am_and_lm(case, seed=19)]
    for leaf in inputs:
        (grad,) = torch.autograd.grad(simple(case)(*inputs).sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match='twice only with backend="reference"'):
            (grad**2).sum().backward()


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
