"""Forward-backward and best paths over a batch of lattices, in numpy and float64, one step at a time.

With alpha(t, s) the sum over all paths to node (t, s), over moves m = (dt, ds)::

    alpha(0, 0) = 1
    alpha(t, s) = sum_m alpha(t - dt, s - ds) a_m(t - dt, s - ds)

Steps are n = t + s where some move consumes no frame, else n = t: all nodes of a step depend on earlier
steps only, so one numpy call treats a step of every utterance. The arrays are skewed, [n, ..., s], which
makes a step one contiguous row. beta is alpha of the lattice turned around (t -> T - t, s -> S-1 - s), so
both run in the same loop, as a batch of 2 B. The best path replaces the sum by the maximum (Viterbi 1967).

numpy, whose calls cost less than torch's at this size; float64, since log alpha reaches thousands, where
float32 resolves 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from asr_kernels.lattice.arcs import LOG_ZERO

Array = NDArray[np.float64]
Moves = Sequence[tuple[int, int]]


class Solution(NamedTuple):
    """Outcome for a batch of lattices."""

    log_total: Array
    """(B,): log of the sum over all paths, or the score of the best; -inf where no path exists."""
    occupation: Array
    """(B, T, S, M): share of every move in it; zero where no path exists, NaN where the total is NaN."""


def log_total(arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int) -> Array:
    """(B,) log of the sum over all paths of the lattices `arcs` (B, T, S, M); -inf where there is none."""
    alpha = _Alpha(arcs.shape, moves, rows=len(frames))
    _fill(alpha, arcs)
    _recur(alpha, _log_sum)
    return _totals(alpha, frames, states, finals, _log_sum)


def forward_backward(
    arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int
) -> Solution:
    """Sum over all paths of the lattices `arcs` (B, T, S, M), and the posterior of every move."""
    B, T, S, _ = arcs.shape
    alpha = _Alpha(arcs.shape, moves, rows=2 * B)
    _fill(alpha, arcs)
    for b, (T_b, S_b) in enumerate(zip(frames, states, strict=True)):
        for m, into in enumerate(alpha.into):
            into[B + b, 1 : T_b + 1, :S_b] = arcs[b, :T_b, :S_b, m][::-1, ::-1]
        alpha.nodes[B + b, 0, : min(finals, S_b)] = 0.0
    _recur(alpha, _log_sum)
    totals = _totals(alpha, frames, states, finals, _log_sum)

    reach = max(dt for dt, _ in moves), max(ds for _, ds in moves)
    log_beta = np.full((B, T + reach[0], S + reach[1]), LOG_ZERO)
    for b, (T_b, S_b) in enumerate(zip(frames, states, strict=True)):
        log_beta[b, : T_b + 1, :S_b] = alpha.nodes[B + b, : T_b + 1, :S_b][::-1, ::-1]
    occupation = np.empty(arcs.shape)
    with np.errstate(all="ignore"):
        # alpha / P; without a path it is 0, and a NaN stays
        share = alpha.nodes[:B, :T] - np.where(totals == -np.inf, np.inf, totals)[:, None, None]
        for m, (dt, ds) in enumerate(moves):
            own = share + arcs[..., m]
            own += log_beta[:, dt : dt + T, ds : ds + S]
            np.exp(own, out=occupation[..., m])
    return Solution(totals, occupation)


def best_path(arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int) -> Solution:
    """Score of the best path of the lattices `arcs` (B, T, S, M), and the path: 1 for its moves, else 0."""
    alpha = _Alpha(arcs.shape, moves, rows=len(frames))
    _fill(alpha, arcs)
    _recur(alpha, _maximum)
    totals = _totals(alpha, frames, states, finals, _maximum)
    occupation = np.zeros(arcs.shape)
    occupation[np.isnan(totals)] = np.nan
    b = np.flatnonzero(np.isfinite(totals))
    t, s = np.array(frames)[b], np.array(states)[b] - 1
    if finals == 2:
        before = np.maximum(s - 1, 0)
        s = np.where(alpha.nodes[b, t, before] > alpha.nodes[b, t, s], before, s)
    dt, ds = np.array(moves).T
    T = arcs.shape[1]
    while b.size:
        # Every path goes back by the move that gave its node its value.
        t_m, s_m = t[:, None] - dt, s[:, None] - ds
        exists = (t_m >= 0) & (t_m < T) & (s_m >= 0)
        t_m, s_m = t_m.clip(0, T - 1), s_m.clip(0)
        came = alpha.nodes[b[:, None], t_m, s_m] + arcs[b[:, None], t_m, s_m, np.arange(len(dt))]
        m = np.where(exists, came, -np.inf).argmax(axis=1)
        t, s = t - dt[m], s - ds[m]
        occupation[b, t, s, m] = 1.0
        going = (t > 0) | (s > 0)
        b, t, s = b[going], t[going], s[going]
    return Solution(totals, occupation)


class _Alpha:
    """log alpha, and the scores of the moves that lead into every node, in skewed memory."""

    def __init__(self, shape: tuple[int, ...], moves: Moves, rows: int) -> None:
        _, T, S, M = shape
        self.moves = moves
        self.skew = int(any(dt == 0 for dt, _ in moves))
        self.steps = T + self.skew * (S - 1) + 1
        # Steps before the first and states before s = 0, always log 0, make every "n-1, s-1" a shifted view.
        self.margin = max(dt + self.skew * ds for dt, ds in moves), max(ds for _, ds in moves)
        self.skewed = np.full((self.margin[0] + self.steps, rows, self.margin[1] + S), LOG_ZERO)
        self.skewed_into = np.full((M, self.steps, rows, S), LOG_ZERO)
        self.nodes = self._by_node(self.skewed[self.margin[0] :, :, self.margin[1] :], T + 1)
        """(rows, T+1, S), a view."""
        self.into = [self._by_node(into, T + 1) for into in self.skewed_into]
        """For every move (rows, T+1, S), a view: the score of the move that leads to this node."""
        self.nodes[:, 0, 0] = 0.0

    def _by_node(self, skewed: Array, frames: int) -> Array:
        step, row, state = skewed.strides
        shape = skewed.shape[1], frames, skewed.shape[2]
        return as_strided(skewed, shape, (row, step, self.skew * step + state))

    def sources(self) -> list[Array]:
        """For every move (steps, rows, S), a view: log alpha of the node it comes from."""
        first, left = self.margin
        S = self.skewed.shape[2] - left
        views = []
        for dt, ds in self.moves:
            lag = dt + self.skew * ds
            views.append(self.skewed[first - lag : first - lag + self.steps, :, left - ds : left - ds + S])
        return views


def _fill(alpha: _Alpha, arcs: Array) -> None:
    """Put the arcs where they lead, in the first B rows."""
    B, T, S, _ = arcs.shape
    for m, ((dt, ds), into) in enumerate(zip(alpha.moves, alpha.into, strict=True)):
        t, s = max(0, min(T, T + 1 - dt)), max(0, S - ds)
        into[:B, dt : dt + t, ds : ds + s] = arcs[:, :t, :s, m]


def _recur(alpha: _Alpha, add_up: Callable[[Array, Array], None]) -> None:
    """Fill alpha.nodes, step by step."""
    sources = alpha.sources()
    targets = alpha.skewed[alpha.margin[0] :, :, alpha.margin[1] :]
    terms = np.empty((len(sources), *targets.shape[1:]))
    with np.errstate(all="ignore"):
        for n in range(1, alpha.steps):
            for source, into, term in zip(sources, alpha.skewed_into, terms, strict=True):
                np.add(source[n], into[n], out=term)
            add_up(terms, targets[n])


def _log_sum(terms: Array, out: Array) -> None:
    """out = log sum_m exp(terms[m]); uses up the terms."""
    if len(terms) == 2:
        # log(e^high + e^low); several times faster than np.logaddexp, which is not vectorised
        high, low = np.maximum(*terms, out=out), np.minimum(*terms, out=terms[0])
        low -= high
        np.exp(low, out=low)
        np.log1p(low, out=low)
        high += low
    else:
        np.maximum.reduce(terms, axis=0, out=out)
        terms -= out
        np.exp(terms, out=terms)
        out += np.log(terms.sum(axis=0))


def _maximum(terms: Array, out: Array) -> None:
    np.maximum.reduce(terms, axis=0, out=out)


def _totals(
    alpha: _Alpha, frames: list[int], states: list[int], finals: int, add_up: Callable[[Array, Array], None]
) -> Array:
    """(B,) total of the final states; -inf without a path."""
    b = np.arange(len(frames))
    last = np.array(states) - 1
    ends = [alpha.nodes[b, frames, last]]
    if finals == 2:
        before = alpha.nodes[b, frames, np.maximum(last - 1, 0)]
        ends.append(np.where(last > 0, before, LOG_ZERO))
    totals = np.empty(len(frames))
    add_up(np.stack(ends), totals)
    totals[(totals < LOG_ZERO / 2) | (np.array(frames) == 0)] = -np.inf
    return totals
