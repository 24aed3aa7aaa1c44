"""The Triton kernels of gated linear attention, which gpu.py launches.

A product of decays is exp of a sum of log-decays, and each such sum, over the frames between two, is taken as
the product of a matrix of zeros and ones with the log-decays: numbers of one sign are added up and none is
taken off again, so strong decays cost no digits, and the gradient goes back through the same matrix.
Log-decays below -200 count as -200, which leaves nothing either. All products are of float32: in three parts
of tf32, or in one where the inputs are of half precision.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["T", "chunks", "levels"]

_SMALLEST = tl.constexpr(-200.0)


@triton.jit
def _rows(x, first, T, b, h, H, column, width, C: tl.constexpr):
    """(C, columns) float32 of x (B, T, H, width) from frame `first` on; zeros outside."""
    t = first + tl.arange(0, C)[:, None]
    offset = ((b * T + t) * H + h) * width + column[None, :]
    return tl.load(x + offset, mask=(t < T) & (column < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _decays(log_decay, first, T, b, h, H, column, K, C: tl.constexpr, PER_HEAD: tl.constexpr):
    """(C, columns) log-decays; zeros, which decay nothing, outside."""
    t = first + tl.arange(0, C)[:, None]
    row = (b * T + t) * H + h
    offset = row + 0 * column[None, :] if PER_HEAD else row * K + column[None, :]
    g = tl.load(log_decay + offset, mask=(t < T) & (column < K)[None, :], other=0.0).to(tl.float32)
    return tl.where(g < _SMALLEST, _SMALLEST, g)


@triton.jit
def _since(C: tl.constexpr, BONUS: tl.constexpr):
    """(C, C): whether a query of frame t has seen the decay of frame r of its chunk."""
    t, r = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return (r < t) if BONUS else (r <= t)


@triton.jit
def _until(C: tl.constexpr):
    """(C, C): whether a key of frame s sees the decay of frame r before the chunk ends."""
    return tl.arange(0, C)[None, :] > tl.arange(0, C)[:, None]


@triton.jit
def _spans(level, C: tl.constexpr, BONUS: tl.constexpr):
    """Whether r is between frame t and the middle of its block (C, C), and whether t is behind it (C, 1)."""
    t, r = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    behind = ((t >> level) & 1) == 1
    between = tl.where(behind, _since(C, BONUS), _until(C))
    return between & ((t >> level) == (r >> level)), behind


@triton.jit
def _sums(which, g):
    """Sums of the rows of g that are marked: two parts of g in tf32 are float32 but for a bit."""
    high = (g.to(tl.int32, bitcast=True) & ~0x1FFF).to(tl.float32, bitcast=True)
    marks = which.to(tl.float32)
    return tl.dot(marks, g - high, tl.dot(marks, high, input_precision="tf32"), input_precision="tf32")


@triton.jit
def _pair_decays(g, C: tl.constexpr, BONUS: tl.constexpr):
    """(C, C): what frame t sees of frame s < t, for one decay per head, g (C, any) with equal columns."""
    r, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    one = tl.sum(tl.where(tl.arange(0, g.shape[1])[None, :] == 0, g, 0.0), axis=1)
    return tl.exp(_sums(_since(C, BONUS), tl.where(r > s, one[:, None], 0.0)))


@triton.jit(do_not_specialize=_VARYING)
def _state_kernel(
    keys, values, log_decay, states, T, chunks, H, K, V,
    BACK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PER_HEAD: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (B H, blocks of K, of V): states (chunks + 1, B H, K, V) from the first, or BACK from the last."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    row = tl.program_id(1) * BK + tl.arange(0, BK)
    column = tl.program_id(2) * BV + tl.arange(0, BV)
    inside = (row < K)[:, None] & (column < V)[None, :]
    size = tl.num_programs(0).to(tl.int64) * K * V
    at = states + bh * K * V + row[:, None] * V + column[None, :]
    state = tl.load(at + (chunks * size if BACK else 0), mask=inside, other=0.0)
    for step in range(chunks):
        i = chunks - 1 - step if BACK else step
        g = _decays(log_decay, i * C, T, b, h, H, row, K, C, PER_HEAD)
        seen = _since(C, BONUS) if BACK else _until(C)
        key = _rows(keys, i * C, T, b, h, H, row, K, C) * tl.exp(_sums(seen, g))
        value = _rows(values, i * C, T, b, h, H, column, V, C)
        state = tl.exp(tl.sum(g, axis=0))[:, None] * state
        state += tl.dot(tl.trans(key), value, input_precision=PRECISION)
        tl.store(at + (i if BACK else i + 1) * size, state, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def _score_kernel(
    q, k, log_decay, bonus, scores, T, levels, H, K,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PER_HEAD: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B H): P (chunks, B H, C, C)."""
    i, bh = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    matrix = tl.zeros((C, C), tl.float32)
    own = tl.zeros((C,), tl.float32)
    for first in range(0, K, BK):
        channel = first + tl.arange(0, BK)
        query = _rows(q, i * C, T, b, h, H, channel, K, C)
        key = _rows(k, i * C, T, b, h, H, channel, K, C)
        weight = query * key
        if BONUS:
            weight *= tl.load(bonus + h * K + channel, mask=channel < K, other=0.0)[None, :]
        own += tl.sum(weight, axis=1)
        if PER_HEAD:
            matrix += tl.dot(query, tl.trans(key), input_precision=PRECISION)
        else:
            g = _decays(log_decay, i * C, T, b, h, H, channel, K, C, PER_HEAD)
            for level in range(levels):
                between, behind = _spans(level, C, BONUS)
                decay = tl.exp(_sums(between, g))
                after = tl.where(behind, query * decay, 0.0)
                before = tl.where(behind, 0.0, key * decay)
                pairs = tl.dot(after, tl.trans(before), input_precision=PRECISION)
                matrix += tl.where((t >> (level + 1)) == (s >> (level + 1)), pairs, 0.0)
    if PER_HEAD:
        g = _decays(log_decay, i * C, T, b, h, H, tl.arange(0, 16) * 0, K, C, PER_HEAD)
        matrix *= _pair_decays(g, C, BONUS)
    matrix = tl.where(t > s, matrix, tl.where(t == s, own[:, None], 0.0))
    tl.store(scores + (i * tl.num_programs(1) + bh) * C * C + t * C + s, matrix)


