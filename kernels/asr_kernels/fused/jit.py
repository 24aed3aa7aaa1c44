"""The Triton kernels that gpu.py launches and explains.

Nodes are numbers in (B, T, W), rows of the encoder numbers in (B, T), rows of the predictor in (B, U+1); all
addresses are 64-bit, numbers are stored in 32 where they fit. Names are those of the equations in cpu.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["count", "T", "W", "width", "start", "segment"]


@triton.jit
def _activation(x, TANH: tl.constexpr):
    """tanh or relu, in float32; tanh to the last digits for small x too, where 1 - e cancels."""
    if TANH:
        e = tl.exp(-2.0 * tl.abs(x))
        large = (1.0 - e) / (1.0 + e)
        square = x * x
        small = x * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315))))
        return tl.where(tl.abs(x) < 0.25, small, tl.where(x < 0.0, -large, large))
    return tl.where(x <= 0.0, 0.0, x)  # keeps NaN


@triton.jit(do_not_specialize=_VARYING)
def read_kernel(
    encoder, predictor, weight, bias, symbols, first, nodes, scratch, scores, log_norm,
    count, T, W, width, D, V, vocab,
    K: tl.constexpr, PER_FRAME: tl.constexpr, TANH: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Grid (programs,): scores and log_norm of the nodes; scratch is (programs, ROWS, D rounded up)."""
    program = tl.program_id(0)
    r = tl.arange(0, ROWS)
    room = tl.cdiv(D, INNER) * INNER
    scratch += program.to(tl.int64) * ROWS * room
    dtype = weight.dtype.element_ty
    for tile in range(program, tl.cdiv(count, ROWS), tl.num_programs(0)):
        place = tile * ROWS + r
        real = place < count
        node = tl.load(nodes + place, mask=real, other=0).to(tl.int64)
        frame, w = node // W, node % W
        u = w
        if first is not None:
            u += tl.load(first + frame, mask=real, other=0)
        row, other = frame * D, (frame // T * width + u) * D
        for d0 in range(0, D, INNER):
            d = d0 + tl.arange(0, INNER)
            inside = real[:, None] & (d < D)[None, :]
            x = tl.load(encoder + row[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
            x += tl.load(predictor + other[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
            tl.store(scratch + r[:, None] * room + d[None, :], _activation(x, TANH).to(dtype))
        tl.debug_barrier()
        set_of_symbols = (node if PER_FRAME else frame // T * W + w) * K
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        shift = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        columns = weight
        for v0 in range(0, V, COLUMNS):
            c = tl.arange(0, COLUMNS)
            x = tl.zeros((ROWS, COLUMNS), tl.float32)
            for d0 in range(0, D, INNER):
                d = d0 + tl.arange(0, INNER)
                hidden = tl.load(scratch + r[:, None] * room + d[None, :])
                inside = (d < D)[:, None] & (v0 + c < V)[None, :]
                block = tl.load(columns + c[None, :] * D + d[:, None], mask=inside, other=0.0)
                x = tl.dot(hidden, block, x, input_precision=PRECISION)
            if bias is not None:
                x += tl.load(bias + v0 + c, mask=v0 + c < V, other=0.0).to(tl.float32)[None, :]
            for k in tl.static_range(K):
                symbol = tl.load(symbols + set_of_symbols + k, mask=real, other=-1).to(tl.int32) - v0
                raw = tl.sum(tl.where(c[None, :] == symbol[:, None], x, 0.0), axis=1)
                here = real & (symbol >= 0) & (symbol < COLUMNS)
                tl.store(scores + node * K + k, raw, mask=here)
            x = tl.where((v0 + c < vocab)[None, :], x, float("-inf"))
            higher = tl.maximum(largest, tl.max(x, axis=1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
            largest = higher
            columns += COLUMNS * D
        norm = shift + tl.log(total)
        tl.store(log_norm + node, norm, mask=real)
        tl.debug_barrier()  # the raw logits are written, and the scratch is free
        for k in tl.static_range(K):
            symbol = tl.load(symbols + set_of_symbols + k, mask=real, other=0)
            raw = tl.load(scores + node * K + k, mask=real, other=0.0)
            tl.store(scores + node * K + k, tl.where(symbol < vocab, raw - norm, raw), mask=real)


@triton.jit(do_not_specialize=_VARYING)
def hidden_kernel(
    encoder, predictor, rows, others, hidden, start, count, D,
    TANH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of nodes, blocks of D): the activations (count, D) of the live nodes from `start` on."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.load(rows + start + i, mask=i < count, other=0).to(tl.int64)
    other = tl.load(others + start + i, mask=i < count, other=0).to(tl.int64)
    inside = (i < count)[:, None] & (d < D)[None, :]
    x = tl.load(encoder + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    x += tl.load(predictor + other[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    out = _activation(x, TANH).to(hidden.dtype.element_ty)
    tl.store(hidden + i[:, None] * D + d[None, :], out, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def logit_gradient_kernel(
    logits, bias, symbols, nodes, scores, log_norm, grad_scores, count, T, W, V, vocab,
    K: tl.constexpr, PER_FRAME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of nodes, of columns): the gradient at the logits (count, V), in their place."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    v = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = i < count
    node = tl.load(nodes + i, mask=real, other=0).to(tl.int64)
    set_of_symbols = (node if PER_FRAME else node // W // T * W + node % W) * K
    gamma = tl.zeros((ROWS,), tl.float32)
    for k in tl.static_range(K):
        symbol = tl.load(symbols + set_of_symbols + k, mask=real, other=0).to(tl.int32)
        own = tl.load(grad_scores + node * K + k, mask=real, other=0.0)
        gamma -= tl.where(symbol < vocab, own, 0.0)
    norm = tl.load(log_norm + node, mask=real, other=0.0)
    address = logits + i[:, None] * V + v[None, :]
    inside = real[:, None] & (v < V)[None, :]
    x = tl.load(address, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + v, mask=v < V, other=0.0).to(tl.float32)[None, :]
    out = tl.where((v < vocab)[None, :], gamma[:, None] * tl.exp(x - norm[:, None]), 0.0)
    for k in tl.static_range(K):
        symbol = tl.load(symbols + set_of_symbols + k, mask=real, other=0).to(tl.int32)
        score = tl.load(scores + node * K + k, mask=real, other=0.0)
        exact = tl.where(symbol < vocab, gamma * tl.exp(tl.where(symbol < vocab, score, 0.0)), 0.0)
        out = tl.where(v[None, :] == symbol[:, None], exact[:, None], out)
    for k in tl.static_range(K):
        symbol = tl.load(symbols + set_of_symbols + k, mask=real, other=0).to(tl.int32)
        own = tl.load(grad_scores + node * K + k, mask=real, other=0.0)
        out += tl.where(v[None, :] == symbol[:, None], own[:, None], 0.0)
    tl.store(address, out.to(logits.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def sum_kernel(
    d_hidden, own, other, order, starts, rows, others, grad, segment, start, D,
    TANH: tl.constexpr, NODES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (segments, blocks of D): the row of `grad` of each segment += its d_hidden activation'."""
    number = segment + tl.program_id(0)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.load(rows + number) * D
    mine = tl.load(own + row + d, mask=d < D, other=0.0).to(tl.float32)
    total = tl.zeros((NODES, COLUMNS), tl.float32)
    end = tl.load(starts + number + 1)
    for first in range(tl.load(starts + number), end, NODES):
        i = first + tl.arange(0, NODES)
        node = tl.load(order + i, mask=i < end, other=0).to(tl.int64)
        yours = tl.load(others + node, mask=i < end, other=0).to(tl.int64)
        inside = (i < end)[:, None] & (d < D)[None, :]
        x = tl.load(other + yours[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        x = _activation(mine[None, :] + x, TANH)
        slope = 1.0 - x * x if TANH else tl.where(x > 0.0, 1.0, 0.0)
        address = d_hidden + (node - start)[:, None] * D + d[None, :]
        gradient = tl.load(address, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, gradient * slope, 0.0)
    before = tl.load(grad + row + d, mask=d < D, other=0.0)
    tl.store(grad + row + d, before + tl.sum(total, axis=0), mask=d < D)
