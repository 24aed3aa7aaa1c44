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

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from asr_kernels.lattice.arcs import LOG_ZERO, Moves

Array = NDArray[np.float64]
# Logarithm of what is nothing beside 1. exp is slow below: 7 times for zeros, 40 times for denormal numbers.
_TINY = -700.0


class Solution(NamedTuple):
    """Outcome for a batch of lattices."""

    log_total: Array
    """(B,): log of the sum over all paths, or the score of the best; -inf where no path exists."""
    occupation: Array
    """(B, T, S, M): share of every move in it; zero where no path exists, NaN where the total is NaN."""


def log_total(arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int) -> Array:
    """(B,) log of the sum over all paths of the lattices `arcs` (B, T, S, M); -inf where there is none."""
    alpha = _log_alpha(arcs, moves, frames, states, finals, turned=False)
    return _totals(alpha, frames, states, finals)


def forward_backward(
    arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int
) -> Solution:
    """Sum over all paths of the lattices `arcs` (B, T, S, M), and the posterior of every move."""
    B, T, S, _ = arcs.shape
    alpha = _log_alpha(arcs, moves, frames, states, finals, turned=True)
    totals = _totals(alpha[:B], frames, states, finals)
    reach = max(dt for dt, _ in moves), max(ds for _, ds in moves)
    log_beta = np.full((B, T + reach[0], S + reach[1]), LOG_ZERO)
    for b, (T_b, S_b) in enumerate(zip(frames, states, strict=True)):
        log_beta[b, : T_b + 1, :S_b] = alpha[B + b, : T_b + 1, :S_b][::-1, ::-1]
    occupation = np.empty((arcs.shape[-1], *arcs.shape[:-1]))
    with np.errstate(all="ignore"):
        # alpha / P; without a path it is 0, and a NaN stays
        share = alpha[:B, :T] - np.where(totals == -np.inf, np.inf, totals)[:, None, None]
        for m, (dt, ds) in enumerate(moves):
            own = np.add(share, arcs[..., m], out=occupation[m])
            own += log_beta[:, dt : dt + T, ds : ds + S]
            counts = own > _TINY
            np.maximum(own, _TINY, out=own)
            np.exp(own, out=own)
            own *= counts
    return Solution(totals, np.moveaxis(occupation, 0, -1))


def best_path(arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int) -> Solution:
    """Score of the best path of the lattices `arcs` (B, T, S, M), and the path: 1 for its moves, else 0."""
    skewed = _Skewed(arcs, moves, frames, states, finals, turned=False)
    skewed.best()
    alpha = skewed.nodes
    ends = _ends(alpha, frames, states, finals)
    totals = ends.max(axis=0)
    occupation = np.zeros(arcs.shape)
    occupation[np.isnan(totals)] = np.nan
    b = np.flatnonzero(np.isfinite(totals))
    t, s = np.array(frames)[b], np.array(states)[b] - 1
    s -= ends[:, b].argmax(axis=0)
    dt, ds = np.array(moves).T
    T = arcs.shape[1]
    while b.size:
        # Every path goes back by the move that gave its node its value.
        t_m, s_m = t[:, None] - dt, s[:, None] - ds
        exists = (t_m >= 0) & (t_m < T) & (s_m >= 0)
        t_m, s_m = t_m.clip(0, T - 1), s_m.clip(0)
        came = alpha[b[:, None], t_m, s_m] + arcs[b[:, None], t_m, s_m, np.arange(len(dt))]
        m = np.where(exists, came, -np.inf).argmax(axis=1)
        t, s = t - dt[m], s - ds[m]
        occupation[b, t, s, m] = 1.0
        going = (t > 0) | (s > 0)
        b, t, s = b[going], t[going], s[going]
    return Solution(totals, occupation)


def _log_alpha(
    arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int, turned: bool
) -> Array:
    """log alpha (rows, T+1, S) of B lattices and, if `turned`, of the same B turned around."""
    skewed = _Skewed(arcs, moves, frames, states, finals, turned)
    skewed.log_sum()
    return skewed.nodes