@triton.jit(do_not_specialize=_VARYING)
def _output_kernel(
    queries, values, log_decay, states, scores, out, T, H, K, V,
    TURNED: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PER_HEAD: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B H, blocks of V): y from q, v and the states before; TURNED, the gradient at v.

    That one is from k, the gradient at y and the gradients at the states behind.
    """
    i, bh = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    column = tl.program_id(2) * BV + tl.arange(0, BV)
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    matrix = tl.load(scores + (i * tl.num_programs(1) + bh) * C * C + (s * C + t if TURNED else t * C + s))
    value = _rows(values, i * C, T, b, h, H, column, V, C)
    total = tl.dot(matrix, value, input_precision=PRECISION)
    states += ((i + 1 if TURNED else i) * tl.num_programs(1) + bh) * K * V
    for first in range(0, K, BK):
        channel = first + tl.arange(0, BK)
        g = _decays(log_decay, i * C, T, b, h, H, channel, K, C, PER_HEAD)
        seen = _until(C) if TURNED else _since(C, BONUS)
        query = _rows(queries, i * C, T, b, h, H, channel, K, C) * tl.exp(_sums(seen, g))
        inside = (channel < K)[:, None] & (column < V)[None, :]
        state = tl.load(states + channel[:, None] * V + column[None, :], mask=inside, other=0.0)
        total += tl.dot(query, state, input_precision=PRECISION)
    frame = i * C + t
    offset = ((b * T + frame) * H + h) * V + column[None, :]
    tl.store(out + offset, total, mask=(frame < T) & (column < V)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _score_gradient_kernel(
    v, grad_y, grad_scores, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PER_HEAD: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B H): the gradients (chunks, B H, C, C) at P."""
    i, bh = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    total = tl.zeros((C, C), tl.float32)
    for first in range(0, V, BV):
        column = first + tl.arange(0, BV)
        value = _rows(v, i * C, T, b, h, H, column, V, C)
        d_y = _rows(grad_y, i * C, T, b, h, H, column, V, C)
        total += tl.dot(d_y, tl.trans(value), input_precision=PRECISION)
    tl.store(grad_scores + (i * tl.num_programs(1) + bh) * C * C + t * C + s, total)


