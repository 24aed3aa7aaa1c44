"""The exact transducer loss of a joiner in tiles of time: the peer of `fused_rnnt_loss` on GPUs.

What NVIDIA's open "Flash RNN-T" pull request does (NeMo, 2026), written anew: for some frames of the whole
batch at a time, add and activate, one library product for the logits, and of these keep the log-probabilities
of blank and label. The backward pass computes each tile anew and takes it through the same products, whatever
its occupation. The logits are read and their gradient is written by this package's own dense reader; the
lattice is ours too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from asr_kernels.dispatch import Backend
from asr_kernels.lattice.arcs import Lattice
from asr_kernels.lattice.op import lattice_loss
from asr_kernels.lattice.topology import RNNT
from asr_kernels.nodes import Nodes
from asr_kernels.rnnt.cpu import Reading

ELEMENTS = 1 << 25
"""Logits of a tile: 64 MB of bfloat16."""


def tiled_rnnt_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    *,
    elements: int = ELEMENTS,
    backend: Backend = "triton",
) -> Tensor:
    """Sum over the batch, as `fused_rnnt_loss(...).sum()`; blank is 0, the activation tanh."""
    lattice = Lattice(targets.cpu().long(), logit_lengths.tolist(), target_lengths.tolist())
    symbols = RNNT.symbols(lattice.targets, 0, len(weight)).to(encoder.device)[:, None]
    tile = max(1, elements // (len(encoder) * predictor.shape[1] * len(weight)))
    scores = _TiledScores.apply(encoder, predictor, weight, bias, symbols, lattice, tile, backend)
    return lattice_loss(scores, lattice, backend).sum()


class _TiledScores(torch.autograd.Function):
    """Scores (B, T, U+1, 2) of blank and label, `tile` frames at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder: Tensor,
        predictor: Tensor,
        weight: Tensor,
        bias: Tensor,
        symbols: Tensor,
        lattice: Lattice,
        tile: int,
        backend: Backend,
    ) -> Tensor:
        read = _reader(backend).read
        parts = []
        for frames in _tiles(encoder, tile):
            logits = _logits(_hidden(encoder[:, frames], predictor, backend), weight, bias)
            parts.append(read(logits, symbols, _nodes(lattice, frames, logits), len(weight)))
        ctx.save_for_backward(encoder, predictor, weight, bias, symbols)
        ctx.options = parts, lattice, tile, backend
        return torch.cat([part.scores for part in parts], dim=1)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        encoder, predictor, weight, bias, symbols = ctx.saved_tensors
        parts, lattice, tile, backend = ctx.options
        spread = _reader(backend).spread
        d_encoder = torch.empty_like(encoder)
        d_predictor, d_weight, d_bias = (
            torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
            for x in (predictor, weight, bias)
        )
        for frames, part in zip(_tiles(encoder, tile), parts, strict=True):
            hidden = _hidden(encoder[:, frames], predictor, backend)
            logits = _logits(hidden, weight, bias)
            grad = spread(
                logits,
                symbols,
                Reading(*part),
                grad_scores[:, frames],
                _nodes(lattice, frames, logits),
                len(weight),
            ).flatten(0, 2)
            del logits
            d_weight += grad.t() @ hidden.flatten(0, 2)
            d_bias += grad.sum(0, dtype=d_bias.dtype)
            d_sum = (grad @ weight).view_as(hidden)
            d_sum.addcmul_(d_sum, hidden.square_(), value=-1.0)
            d_encoder[:, frames] = d_sum.sum(2, dtype=d_bias.dtype).to(encoder.dtype)
            d_predictor += d_sum.sum(1, dtype=d_bias.dtype)
        grads = d_encoder, d_predictor, d_weight, d_bias
        return *(x.to(y.dtype) for x, y in zip(grads, ctx.saved_tensors, strict=False)), *(None,) * 4


def _tiles(encoder: Tensor, tile: int) -> list[slice]:
    T = encoder.shape[1]
    return [slice(start, min(start + tile, T)) for start in range(0, T, tile)]


def _nodes(lattice: Lattice, frames: slice, logits: Tensor) -> Nodes:
    within = [min(max(T - frames.start, 0), frames.stop - frames.start) for T in lattice.frames]
    return Nodes(within, lattice.labels, logits.shape[2])


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def _hidden(encoder: Tensor, predictor: Tensor, backend: Backend) -> Tensor:
    """tanh(encoder + predictor) (B, t, U+1, D), in one pass over it on a GPU."""
    if backend != "triton":
        return (encoder[:, :, None] + predictor[:, None]).tanh_()
    from asr_kernels.fused import jit

    (B, t, D), width = encoder.shape, predictor.shape[1]
    row = torch.arange(B * t, device=encoder.device)[:, None].expand(-1, width)
    other = row // t * width + torch.arange(width, device=encoder.device)
    rows = row.reshape(-1), other.reshape(-1)
    out = encoder.new_empty(B, t, width, D)
    count = B * t * width
    jit.hidden_kernel[(-(-count // 16), -(-D // 128))](
        encoder.contiguous(), predictor.contiguous(), *rows, out, 0, count, D,
        TANH=True, ROWS=16, COLUMNS=128, num_warps=4,
    )  # fmt: skip
    return out


def _reader(backend: Backend) -> ModuleType:
    if backend == "triton":
        from asr_kernels.rnnt import gpu

        return gpu
    from asr_kernels.rnnt import cpu

    return cpu
