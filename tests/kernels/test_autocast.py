"""Mixed precision: the losses take what autocast made of their inputs and compute as without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, agree, am_and_lm, joiner_of, occupations_of, run, uneven
from torch import Tensor

import asr_kernels

V, D, S = 11, 8, 3
BATCH = uneven(3, 12, 5, V)


def joiner(case: Case) -> list[Tensor]:
    """Outputs of encoder and predictor, weight and bias."""
    return joiner_of(case, D, seed=1)


def ranges(case: Case) -> Tensor:
    return asr_kernels.pruning_bounds(*occupations_of(case, 0), *case[2:], S)


def cell_of(case: Case) -> list[Tensor]:
    """Inputs and weights of two heads of LSTMs."""
    rng = torch.Generator().manual_seed(2)
    shapes = (3, 12, 2, 4, 5), (2, 5, 4, 5), (2, 4, 5)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def lstm(case: Case, x: Tensor, *parameters: Tensor, **options: Any) -> Tensor:
    """A number per stream."""
    found = asr_kernels.recurrence(asr_kernels.Cell(), x, *parameters, lengths=case.logit_lengths, **options)
    return found.y.float().sum((1, 2, 3)) if x.dtype != torch.float64 else found.y.sum((1, 2, 3))


def newton(case: Case, x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    """The first head of the above with diagonal weights; there is one backend."""
    found = asr_kernels.newton_rnn(
        asr_kernels.Cell(), x[:, :, 0], weight[0, 0], bias[0], lengths=case.logit_lengths
    )
    return found.y.double().sum((1, 2)).to(x.dtype if x.dtype == torch.float64 else torch.float32)


OPS: dict[str, tuple[Callable[[Case], list[Tensor]], Callable[..., Tensor]]] = {
    "rnnt": (lambda case: [case.logits], lambda case, x, **k: asr_kernels.rnnt_loss(x, *case[1:], **k)),
    "ctc": (
        lambda case: [case.logits[:, :, 0]],
        lambda case, x, **k: asr_kernels.ctc_loss(x, *case[1:], **k),
    ),
    "fused": (joiner, lambda case, *x, **k: asr_kernels.fused_rnnt_loss(*x, *case[1:], **k)),
    "lstm": (cell_of, lstm),
    "newton": (cell_of, newton),
    "simple": (
        lambda case: list(am_and_lm(case)),
        lambda case, *x, **k: asr_kernels.simple_rnnt_loss(*x, *case[1:], am_scale=0.1, **k).loss,
    ),
    "pruned": (
        lambda case: [case.logits[:, :, :S]],
        lambda case, x, **k: asr_kernels.pruned_rnnt_loss(x, case.targets, ranges(case), *case[2:], **k),
    ),
    "fused pruned": (
        joiner,
        lambda case, *x, **k: asr_kernels.fused_pruned_rnnt_loss(
            *x, case.targets, ranges(case), *case[2:], **k
        ),
    ),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_autocast_changes_nothing(name: str, dtype: torch.dtype, backend: str) -> None:
    inputs, op = OPS[name]

    def under_autocast(*x: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return op(BATCH, *x, backend=backend)

    rounded = [x.to(dtype) for x in inputs(BATCH)]
    without = run(lambda *x: op(BATCH, *x, backend=backend), rounded, dtype)
    agree(run(under_autocast, rounded, dtype), without, 1e-6)
    if backend == "cpu":
        with torch.autocast("cpu", torch.bfloat16):  # the backward too, which PyTorch advises against
            agree(run(under_autocast, rounded, dtype), without, 1e-6)