@triton.jit(do_not_specialize=_VARYING)
def _carried_kernel(
    q, k, v, log_decay, states, behind, grad_y, grad_q, grad_k, grad_decay, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PER_HEAD: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B H, blocks of K): what comes to q, k and the decays by the states before and behind."""
    i, bh = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    channel = tl.program_id(2) * BK + tl.arange(0, BK)
    before_at = states + (i * tl.num_programs(1) + bh) * K * V
    behind_at = behind + ((i + 1) * tl.num_programs(1) + bh) * K * V
    d_query, d_key = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    d_state = tl.zeros((BK,), tl.float32)
    for first in range(0, V, BV):
        column = first + tl.arange(0, BV)
        inside = (channel < K)[:, None] & (column < V)[None, :]
        offset = channel[:, None] * V + column[None, :]
        state = tl.load(before_at + offset, mask=inside, other=0.0)
        d_behind = tl.load(behind_at + offset, mask=inside, other=0.0)
        value = _rows(v, i * C, T, b, h, H, column, V, C)
        d_y = _rows(grad_y, i * C, T, b, h, H, column, V, C)
        d_query += tl.dot(d_y, tl.trans(state), input_precision=PRECISION)
        d_key += tl.dot(value, tl.trans(d_behind), input_precision=PRECISION)
        d_state += tl.sum(state * d_behind, axis=1)
    g = _decays(log_decay, i * C, T, b, h, H, channel, K, C, PER_HEAD)
    d_query *= tl.exp(_sums(_since(C, BONUS), g))
    d_key *= tl.exp(_sums(_until(C), g))
    d_g = _sums(tl.trans(_since(C, BONUS)), d_query * _rows(q, i * C, T, b, h, H, channel, K, C))
    d_g += _sums(tl.trans(_until(C)), d_key * _rows(k, i * C, T, b, h, H, channel, K, C))
    d_g += (d_state * tl.exp(tl.sum(g, axis=0)))[None, :]
    t = i * C + tl.arange(0, C)[:, None]
    inside = (t < T) & (channel < K)[None, :]
    offset = ((b * T + t) * H + h) * K + channel[None, :]
    tl.store(grad_q + offset, d_query, mask=inside)
    tl.store(grad_k + offset, d_key, mask=inside)
    tl.store(grad_decay + offset, d_g, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def _gradient_kernel(
    q, k, log_decay, bonus, scores, grad_scores, grad_q, grad_k, grad_decay, grad_bonus, T, levels, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PER_HEAD: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B H, blocks of K): adds what comes by the scores; the gradient at the bonus, by chunk."""
    i, bh = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    channel = tl.program_id(2) * BK + tl.arange(0, BK)
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    pair = (i * tl.num_programs(1) + bh) * C * C + t * C + s
    d_matrix = tl.load(grad_scores + pair)
    query = _rows(q, i * C, T, b, h, H, channel, K, C)
    key = _rows(k, i * C, T, b, h, H, channel, K, C)
    g = _decays(log_decay, i * C, T, b, h, H, channel, K, C, PER_HEAD)
    d_query = _rows(grad_q, i * C, T, b, h, H, channel, K, C)
    d_key = _rows(grad_k, i * C, T, b, h, H, channel, K, C)
    d_g = _rows(grad_decay, i * C, T, b, h, H, channel, K, C)
    own = tl.sum(tl.where(t == s, d_matrix, 0.0), axis=1)[:, None]
    if BONUS:
        u = tl.load(bonus + h * K + channel, mask=channel < K, other=0.0)[None, :]
        d_query += own * u * key
        d_key += own * u * query
        at = grad_bonus + (i * tl.num_programs(1) + bh) * K + channel
        tl.store(at, tl.sum(own * query * key, axis=0), mask=channel < K)
    else:
        d_query += own * key
        d_key += own * query
    if PER_HEAD:
        products = tl.where(t > s, d_matrix * _pair_decays(g, C, BONUS), 0.0)
        d_query += tl.dot(products, key, input_precision=PRECISION)
        d_key += tl.dot(tl.trans(products), query, input_precision=PRECISION)
        # P is the same for all channels: the first one has this part.
        spanned = _sums(tl.trans(_since(C, BONUS)), tl.where(t > s, d_matrix * tl.load(scores + pair), 0.0))
        once = tl.sum(tl.where(t > s, spanned, 0.0), axis=1)[:, None]
        d_g += tl.where(channel[None, :] == 0, once, 0.0)
    else:
        for level in range(levels):
            between, later = _spans(level, C, BONUS)
            decay = tl.exp(_sums(between, g))
            after = tl.where(later, query * decay, 0.0)
            before = tl.where(later, 0.0, key * decay)
            across = ((t >> (level + 1)) == (s >> (level + 1))) & later & (((s >> level) & 1) == 0)
            pairs = tl.where(across, d_matrix, 0.0)
            d_after = tl.dot(pairs, before, input_precision=PRECISION)
            d_before = tl.dot(tl.trans(pairs), after, input_precision=PRECISION)
            d_query += d_after * decay
            d_key += d_before * decay
            d_g += _sums(tl.trans(between), d_after * after + d_before * before)
    frame = i * C + t
    inside = (frame < T) & (channel < K)[None, :]
    offset = ((b * T + frame) * H + h) * K + channel[None, :]
    tl.store(grad_q + offset, d_query, mask=inside)
    tl.store(grad_k + offset, d_key, mask=inside)
    tl.store(grad_decay + offset, d_g, mask=inside)