class _Skewed:
    """alpha, and the scores of the moves that lead into every node, with the nodes of a step side by side."""

    def __init__(
        self, arcs: Array, moves: Moves, frames: list[int], states: list[int], finals: int, turned: bool
    ) -> None:
        B, T, S, M = arcs.shape
        rows = 2 * B if turned else B
        skew = int(any(dt == 0 for dt, _ in moves))
        self.lags = [(dt + skew * ds, ds) for dt, ds in moves]
        steps = T + skew * (S - 1) + 1
        # Steps before the first and states before s = 0, always log 0, make "n-1, s-1" a shifted view.
        self.early, self.left = max(lag for lag, _ in self.lags), max(ds for _, ds in self.lags)
        self.memory = np.full((self.early + steps, rows, self.left + S), LOG_ZERO)
        self.alpha = self.memory[self.early :, :, self.left :]
        """(steps, rows, S)"""
        self.into = np.full((steps, M, rows, S), LOG_ZERO)
        """Score of the move that leads to this node."""
        self.nodes = _unskewed(self.alpha, T + 1, skew)
        """(rows, T+1, S), a view of alpha."""
        for m, (dt, ds) in enumerate(moves):
            into = _unskewed(self.into[:, m], T + 1, skew)
            t, s = max(0, min(T, T + 1 - dt)), max(0, S - ds)
            into[:B, dt : dt + t, ds : ds + s] = arcs[:, :t, :s, m]
            for b, (T_b, S_b) in enumerate(zip(frames, states, strict=True)):
                if turned:
                    into[B + b, 1 : T_b + 1, :S_b] = arcs[b, :T_b, :S_b, m][::-1, ::-1]
        self.nodes[:, 0, 0] = 0.0
        for b, S_b in enumerate(states):
            if turned:
                self.nodes[B + b, 0, : min(finals, S_b)] = 0.0

    def sources(self) -> list[Array]:
        """For every move (steps, rows, S), a view: alpha of the node it comes from."""
        steps, _, S = self.alpha.shape
        first, left = self.early, self.left
        return [
            self.memory[first - lag : first - lag + steps, :, left - ds : left - ds + S]
            for lag, ds in self.lags
        ]

    def best(self) -> None:
        """alpha of the best path to each node."""
        self._recur(_maximum)

    def log_sum(self) -> None:
        """alpha of all paths to each node."""
        self._recur(_log_sum)

    def _recur(self, add_up: Callable[[Array, Array], None]) -> None:
        """Step by step, extend alpha of the sources along the moves and add up."""
        steps, sources = self.alpha.shape[0], self.sources()
        terms = np.empty(self.into.shape[1:])
        with np.errstate(all="ignore"):
            for n in range(1, steps):
                into = self.into[n]
                for m, source in enumerate(sources):
                    np.add(source[n], into[m], out=terms[m])
                add_up(terms, self.alpha[n])


def _unskewed(skewed: Array, frames: int, skew: int) -> Array:
    """View (rows, frames, S) of (steps, rows, S): [row, t, s] is [t + skew s, row, s] there."""
    step, row, state = skewed.strides
    return as_strided(skewed, (skewed.shape[1], frames, skewed.shape[2]), (row, step, skew * step + state))


def _log_sum(terms: Array, out: Array) -> None:
    """out = log sum_m exp(terms[m]); uses up the terms."""
    if len(terms) == 2:
        # log(e^high + e^low); several times faster than np.logaddexp, which is not vectorised
        high = np.maximum(terms[0], terms[1], out=out)
        low = np.minimum(terms[0], terms[1], out=terms[0])
        low -= high
        np.maximum(low, _TINY, out=low)
        np.exp(low, out=low)
        np.log1p(low, out=low)
        high += low
    else:
        np.maximum.reduce(terms, axis=0, out=out)
        terms -= out
        np.maximum(terms, _TINY, out=terms)
        np.exp(terms, out=terms)
        out += np.log(np.add.reduce(terms, axis=0))


def _maximum(terms: Array, out: Array) -> None:
    np.maximum.reduce(terms, axis=0, out=out)


def _ends(alpha: Array, frames: list[int], states: list[int], finals: int) -> Array:
    """(finals, B): alpha (B, T+1, S) of the states in which a path may end; -inf where none arrives."""
    b, t, s = (
        np.arange(len(frames)),
        np.array(frames),
        np.array(states)[None] - 1 - np.arange(finals)[:, None],
    )
    ends = np.where(s >= 0, alpha[b, t, s.clip(0)], -np.inf)
    ends[(ends < LOG_ZERO / 2) | (t == 0)] = -np.inf
    return ends


def _totals(alpha: Array, frames: list[int], states: list[int], finals: int) -> Array:
    """(B,) log of the sum over all paths; -inf where there is none."""
    ends = _ends(alpha, frames, states, finals)
    with np.errstate(all="ignore"):
        totals: Array = ends[0] if finals == 1 else np.logaddexp(ends[0], ends[1])
    return totals
