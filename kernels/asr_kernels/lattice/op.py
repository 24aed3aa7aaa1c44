"""The lattice as a function of the scores of its symbols: losses with their gradient, and best paths.

Half of every loss in this package: a reader (rnnt/, fused/, pruned/, ctc/) turns what the network computed
into the scores of the symbols at each node, and this half does the rest, V times smaller than the logits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from asr_kernels.autograd import NoSecondDerivative
from asr_kernels.dispatch import Backend
from asr_kernels.lattice import cpu, reference
from asr_kernels.lattice.arcs import (
    Alignment,
    Lattice,
    occupation_to_alignment,
    occupation_to_gradient,
    scores_to_arcs,
)


def lattice_loss(scores: Tensor, lattice: Lattice, backend: Backend) -> Tensor:
    """Losses (B,) from the scores (B, T, U+1, K) of the symbols, in their dtype.

    Scores are log-probabilities, but for the durations of TDT, which are raw logits. Minus the log of the
    sum over all paths, or of the best one for the criterion "max"; inf, with zero gradient, without a path.
    Scores outside the lengths have no influence unless they are NaN. Raises RuntimeError on double backward,
    except for the reference.
    """
    scores = _with_durations(scores, lattice)
    if backend == "reference":
        return reference.lattice_loss(scores, lattice)
    return cast(Tensor, _LatticeLoss.apply(scores, lattice, backend, torch.is_grad_enabled()))


def best_alignment(scores: Tensor, lattice: Lattice, backend: Backend) -> Alignment:
    """The best path, from scores (B, T, U+1, K) as in `lattice_loss`."""
    scores = _with_durations(scores.detach(), lattice)
    totals, occupation = best_path(scores_to_arcs(scores, lattice), lattice, backend)
    return occupation_to_alignment(occupation, totals, lattice)


def forward_backward(arcs: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    """Log of the sum over all paths (B,), and the posteriors (B, T, S, M) of the moves, from their scores."""
    return _solve("forward_backward", arcs, lattice, backend)


def best_path(arcs: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    """Score (B,) of the best path, and where it goes: (B, T, S, M) of zeros and ones."""
    return _solve("best_path", arcs, lattice, backend)


def log_total(arcs: Tensor, lattice: Lattice, backend: Backend) -> Tensor:
    """Log of the sum over all paths (B,)."""
    options = lattice.moves, lattice.frames, lattice.states, lattice.finals
    if backend == "triton":
        from asr_kernels.lattice import gpu  # triton is imported where it is used

        return gpu.log_total(arcs, *options)
    return torch.from_numpy(cpu.log_total(arcs.double().cpu().numpy(), *options)).to(arcs)


def _solve(what: str, arcs: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    options = lattice.moves, lattice.frames, lattice.states, lattice.finals
    if backend == "triton":
        from asr_kernels.lattice import gpu

        return cast(tuple[Tensor, Tensor], getattr(gpu, what)(arcs, *options))
    totals, occupation = getattr(cpu, what)(arcs.double().cpu().numpy(), *options)
    return torch.from_numpy(totals).to(arcs), torch.from_numpy(occupation).to(arcs)


def _with_durations(scores: Tensor, lattice: Lattice) -> Tensor:
    """The scores, with the raw logits of durations, if any, turned into log-probabilities."""
    n = lattice.rules.topology.durations
    if n == 0:
        return scores
    return torch.cat((scores[..., :-n], scores[..., -n:].log_softmax(dim=-1)), dim=-1)


class _LatticeLoss(torch.autograd.Function):
    """Losses (B,); their gradient is minus the occupation, known at once from forward-backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, lattice: Lattice, backend: Backend, grad_enabled: bool) -> Tensor:
        arcs = scores_to_arcs(scores, lattice)
        best = lattice.rules.criterion == "max"
        if not (grad_enabled and ctx.needs_input_grad[0]):
            return -(best_path(arcs, lattice, backend)[0] if best else log_total(arcs, lattice, backend))
        totals, occupation = (best_path if best else forward_backward)(arcs, lattice, backend)
        ctx.save_for_backward(scores, occupation_to_gradient(occupation, scores, lattice))
        return -totals

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        scores, gradient = ctx.saved_tensors
        with torch.no_grad():
            weights = grad_losses.to(gradient.dtype)[:, None, None, None]
            # An utterance that does not count gives no gradient, not even where it is NaN.
            gradient = torch.where(weights == 0, 0.0, gradient * weights)
        if torch.is_grad_enabled():
            gradient = NoSecondDerivative.apply(gradient, scores, grad_losses)
        return gradient, None, None, None
