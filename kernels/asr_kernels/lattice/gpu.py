"""Forward-backward and best paths over a batch of lattices, in Triton.

The recursion is that of cpu.py, with one program per utterance and direction::

    alpha(t, s) = sum_m alpha(t - dt, s - ds) a_m(t - dt, s - ds)

A program walks over the steps n = t + s where some move consumes no frame, else n = t, and treats the states
of a step as vectors of BLOCK. Steps are rows [n, s] in global memory: every move leads to a later row, so
one barrier per row is all the synchronisation there is, and any number of states is treated block by block.
beta is alpha of the lattice turned around (t -> T - t, s -> S-1 - s), in the same launch; both read the arcs
where they lie. The maximum instead of the sum (Viterbi 1967) is the same kernel; a second one then walks
back along the best path.

log alpha is kept in float64 and only exp and log are taken in float32, of differences whose exp is at most
one. That costs a handful of double-precision additions per node, where a renormalised float32 would need the
maximum of every row, a reduction over all threads on the critical path, and would still lose what lies far
below that maximum: paths that are poor until their last labels. The arcs of the next step are loaded while
the current one is added up; they do not depend on it, and they come from far away.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_kernels.lattice.arcs import Graph, Moves

# As in arcs.py, which Triton cannot read: log 0, and what is as good as that.
LOG_ZERO = tl.constexpr(-1e30)
UNREACHED = tl.constexpr(-5e29)

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["B", "T", "S", "rows"]

# States that a program of the recursion treats at once; nodes of a program of the elementwise kernel.
_STATES = 1024
_NODES = 512


class Solution(NamedTuple):
    """Outcome for a batch of lattices."""

    log_total: Tensor
    """(B,): log of the sum over all paths, or the score of the best; -inf where no path exists."""
    occupation: Tensor
    """(M, B, T, S): share of every move in it; zero where no path exists, NaN where the total is NaN."""


class _Alpha(NamedTuple):
    """log alpha, and log beta as the log alpha of the turned lattice."""

    rows: Tensor  # (1 or 2, B, N, S) float64: [direction, utterance, step, state]
    totals: Tensor  # (B,) float64
    frames: Tensor  # (B,) int64
    states: Tensor  # (B,) int64
    moves: Moves
    skew: int


def log_total(arcs: Tensor, graph: Graph) -> Tensor:
    """(B,) log of the sum over all paths of the lattices `arcs` (M, B, T, S); -inf where there is none."""
    return _recur(arcs, graph, directions=1, best=False).totals.to(arcs.dtype)


def forward_backward(arcs: Tensor, graph: Graph) -> Solution:
    """Sum over all paths of the lattices `arcs` (M, B, T, S), and the posterior of every move."""
    arcs = arcs.contiguous()
    alpha = _recur(arcs, graph, directions=2, best=False)
    _, B, T, S = arcs.shape
    occupation = torch.empty_like(arcs)
    width = min(128, triton.next_power_of_2(S))
    grid = triton.cdiv(T, _NODES // width), triton.cdiv(S, width), B
    if T > 0:
        _occupation_kernel[grid](
            arcs, alpha.rows, alpha.totals, occupation, alpha.frames, alpha.states,
            B, T, S, alpha.rows.shape[2],
            MOVES=alpha.moves, SKEW=alpha.skew, FRAMES=_NODES // width, STATES=width, num_warps=4,
        )  # fmt: skip
    return Solution(alpha.totals.to(arcs.dtype), occupation)


def best_path(arcs: Tensor, graph: Graph) -> Solution:
    """Score of the best path of the lattices `arcs` (M, B, T, S), and the path: 1 for its moves, else 0."""
    arcs = arcs.contiguous()
    alpha = _recur(arcs, graph, directions=1, best=True)
    _, B, T, S = arcs.shape
    occupation = torch.zeros_like(arcs).masked_fill_(alpha.totals.isnan()[:, None, None], torch.nan)
    _best_path_kernel[(B,)](
        arcs, alpha.rows, alpha.totals, occupation, alpha.frames, alpha.states,
        B, T, S, alpha.rows.shape[2],
        MOVES=alpha.moves, SKEW=alpha.skew, FINALS=graph.finals, num_warps=1,
    )  # fmt: skip
    return Solution(alpha.totals.to(arcs.dtype), occupation)


def _recur(arcs: Tensor, graph: Graph, *, directions: int, best: bool) -> _Alpha:
    arcs = arcs.contiguous()
    _, B, T, S = arcs.shape
    skew = int(any(dt == 0 for dt, _ in graph.moves))
    rows = arcs.new_empty((directions, B, T + skew * (S - 1) + 1, S), dtype=torch.float64)
    lengths = torch.tensor([graph.frames, graph.states], device=arcs.device)
    alpha = _Alpha(rows, rows.new_empty(B), lengths[0], lengths[1], graph.moves, skew)
    block = min(_STATES, max(32, triton.next_power_of_2(S)))
    _recursion_kernel[(B, directions)](
        arcs, rows, alpha.totals, alpha.frames, alpha.states,
        B, T, S, rows.shape[2],
        MOVES=alpha.moves, SKEW=skew, FINALS=graph.finals, MAX=best, BLOCK=block,
        num_warps=max(1, min(8, block // 64)),
    )  # fmt: skip
    return alpha


@triton.jit(do_not_specialize=_VARYING)
def _recursion_kernel(
    arcs, alpha, totals, frames, states, B, T, S, rows,
    MOVES: tl.constexpr, SKEW: tl.constexpr, FINALS: tl.constexpr, MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B, directions): fill alpha (directions, B, rows, S); the first direction gives the totals."""
    b = tl.program_id(0).to(tl.int64)
    turned = tl.program_id(1)
    tl.static_assert(FINALS + SKEW < 3, "a second final state needs moves that all consume frames")
    T_b = tl.load(frames + b).to(tl.int32)
    S_b = tl.load(states + b).to(tl.int32)
    arcs += b * T * S
    between = B.to(tl.int64) * T * S  # one move's arcs and the next one's
    alpha += (turned.to(tl.int64) * B + b) * rows * S
    starts = tl.where(turned == 1, FINALS, 1)
    blocks = tl.cdiv(S_b, BLOCK)
    for j in range(blocks):
        s = j * BLOCK + tl.arange(0, BLOCK)
        tl.store(alpha + s, tl.where(s < starts, 0.0, LOG_ZERO), mask=s < S_b)
    tl.debug_barrier()
    last = (T_b + (S_b - 1) * SKEW) * blocks  # blocks of states in the rows 1, 2, ...
    scores = _load_moves(arcs, between, 0, last, blocks, turned, T_b, S_b, S, MOVES, SKEW, BLOCK)
    for i in range(last):
        following = _load_moves(arcs, between, i + 1, last, blocks, turned, T_b, S_b, S, MOVES, SKEW, BLOCK)
        n = 1 + i // blocks
        s = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
        t = n - s * SKEW
        value = tl.full((BLOCK,), LOG_ZERO, tl.float64)
        for m in tl.static_range(len(MOVES)):
            dt = MOVES[m][0]
            ds = MOVES[m][1]
            lag = dt + ds * SKEW
            came = (n >= lag) & (s >= ds) & (s < S_b)
            source = alpha + (n - lag).to(tl.int64) * S + s - ds
            term = tl.load(source, mask=came, other=LOG_ZERO) + scores[m]
            value = term if m == 0 else log_add(value, term, MAX)
        exists = (t >= 0) & (t <= T_b)
        tl.store(alpha + n.to(tl.int64) * S + s, tl.where(exists, value, LOG_ZERO), mask=s < S_b)
        if i % blocks == blocks - 1:
            tl.debug_barrier()
        scores = following
    if turned == 0:
        tl.debug_barrier()
        end = alpha + (T_b + (S_b - 1) * SKEW).to(tl.int64) * S + S_b - 1
        total = tl.load(end)
        if FINALS == 2:
            before = tl.load(end - 1, mask=S_b >= 2, other=LOG_ZERO)
            total = log_add(total, before, MAX)
        total = tl.where((total < UNREACHED) | (T_b == 0), float("-inf"), total)
        tl.store(totals + b, total)


