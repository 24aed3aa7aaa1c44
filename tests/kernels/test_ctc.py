"""CTC over frames alone, against torch in float64 and against every string of symbols that collapses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import BACKENDS, Case, Outcome, agree, make, run, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr_kernels import CTC, align, ctc_align, ctc_loss, rnnt_loss

# T, U: every length up to 6 frames and 3 labels, and no frames at all.
GRID = [(T, U) for T in range(7) for U in range(4)]
V = 3


def over_frames(case: Case) -> Case:
    """Logits (B, T, V): those of u = 0."""
    return case._replace(logits=case.logits[:, :, 0])


def grid(seed: int = 0, blank: int = 0) -> Case:
    """Two labels only, so that many repeat."""
    return over_frames(make(GRID, V, seed=seed, blank=blank))


def loss(case: Case, blank: int = 0, **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda logits: ctc_loss(logits, *case[1:], blank, **options)


def strings(case: Case, blank: int = 0) -> list[oracles.Ctc]:
    lengths = zip(case.logit_lengths.tolist(), case.target_lengths.tolist(), strict=True)
    return [
        oracles.ctc(case.logits[b, :T], case.targets[b, :U].tolist(), blank)
        for b, (T, U) in enumerate(lengths)
    ]


def by_torch(case: Case, blank: int = 0) -> Outcome:
    """Losses and gradients of torch, with zero gradient (there NaN) where no path exists.

    Nor is there one without frames, for any loss of this package; for torch there is, without labels.
    """

    def op(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        targets = case.targets.masked_fill(case.beyond(), (blank + 1) % logits.shape[-1])
        return torch.nn.functional.ctc_loss(log_probs, targets, *case[2:], blank=blank, reduction="none")

    losses, (grad,) = run(op, [case.logits])
    losses = losses.masked_fill(case.logit_lengths == 0, math.inf)
    return Outcome(losses, (torch.where(losses[:, None, None].isinf(), 0.0, grad),))


def assert_aligned(found: Any, wanted: list[oracles.Ctc], U: int) -> None:
    for b, ctc in enumerate(wanted):
        padding = [-1] * (U - len(ctc.best.frames))
        assert found.frames[b].tolist() == ctc.best.frames + padding
        assert found.end_frames[b].tolist() == ctc.best.end_frames + padding
        assert found.score[b].item() == pytest.approx(ctc.best.score, rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("blank", [0, 1])
def test_equals_the_strings_that_collapse(backend: str, criterion: str, blank: int) -> None:
    case = grid(blank=blank)

    def by_strings(logits: Tensor) -> Tensor:
        found = strings(case._replace(logits=logits), blank)
        return torch.stack([x.loss if criterion == "sum" else x.best_loss for x in found])

    wanted = run(by_strings, [case.logits])
    assert wanted.losses.isinf().sum() > 7  # also labels that repeat and leave no frame for the blank
    found = run(loss(case, blank, criterion=criterion, backend=backend), [case.logits])
    agree(found, wanted)
    assert not found.grads[0][wanted.losses.isinf()].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("blank", [0, 1])
def test_best_strings(backend: str, blank: int) -> None:
    case = grid(seed=1, blank=blank)
    found = ctc_align(*case, blank, backend=backend)
    assert_aligned(found, strings(case, blank), 3)
    losses = ctc_loss(*case, blank, criterion="max", backend=backend)
    torch.testing.assert_close(found.score, -losses)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("B", "T", "U", "symbols", "blank"),
    [
        (1, 1, 1, 2, 0),
        (4, 30, 9, 40, 39),
        (3, 12, 12, 2, 1),
        (5, 25, 3, 7, 3),
        (2, 9, 0, 5, 0),
        (1, 3, 7, 9, 0),
    ],
)
def test_equals_torch(backend: str, B: int, T: int, U: int, symbols: int, blank: int) -> None:
    case = over_frames(uneven(B, T, U, symbols, seed=2))
    case = case._replace(targets=(case.targets + blank) % symbols)
    wanted = by_torch(case, blank)
    agree(run(loss(case, blank, backend=backend), [case.logits]), wanted)
    agree(run(loss(case, blank, backend=backend), [case.logits], torch.float32), wanted, 1e-4)


def test_equals_torch_on_a_long_batch() -> None:
    case = over_frames(uneven(4, 300, 60, 50, seed=3))
    wanted = by_torch(case)
    agree(run(loss(case), [case.logits]), wanted, 1e-8)
    agree(run(loss(case), [case.logits], torch.float32), wanted, 1e-4)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=4),
    symbols=st.integers(2, 5),
    scale=st.sampled_from([0.5, 3.0, 30.0]),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=60, deadline=None)
def test_any_batch_equals_torch(
    lengths: list[tuple[int, int]], symbols: int, scale: float, seed: int
) -> None:
    blank = seed % symbols
    case = over_frames(make([(1, 0), *lengths], symbols, seed=seed, blank=blank, scale=scale))
    agree(run(loss(case, blank), [case.logits]), by_torch(case, blank))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
def test_is_the_ctc_topology_with_logits_that_do_not_depend_on_u(backend: str, criterion: str) -> None:
    case = over_frames(uneven(4, 20, 6, 3, seed=4))
    options = {"criterion": criterion, "backend": backend}

    def on_lattice(logits: Tensor) -> Tensor:
        spread = logits[:, :, None].expand(-1, -1, 7, -1)
        return rnnt_loss(spread, *case[1:], topology=CTC, **options)

    agree(run(loss(case, **options), [case.logits]), run(on_lattice, [case.logits]))
    spread = case.logits[:, :, None].expand(-1, -1, 7, -1)
    both = ctc_align(*case, backend=backend), align(spread, *case[1:], topology=CTC, backend=backend)
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("band", [0, 1])
def test_bands_around_an_alignment(backend: str, band: int) -> None:
    case = over_frames(make([(6, 2), (6, 3), (5, 1), (4, 0), (2, 3)], V, seed=10))
    best = ctc_align(*case)
    near = [
        oracles.banded(best.frames[b, :U].tolist(), band, best.end_frames[b, :U].tolist())
        for b, U in enumerate(case.target_lengths.tolist())
    ]

    def by_enumeration(logits: Tensor) -> Tensor:
        spread = case._replace(logits=logits[:, :, None].expand(-1, -1, 4, -1)).utterances()
        losses = [
            oracles.loss(x, y, 0, oracles.Rules("ctc"), allowed=near[b]) for b, (x, y) in enumerate(spread)
        ]
        return torch.stack(losses)

    wanted = run(by_enumeration, [case.logits])
    assert wanted.losses.isinf().tolist() == [False] * 4 + [True]
    options = {"alignment": best, "alignment_band": band, "backend": backend}
    agree(run(loss(case, **options), [case.logits]), wanted)
    if band == 0:
        torch.testing.assert_close(wanted.losses, -best.score)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_at_all(backend: str) -> None:
    logits = torch.zeros(2, 0, V, requires_grad=True)
    index = torch.ones(2, 2, dtype=torch.int64), torch.tensor([0, 0]), torch.tensor([2, 0])
    losses = ctc_loss(logits, *index, backend=backend)
    assert losses.isinf().all()
    assert torch.autograd.grad(losses.sum(), logits)[0].shape == logits.shape
    assert (ctc_align(logits, *index, backend=backend).frames == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_may_have_the_id_of_blank(backend: str) -> None:
    """As the CTC topology has it, where blank and label are told apart by what they do."""
    case = over_frames(make([(5, 3), (4, 2)], V, seed=11))
    case.targets[:, 1] = 0

    def by_enumeration(logits: Tensor) -> Tensor:
        spread = case._replace(logits=logits[:, :, None].expand(-1, -1, 4, -1)).utterances()
        return torch.stack([oracles.loss(x, y, 0, oracles.Rules("ctc")) for x, y in spread])

    agree(run(loss(case, backend=backend), [case.logits]), run(by_enumeration, [case.logits]))


def test_double_backward_is_refused() -> None:
    case = over_frames(make([(4, 2)], V, seed=12))
    logits = case.logits.requires_grad_()
    (grad,) = torch.autograd.grad(ctc_loss(*case).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='twice only with backend="reference"'):
        (grad**2).sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_symbols(backend: str) -> None:
    case = over_frames(make([(6, 2)] * 12, V, seed=5))
    hit = torch.rand(case.logits.shape, generator=torch.Generator().manual_seed(5)) < 0.3
    hit[..., 0] &= ~hit[..., 1:].all(-1)
    case = case._replace(logits=case.logits.masked_fill(hit, -math.inf))
    wanted = run(lambda x: torch.stack([c.loss for c in strings(case._replace(logits=x))]), [case.logits])
    possible = wanted.losses.isfinite()
    assert possible.any()
    assert not possible.all()
    # where no string is possible the oracle's gradient is not a number; ours is zero
    wanted = wanted._replace(grads=(torch.where(possible[:, None, None], wanted.grads[0], 0.0),))
    agree(run(loss(case, backend=backend), [case.logits]), wanted)
    found = ctc_align(*case, backend=backend)
    assert torch.equal(found.score.isfinite(), possible)
    assert (found.frames[~possible] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_logits_are_no_probabilities(backend: str) -> None:
    case = over_frames(make([(4, 2), (4, 2)], V))
    for symbol in range(V):  # in the targets and not
        logits = case.logits.clone()
        logits[0, 1, symbol] = math.inf
        found = loss(case._replace(targets=torch.ones_like(case.targets)), backend=backend)(logits)
        assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_the_derivative_of_the_loss(backend: str) -> None:
    case = over_frames(make([(4, 2), (3, 1), (4, 0)], V, seed=6))
    for criterion in ("sum", "max"):
        options = {"criterion": criterion, "backend": backend}
        assert torch.autograd.gradcheck(loss(case, **options), case.logits.requires_grad_())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filling", [math.nan, math.inf, -math.inf])
def test_padding_influences_nothing(backend: str, filling: float) -> None:
    case = grid(seed=7)
    wanted, best = run(loss(case, backend=backend), [case.logits]), ctc_align(*case, backend=backend)
    padding = torch.arange(6) >= case.logit_lengths[:, None]
    logits = case.logits.masked_fill(padding[..., None], filling)
    targets = case.targets.masked_fill(case.beyond(), 1 << 40)
    poisoned = case._replace(logits=logits, targets=targets)
    found = run(loss(poisoned, backend=backend), [logits])
    assert torch.equal(found.losses, wanted.losses)
    assert torch.equal(found.grads[0], wanted.grads[0])
    assert not found.grads[0][padding].any()
    for one, other in zip(ctc_align(*poisoned, backend=backend), best, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_strides_and_index_dtypes(backend: str) -> None:
    case = over_frames(uneven(3, 15, 4, 9, seed=8))
    wanted = by_torch(case)
    turned = case.logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    agree(run(loss(case, backend=backend), [turned]), wanted)
    index = [x.to(torch.int32) for x in case[1:]]
    losses = ctc_loss(case.logits, *index, backend=backend)
    torch.testing.assert_close(losses, wanted.losses)
    for reduction in ("sum", "mean"):
        found = ctc_loss(*case, reduction=reduction, backend=backend)
        torch.testing.assert_close(found, getattr(losses, reduction)())
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        rounded = case._replace(logits=case.logits.to(dtype).double())
        exact = by_torch(rounded)
        found = run(loss(rounded, backend=backend), [rounded.logits], dtype)
        torch.testing.assert_close(found.losses, exact.losses, rtol=1e-5, atol=1e-5)
        agree(found._replace(losses=exact.losses), exact, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend: str) -> None:
    case = over_frames(make([(4, 2), (4, 2)], V, seed=9))
    case.logits[0, 1, 0] = math.nan
    found = run(loss(case, backend=backend), [case.logits])
    assert found.losses.isnan().tolist() == [True, False]
    assert found.grads[0][0].isnan().any()
    assert found.grads[0][1].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 2, 4)}, r"expected logits of shape \(B, T, V\).*found \(2, 3, 2, 4\)"),
        ({"logits": torch.zeros(2, 3, 4, dtype=torch.int64)}, "floating dtype, found torch.int64"),
        ({"targets": torch.tensor([[1, 1]])}, r"targets of shape .*found \(1, 2\)"),
        ({"targets": torch.tensor([[1, 1], [2, 4]])}, r"targets within \[0, 4\), found 4 at \[1, 1\]"),
        ({"logit_lengths": torch.tensor([3, 4])}, r"logit_lengths within \[0, 3\], found 4 for utterance 1"),
        ({"target_lengths": torch.tensor([2, 3])}, r"target_lengths within \[0, 2\], found 3"),
        ({"target_lengths": torch.tensor([2.0, 2.0])}, "target_lengths of dtype int32 or int64"),
        ({"blank": 4}, r"blank within \[-4, 4\), found 4"),
        ({"criterion": "mean"}, "criterion among sum, max, found 'mean'"),
        ({"reduction": "max"}, "reduction among none, sum, mean, found 'max'"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "logits": torch.zeros(2, 3, 4),
        "targets": torch.tensor([[1, 2], [2, 3]]),
        "logit_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
    }
    assert ctc_loss(**good).isfinite().all()
    with pytest.raises(ValueError, match=message) as error:
        ctc_loss(**(good | change))
    assert "\n" not in str(error.value)
