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
    Moves,
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
    solve = torch.is_grad_enabled() and scores.requires_grad
    return cast(Tensor, _LatticeLoss.apply(scores, lattice, backend, solve)[0])


def lattice_loss_and_occupation(scores: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    """`lattice_loss`, and the occupation (B, T, U+1, K) of the symbols: how probable their arcs are.

    The occupation is what FastEmit makes of it, and has no gradient.
    """
    if backend == "reference":
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(lattice_loss(leaf, lattice, backend).sum(), leaf)
        return lattice_loss(scores, lattice, backend), -gradient
    losses, gradient = _LatticeLoss.apply(_with_durations(scores, lattice), lattice, backend, True)
    return losses, -gradient


def best_alignment(scores: Tensor, lattice: Lattice, backend: Backend) -> Alignment:
    """The best path, from scores (B, T, U+1, K) as in `lattice_loss`."""
    scores = _with_durations(scores.detach(), lattice)
    totals, occupation = _best_path(scores_to_arcs(scores, lattice), lattice, backend)
    return occupation_to_alignment(occupation, totals, lattice)


def best_moves(
    arcs: Tensor, moves: Moves, frames: list[int], states: list[int], finals: int, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Score (B,) of the best path of any lattice of arcs (B, T, S, M), and where it goes, zeros and ones."""
    return _solve("best_path", arcs, (moves, frames, states, finals), backend)


def _log_total(arcs: Tensor, lattice: Lattice, backend: Backend) -> Tensor:
    """Log of the sum over all paths (B,)."""
    if backend == "triton":
        from asr_kernels.lattice import gpu  # triton is imported where it is used

        return gpu.log_total(arcs, *_shape(lattice))
    return torch.from_numpy(cpu.log_total(arcs.double().cpu().numpy(), *_shape(lattice))).to(arcs)


def _forward_backward(arcs: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    """Log of the sum over all paths (B,), and the posteriors (B, T, S, M) of the moves."""
    return _solve("forward_backward", arcs, _shape(lattice), backend)


def _best_path(arcs: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    return _solve("best_path", arcs, _shape(lattice), backend)


def _shape(lattice: Lattice) -> tuple[Moves, list[int], list[int], int]:
    return lattice.moves, lattice.frames, lattice.states, lattice.finals


def _solve(
    what: str, arcs: Tensor, shape: tuple[Moves, list[int], list[int], int], backend: Backend
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        from asr_kernels.lattice import gpu

        totals, occupation = getattr(gpu, what)(arcs, *shape)
        return totals, occupation
    totals, occupation = getattr(cpu, what)(arcs.double().cpu().numpy(), *shape)
    return torch.from_numpy(totals).to(arcs), torch.from_numpy(occupation).to(arcs)


def _with_durations(scores: Tensor, lattice: Lattice) -> Tensor:
    """The scores, with the raw logits of durations, if any, turned into log-probabilities."""
    n = lattice.rules.topology.durations
    if n == 0:
        return scores
    return torch.cat((scores[..., :-n], scores[..., -n:].log_softmax(dim=-1)), dim=-1)


class _LatticeLoss(torch.autograd.Function):
    """Losses (B,) and their gradient at the scores, which is minus the occupation of the symbols."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, lattice: Lattice, backend: Backend, solve: bool
    ) -> tuple[Tensor, Tensor | None]:
        arcs = scores_to_arcs(scores, lattice)
        best = lattice.rules.criterion == "max"
        if not solve:
            totals = _best_path(arcs, lattice, backend)[0] if best else _log_total(arcs, lattice, backend)
            return -totals, None
        totals, occupation = (_best_path if best else _forward_backward)(arcs, lattice, backend)
        gradient = occupation_to_gradient(occupation, scores, lattice)
        ctx.save_for_backward(scores, gradient)
        ctx.mark_non_differentiable(gradient)
        return -totals, gradient

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scores, gradient = ctx.saved_tensors
        with torch.no_grad():
            weights = grad_losses.to(gradient.dtype)[:, None, None, None]
            # An utterance that does not count gives no gradient, not even where it is NaN.
            gradient = torch.where(weights == 0, 0.0, gradient * weights)
        if torch.is_grad_enabled():
            gradient = NoSecondDerivative.apply(gradient, scores, grad_losses)
        return gradient, None, None, None
