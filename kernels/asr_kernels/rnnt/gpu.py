"""Scores of symbols from logits, in Triton: one pass over the logits per direction, whatever their strides.

The equations are those of cpu.py, with N the log-normaliser, g_k the gradient at the score of symbol k and
gamma = -sum_k g_k over the symbols in the softmax, the occupation of the node::

    score_k = z_k - N        dloss/dz_v = gamma exp(z_v - N) + sum over k with symbol_k = v of g_k

A program takes some nodes and walks over their columns in blocks. Forward: the largest logit so far and the
sum of exp relative to it (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"); the
symbols' columns are then loaded by themselves, out of the cache. Backward: each logit is read once and its
gradient written once; nodes without occupation are not read. All arithmetic is in float32 (float64 for
float64 logits), and only the gradient is rounded to the dtype of the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_kernels.nodes import Nodes
from asr_kernels.rnnt.cpu import Reading

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["nodes", "T", "W"]

# Logits that a program of 128 threads holds at once, and columns among them.
_ELEMENTS = 1024
_COLUMNS = 1024


def read(logits: Tensor, symbols: Tensor, nodes: Nodes, vocab: int) -> Reading:
    """Scores of `symbols` (B, 1 or T, W, K) by logits (B, T, W, V); the softmax is over the first `vocab`."""
    B, T, W, _ = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = logits.new_empty((B, T, W, symbols.shape[-1]), dtype=dtype)
    log_norm = logits.new_empty((B, T, W), dtype=dtype)
    grid, blocks = _launch(log_norm.numel(), vocab)
    if log_norm.numel() > 0:
        _read_kernel[grid](
            logits, symbols.contiguous(), nodes.valid(T, logits.device), scores, log_norm,
            log_norm.numel(), T, W, vocab, *logits.stride(),
            K=symbols.shape[-1], PER_FRAME=symbols.shape[1] > 1, **blocks,
        )  # fmt: skip
    return Reading(scores, log_norm, None)


def spread(
    logits: Tensor, symbols: Tensor, reading: Reading, grad_scores: Tensor, nodes: Nodes, vocab: int
) -> Tensor:
    """Gradient (B, T, W, V) at the logits, in their dtype, from that at the scores (B, T, W, K)."""
    _, T, W, V = logits.shape
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grid, blocks = _launch(reading.log_norm.numel(), V)
    if grad.numel() > 0:
        _spread_kernel[grid](
            logits, symbols.contiguous(), nodes.valid(T, logits.device), reading.log_norm,
            grad_scores.contiguous(), grad,
            reading.log_norm.numel(), T, W, vocab, V, *logits.stride(),
            K=symbols.shape[-1], PER_FRAME=symbols.shape[1] > 1, **blocks,
        )  # fmt: skip
    return grad


def _launch(nodes: int, columns: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and block sizes for that many nodes and columns."""
    width = max(16, min(_COLUMNS, triton.next_power_of_2(columns)))
    rows = _ELEMENTS // width
    return (triton.cdiv(nodes, rows),), {"ROWS": rows, "COLUMNS": width, "num_warps": 4}


@triton.jit(do_not_specialize=_VARYING)
def _read_kernel(
    logits, symbols, valid, scores, log_norm,
    nodes, T, W, vocab, stride_b, stride_t, stride_w, stride_v,
    K: tl.constexpr, PER_FRAME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of nodes,): scores (nodes, K) and log_norm (nodes,), zero where not valid."""
    node = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = tl.load(valid + node, mask=node < nodes, other=0) != 0
    frame, w = node // W, node % W
    row = logits + frame // T * stride_b + frame % T * stride_t + w * stride_w
    dtype = log_norm.dtype.element_ty
    largest = tl.full((ROWS,), float("-inf"), dtype)
    shift = tl.zeros((ROWS,), dtype)
    total = tl.zeros((ROWS,), dtype)
    for v0 in range(0, vocab, COLUMNS):
        v = v0 + tl.arange(0, COLUMNS)
        inside = real[:, None] & (v < vocab)[None, :]
        address = row[:, None] + (v.to(tl.int64) * stride_v)[None, :]
        x = tl.load(address, mask=inside, other=float("-inf")).to(dtype)
        higher = tl.maximum(largest, tl.max(x, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
        largest = higher
    norm = tl.where(real, shift + tl.log(tl.where(real, total, 1.0)), 0.0)
    tl.store(log_norm + node, norm, mask=node < nodes)
    set_of_symbols = node if PER_FRAME else frame // T * W + w
    for k in tl.static_range(K):
        symbol = tl.load(symbols + set_of_symbols * K + k, mask=real, other=0).to(tl.int32)
        x = tl.load(row + symbol.to(tl.int64) * stride_v, mask=real, other=0.0).to(dtype)
        score = tl.where(symbol < vocab, x - norm, x)
        tl.store(scores + node * K + k, tl.where(real, score, 0.0), mask=node < nodes)


@triton.jit(do_not_specialize=_VARYING)
def _spread_kernel(
    logits, symbols, valid, log_norm, grad_scores, grad,
    nodes, T, W, vocab, V, stride_b, stride_t, stride_w, stride_v,
    K: tl.constexpr, PER_FRAME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of nodes,): grad (nodes, V), contiguous, zero where not valid."""
    node = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = tl.load(valid + node, mask=node < nodes, other=0) != 0
    frame, w = node // W, node % W
    row = logits + frame // T * stride_b + frame % T * stride_t + w * stride_w
    set_of_symbols = node if PER_FRAME else frame // T * W + w
    dtype = log_norm.dtype.element_ty
    norm = tl.load(log_norm + node, mask=real, other=0.0)
    gamma = tl.zeros((ROWS,), dtype)
    for k in tl.static_range(K):
        symbol = tl.load(symbols + set_of_symbols * K + k, mask=real, other=0).to(tl.int32)
        own = tl.load(grad_scores + node * K + k, mask=real, other=0.0).to(dtype)
        gamma -= tl.where(symbol < vocab, own, 0.0)
    occupied = gamma != 0.0
    for v0 in range(0, V, COLUMNS):
        v = v0 + tl.arange(0, COLUMNS)
        inside = occupied[:, None] & (v < vocab)[None, :]
        address = row[:, None] + (v.to(tl.int64) * stride_v)[None, :]
        x = tl.load(address, mask=inside, other=0.0).to(dtype)
        out = tl.where(inside, gamma[:, None] * tl.exp(x - norm[:, None]), 0.0)
        for k in tl.static_range(K):
            symbol = tl.load(symbols + set_of_symbols * K + k, mask=real, other=-1).to(tl.int32)
            own = tl.load(grad_scores + node * K + k, mask=real, other=0.0).to(dtype)
            out += tl.where(v[None, :] == symbol[:, None], own[:, None], 0.0)
        target = grad + node[:, None] * V + v[None, :]
        tl.store(target, out.to(grad.dtype.element_ty), mask=(node < nodes)[:, None] & (v < V)[None, :])
