"""Scores of symbols as a differentiable function of the logits, on the chosen backend."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from asr_kernels.autograd import NoSecondDerivative
from asr_kernels.dispatch import Backend
from asr_kernels.nodes import Nodes
from asr_kernels.rnnt import cpu, reference
from asr_kernels.rnnt.cpu import Reading


def symbol_scores(logits: Tensor, symbols: Tensor, nodes: Nodes, vocab: int, backend: Backend) -> Tensor:
    """Scores (B, T, W, K) of `symbols` (B, 1 or T, W, K) by logits (B, T, W, V).

    Log-probabilities by a softmax over the first `vocab` columns; raw logits of the columns behind. Zero
    outside the lattices, where logits have no influence and no gradient. Raises RuntimeError on double
    backward, except for the reference.
    """
    if backend == "reference":
        valid = nodes.valid(logits.shape[1], logits.device)[..., None]
        scores = reference.symbol_scores(torch.where(valid, logits, 0.0), symbols, vocab)
        return torch.where(valid, scores, 0.0)
    return cast(Tensor, _SymbolScores.apply(logits, symbols, nodes, vocab, backend))


class _SymbolScores(torch.autograd.Function):
    """The gradient is formed in the backward pass, from the logits and what the forward pass saved."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, symbols: Tensor, nodes: Nodes, vocab: int, backend: Backend
    ) -> Tensor:
        reading = _kernels(backend).read(logits, symbols, nodes, vocab)
        ctx.save_for_backward(logits, symbols, *reading)
        ctx.options = nodes, vocab, backend
        return cast(Tensor, reading.scores)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        logits, symbols, *saved = ctx.saved_tensors
        nodes, vocab, backend = ctx.options
        with torch.no_grad():
            grad = _kernels(backend).spread(logits, symbols, Reading(*saved), grad_scores, nodes, vocab)
        if torch.is_grad_enabled():
            grad = NoSecondDerivative.apply(grad, logits, grad_scores)
        return grad, None, None, None, None


def _kernels(backend: Backend) -> Any:
    if backend == "triton":
        from asr_kernels.rnnt import gpu  # triton is imported where it is used

        return gpu
    return cpu
