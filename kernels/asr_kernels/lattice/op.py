"""The lattice as a function of the scores of its symbols: losses with their gradient, and best paths.

Half of every loss in this package: a reader (rnnt/, fused/, pruned/, ctc/) turns what the network computed
into the scores of the symbols at each node, and this half does the rest, V times smaller than the logits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from asr_kernels.autograd import NoSecondDerivative, weigh
from asr_kernels.dispatch import Backend
from asr_kernels.lattice import cpu, reference
from asr_kernels.lattice.arcs import (
    Alignment,
    Graph,
    Lattice,
    add_occupation,
    adjusted,
    arcs_of,
    occupation_to_alignment,
)
from asr_kernels.lattice.scaling import Floats


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
    totals, occupation = best_moves(_arcs(scores, lattice), lattice.graph, backend)
    return occupation_to_alignment(occupation, totals, lattice)


def best_moves(arcs: Tensor, graph: Graph, backend: Backend) -> tuple[Tensor, Tensor]:
    """Score (B,) of the best path of any lattice of arcs (M, B, T, S), and where it goes, zeros and ones."""
    if backend == "triton":
        from asr_kernels.lattice import gpu  # triton is imported where it is used

        totals, occupation = gpu.best_path(arcs, graph)
        return totals, occupation
    found = cpu.best_path(_to_numpy(arcs), graph)
    return torch.from_numpy(found.log_total).to(arcs), torch.from_numpy(found.occupation).to(arcs)


def _log_totals(scores: Tensor, lattice: Lattice, backend: Backend) -> Tensor:
    """Log of the sum over all paths, or the score of the best one (B,)."""
    arcs, graph = _arcs(scores, lattice), lattice.graph
    if lattice.rules.criterion == "max":
        return best_moves(arcs, graph, backend)[0]
    if backend == "triton":
        from asr_kernels.lattice import gpu

        return gpu.log_total(arcs, graph)
    return torch.from_numpy(cpu.log_total(_to_numpy(arcs), graph)).to(scores)


def _solve(scores: Tensor, lattice: Lattice, backend: Backend) -> tuple[Tensor, Tensor]:
    """`_log_totals`, and the gradient (B, T, U+1, K) of minus their sum."""
    if backend == "cpu" and lattice.rules.criterion == "sum":
        found = cpu.forward_backward(_to_numpy(scores), lattice)
        return torch.from_numpy(found.log_total).to(scores), torch.from_numpy(found.gradient).to(scores)
    arcs = _arcs(scores, lattice)
    if lattice.rules.criterion == "max":
        totals, occupation = best_moves(arcs, lattice.graph, backend)
    else:
        from asr_kernels.lattice import gpu

        totals, occupation = gpu.forward_backward(arcs, lattice.graph)
    gradient = torch.zeros_like(scores)
    add_occupation(occupation, gradient, lattice)
    return totals, gradient


def _arcs(scores: Tensor, lattice: Lattice) -> Tensor:
    """(M, B, T, S)"""
    arcs: Tensor = arcs_of(adjusted(scores, lattice), lattice)
    return arcs


def _to_numpy(x: Tensor) -> Floats:
    found: Floats = x.detach().double().cpu().numpy()
    return found


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
        if not solve:
            return -_log_totals(scores, lattice, backend), None
        totals, gradient = _solve(scores, lattice, backend)
        ctx.save_for_backward(scores, gradient)
        ctx.mark_non_differentiable(gradient)
        return -totals, gradient

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scores, gradient = ctx.saved_tensors
        gradient = weigh(gradient, grad_losses)
        if torch.is_grad_enabled():
            gradient = NoSecondDerivative.apply(gradient, scores, grad_losses)
        return gradient, None, None, None
