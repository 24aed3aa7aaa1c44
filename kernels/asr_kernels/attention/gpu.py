"""Gated linear attention by chunks in Triton; the forms are those of cpu.py and chunkwise.py.

Forward: a program per stream, head and block of the state walks over the chunks and leaves the states between
them; then all chunks at once have their scores P (C, C), and then their outputs, q_start S + P v. Backward:
the first kernel walks back with the gradient at the state, the output kernel, turned around, gives the
gradient at v, and the gradients at q, k and the decays come by the states and then by the scores.

A product of decays is exp of a sum of log-decays, and each such sum, over the frames between two, is taken as
the product of a matrix of zeros and ones with the log-decays: numbers of one sign are added up and none is
taken off again, so strong decays cost no digits, and the gradient goes back through the same matrix.
Log-decays below -200 count as -200, which leaves nothing either. All products are of float32: in three parts
of tf32, or in one where the inputs are of half precision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_kernels.attention.cpu import Gradients
from asr_kernels.attention.reference import Attended

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["T", "chunks", "levels"]

# Frames of a chunk and channels of a block, at most; powers of two, at least 16.
_FRAMES, _CHANNELS = 32, 32
_SMALLEST = tl.constexpr(-200.0)


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, bonus: Tensor | None
) -> tuple[Attended, Tensor]:
    """The result, and the states (chunks, B H, K, V) before every chunk, which `backward` needs."""
    launch = _Launch(q, v, log_decay, bonus)
    q, k, v, log_decay = (x.contiguous() for x in (q, k, v, log_decay))
    states = launch.states()
    states[0] = state.flatten(0, 1)
    launch.pass_on(k, v, log_decay, states, back=False)
    y = torch.empty_like(v)
    launch.read(q, v, log_decay, states, launch.scores(q, k, log_decay, bonus), y, turned=False)
    return Attended(y, states[-1].view(state.shape).clone()), states


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    states: Tensor,
    grad_y: Tensor,
    grad_state: Tensor,
) -> Gradients:
    """Gradients from those at y and at the last state."""
    launch = _Launch(q, v, log_decay, bonus)
    q, k, v, log_decay, grad_y = (x.contiguous() for x in (q, k, v, log_decay, grad_y))
    behind = launch.states()
    behind[-1] = grad_state.flatten(0, 1)
    launch.pass_on(q, grad_y, log_decay, behind, back=True)
    scores = launch.scores(q, k, log_decay, bonus)
    grad_v = torch.empty_like(v)
    launch.read(k, grad_y, log_decay, behind, scores, grad_v, turned=True)
    grad_q, grad_k, grad_decay, grad_bonus = launch.gradients(
        q, k, v, log_decay, bonus, states, behind, scores, grad_y
    )
    return Gradients(grad_q, grad_k, grad_v, grad_decay, behind[0].view(grad_state.shape), grad_bonus)


class _Launch:
    """The kernels on the grids for these sizes."""

    def __init__(self, q: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor | None) -> None:
        (self.B, self.T, self.H, self.K), self.V = q.shape, v.shape[-1]
        self.C = min(_FRAMES, max(16, triton.next_power_of_2(self.T)))
        # How often a chunk can be halved: a number to the kernels, lest the compiler unroll the loop.
        self.chunks, self.levels = triton.cdiv(self.T, self.C), self.C.bit_length() - 1
        self.BK, self.BV = (min(_CHANNELS, max(16, triton.next_power_of_2(n))) for n in (self.K, self.V))
        self._device = q.device
        half = all(x.dtype in (torch.float16, torch.bfloat16) for x in (q, v))
        self._options = {
            "C": self.C,
            "BK": self.BK,
            "BV": self.BV,
            "PER_HEAD": log_decay.ndim == 3,
            "BONUS": bonus is not None,
            "PRECISION": "tf32" if half else "tf32x3",
        }

    def states(self) -> Tensor:
        """Room for the states before every chunk and after the last."""
        return self._empty(self.chunks + 1, self.B * self.H, self.K, self.V)

    def pass_on(self, keys: Tensor, values: Tensor, log_decay: Tensor, states: Tensor, *, back: bool) -> None:
        """Fill the states from the first, or back from the last."""
        if self.T:
            grid = (self.B * self.H, triton.cdiv(self.K, self.BK), triton.cdiv(self.V, self.BV))
            _state_kernel[grid](
                keys, values, log_decay, states, self.T, self.chunks, self.H, self.K, self.V,
                BACK=back, num_warps=4, **self._options,
            )  # fmt: skip

    def scores(self, q: Tensor, k: Tensor, log_decay: Tensor, bonus: Tensor | None) -> Tensor:
        """P (chunks, B H, C, C)."""
        scores = self._empty(self.chunks, self.B * self.H, self.C, self.C)
        if self.T:
            _score_kernel[self.chunks, self.B * self.H](
                q,
                k,
                log_decay,
                bonus,
                scores,
                self.T,
                self.levels,
                self.H,
                self.K,
                num_warps=4,
                **self._options,
            )
        return scores

    def read(
        self,
        queries: Tensor,
        values: Tensor,
        log_decay: Tensor,
        states: Tensor,
        scores: Tensor,
        out: Tensor,
        *,
        turned: bool,
    ) -> None:
        """Fill `out` (B, T, H, V): what queries see of states and values or, turned, keys of gradients."""
        if self.T:
            grid = (self.chunks, self.B * self.H, triton.cdiv(self.V, self.BV))
            _output_kernel[grid](
                queries, values, log_decay, states, scores, out, self.T, self.H, self.K, self.V,
                TURNED=turned, num_warps=4, **self._options,
            )  # fmt: skip

    def gradients(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        bonus: Tensor | None,
        states: Tensor,
        behind: Tensor,
        scores: Tensor,
        grad_y: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """At q, k, log_decay and bonus."""
        # Both kernels add to these; with one decay per head all channels have a part of its gradient.
        shape = self.B, self.T, self.H, self.K
        grads = [self._empty(*shape) for _ in range(3)]
        grad_scores = torch.empty_like(scores)
        grad_bonus = None if bonus is None else self._empty(self.chunks, self.B, self.H, self.K)
        if self.T:
            grid = self.chunks, self.B * self.H, triton.cdiv(self.K, self.BK)
            sizes, options = (self.H, self.K, self.V), self._options | {"num_warps": 4}
            _score_gradient_kernel[grid[:2]](v, grad_y, grad_scores, self.T, *sizes, **options)
            _carried_kernel[grid](
                q, k, v, log_decay, states, behind, grad_y, *grads, self.T, *sizes, **options
            )  # fmt: skip
            _gradient_kernel[grid](
                q, k, log_decay, bonus, scores, grad_scores, *grads, grad_bonus, self.T, self.levels,
                *sizes, **(options | {"num_warps": 8}),
            )  # fmt: skip
        grad_decay = grads[2].sum(dim=-1) if log_decay.ndim == 3 else grads[2]
        weight = None if grad_bonus is None else grad_bonus.sum(dim=(0, 1))
        return grads[0].to(q.dtype), grads[1].to(k.dtype), grad_decay.to(log_decay.dtype), weight

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._device)


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