@triton.jit
def _load_moves(
    arcs, between, i, last, blocks, turned, T_b, S_b, S,
    MOVES: tl.constexpr, SKEW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For every move (BLOCK,): the score with which it leads to the i-th block of nodes behind row 0."""
    s = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
    t = 1 + i // blocks - s * SKEW
    scores = ()  # type: tuple[object, ...]
    for m in tl.static_range(len(MOVES)):
        dt = MOVES[m][0]
        ds = MOVES[m][1]
        # The node that the move leaves; in the turned lattice the one it leads to has that place.
        t_m = tl.where(turned == 1, T_b - t, t - dt)
        s_m = tl.where(turned == 1, S_b - 1 - s, s - ds)
        exists = (i < last) & (s < S_b) & (t <= T_b) & (t_m >= 0) & (t_m < T_b) & (s_m >= 0)
        address = m * between + t_m.to(tl.int64) * S + s_m
        score = tl.load(arcs + address, mask=exists, other=LOG_ZERO)
        scores += (tl.where(score < LOG_ZERO, LOG_ZERO, score).to(tl.float64),)
    return scores


@triton.jit
def log_add(a, b, MAX: tl.constexpr):
    """log(exp a + exp b), or the larger of them; NaN if either is."""
    high = tl.where((a > b) | (a != a), a, b)
    if not MAX:
        high += tl.log(1.0 + tl.exp(-tl.abs(a - b).to(tl.float32))).to(tl.float64)
    return high


@triton.jit(do_not_specialize=_VARYING)
def _occupation_kernel(
    arcs, alpha, totals, occupation, frames, states, B, T, S, rows,
    MOVES: tl.constexpr, SKEW: tl.constexpr, FRAMES: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of frames, of states, B): occupation = alpha a beta / P, zero outside the lengths."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * FRAMES + tl.arange(0, FRAMES)[:, None]
    s = tl.program_id(1).to(tl.int64) * STATES + tl.arange(0, STATES)[None, :]
    T_b = tl.load(frames + b)
    S_b = tl.load(states + b)
    beta = alpha + (B + b) * rows * S
    alpha += b * rows * S
    total = tl.load(totals + b)
    T_b = tl.where(total == float("-inf"), 0, T_b)  # no path, no occupation
    exists = (t < T_b) & (s < S_b)
    share = tl.load(alpha + (t + s * SKEW) * S + s, mask=exists, other=LOG_ZERO) - total
    for m in tl.static_range(len(MOVES)):
        dt = MOVES[m][0]
        ds = MOVES[m][1]
        address = ((m * B + b) * T + t) * S + s
        score = tl.load(arcs + address, mask=exists, other=LOG_ZERO).to(tl.float64)
        t_turned, s_turned = T_b - t - dt, S_b - 1 - s - ds
        arrives = exists & (t_turned >= 0) & (s_turned >= 0)
        turned = beta + (t_turned + s_turned * SKEW) * S + s_turned
        log_share = share + score + tl.load(turned, mask=arrives, other=LOG_ZERO)
        own = tl.where(exists, tl.exp(log_share.to(tl.float32)), 0.0)
        tl.store(occupation + address, own.to(occupation.dtype.element_ty), mask=(t < T) & (s < S))


@triton.jit(do_not_specialize=_VARYING)
def _best_path_kernel(
    arcs, alpha, totals, occupation, frames, states, B, T, S, rows,
    MOVES: tl.constexpr, SKEW: tl.constexpr, FINALS: tl.constexpr,
):  # fmt: skip
    """Grid (B,): from the end, go back by the move that gave a node its value; the first of equals."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.load(frames + b)
    s = tl.load(states + b) - 1
    arcs += b * T * S
    occupation += b * T * S
    between = B.to(tl.int64) * T * S
    alpha += b * rows * S
    total = tl.load(totals + b)
    if FINALS == 2:
        last = tl.load(alpha + t * S + s)
        before = tl.load(alpha + t * S + s - 1, mask=s >= 1, other=LOG_ZERO)
        s = tl.where(before > last, s - 1, s)
    # No path, or NaN: nothing to walk.
    n = tl.where(total > UNREACHED, t + s * SKEW, 0)
    while n > 0:
        best = tl.full((), float("-inf"), tl.float64)
        move = tl.full((), 0, tl.int32)
        t_best, s_best = t, s
        for m in tl.static_range(len(MOVES)):
            t_m, s_m = t - MOVES[m][0], s - MOVES[m][1]
            exists = (t_m >= 0) & (t_m < T) & (s_m >= 0)
            score = tl.load(arcs + m * between + t_m * S + s_m, mask=exists, other=LOG_ZERO)
            source = alpha + (t_m + s_m * SKEW) * S + s_m
            came = tl.load(source, mask=exists, other=LOG_ZERO) + score
            better = exists & (came > best)
            best = tl.where(better, came, best)
            move = tl.where(better, m, move)
            t_best = tl.where(better, t_m, t_best)
            s_best = tl.where(better, s_m, s_best)
        t, s = t_best, s_best
        n = t + s * SKEW
        tl.store(occupation + move * between + t * S + s, 1.0)
