"""Scores of symbols as a differentiable function of the joiner's inputs, without the logits in between."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from asr_kernels.autograd import NoSecondDerivative
from asr_kernels.dispatch import Backend
from asr_kernels.fused import cpu, reference
from asr_kernels.nodes import Nodes
from asr_kernels.rnnt.reference import symbol_scores

Activation = Literal["tanh", "relu"]


def joiner_scores(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    nodes: Nodes,
    vocab: int,
    activation: Activation,
    skip_below: float,
    backend: Backend,
) -> Tensor:
    """Scores (B, T, W, K) of `symbols` (B, 1 or T, W, K) by activation(encoder + predictor) W^T + bias.

    Log-probabilities by a softmax over the first `vocab` columns; raw logits of the columns behind. Zero
    outside the lattices, where the inputs have no influence and no gradient. The backward pass visits nodes
    whose gradient exceeds `skip_below` of the largest of their utterance; the reference visits all. Raises
    RuntimeError on double backward, except for the reference.
    """
    inputs = encoder, predictor, weight, bias
    if backend == "reference":
        return _reference_scores(*inputs, symbols, nodes, vocab, activation)
    options = nodes.frames, nodes.labels, nodes.first, vocab, activation, skip_below, backend
    return cast(Tensor, FusedScores.apply(*inputs, symbols, *options, torch.is_grad_enabled()))


class FusedScores(torch.autograd.Function):
    """Scores (B, T, W, K) of symbols (B, 1 or T, W, K); what cpu.py or gpu.py read and spread.

    Keeps its inputs and a few numbers per node for the backward pass, which visits the nodes whose gradient
    exceeds `skip_below` of the largest of their utterance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        encoder: Tensor,
        predictor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        symbols: Tensor,
        frames: list[int],
        labels: list[int],
        first: Tensor | None,
        vocab: int,
        activation: str,
        skip_below: float,
        backend: str,
        grad_enabled: bool,
    ) -> Tensor:
        """See the readers; `grad_enabled` is torch.is_grad_enabled() of the caller."""
        inputs = encoder, predictor, weight, bias, symbols
        shape = frames, labels, first, vocab, activation
        reading = _kernels(backend).read(*inputs, *shape)
        if grad_enabled and any(ctx.needs_input_grad):
            ctx.save_for_backward(*inputs, first, *reading)
            ctx.options = frames, labels, vocab, activation, skip_below, backend
        scores: Tensor = reading.scores
        return scores

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the floating inputs that need one."""
        encoder, predictor, weight, bias, symbols, first, *reading = ctx.saved_tensors
        frames, labels, vocab, activation, skip_below, backend = ctx.options
        kernels = _kernels(backend)
        inputs = encoder, predictor, weight, bias
        with torch.no_grad():
            grads = kernels.spread(
                *inputs,
                symbols,
                kernels.Reading(*reading),
                grad_scores,
                frames,
                labels,
                first,
                vocab,
                activation,
                skip_below=skip_below,
                needs=ctx.needs_input_grad[:4],
            )
        if torch.is_grad_enabled():
            sources = [x for x in (*inputs, grad_scores) if x is not None]
            grads = [None if grad is None else NoSecondDerivative.apply(grad, *sources) for grad in grads]
        return *grads, *(None,) * 9


def _reference_scores(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    nodes: Nodes,
    vocab: int,
    activation: Activation,
) -> Tensor:
    """The definition, kept from what stands beyond the lengths; half precision is computed in float32."""
    dtype = torch.float64 if encoder.dtype == torch.float64 else torch.float32
    encoder, predictor, weight = (x.to(dtype) for x in (encoder, predictor, weight))
    U_b = torch.tensor(nodes.labels, device=encoder.device)[:, None]
    T_b = torch.tensor(nodes.frames, device=encoder.device)[:, None]
    t, u = (torch.arange(x.shape[1], device=x.device) for x in (encoder, predictor))
    encoder = torch.where((t < T_b)[..., None], encoder, 0.0)
    predictor = torch.where((u <= U_b)[..., None], predictor, 0.0)
    if nodes.first is not None:
        predictor = reference.band(predictor, nodes.first, nodes.width)
    bias = None if bias is None else bias.to(dtype)
    scores = symbol_scores(
        reference.joiner_logits(encoder, predictor, weight, bias, activation), symbols, vocab
    )
    return torch.where(nodes.valid(encoder.shape[1], encoder.device)[..., None], scores, 0.0)


def _kernels(backend: str) -> Any:
    if backend == "triton":
        from asr_kernels.fused import gpu  # triton is imported where it is used

        return gpu
    return cpu
