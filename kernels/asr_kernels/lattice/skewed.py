"""A batch of lattices laid out so that the nodes of a step are one row, and the recursion over its steps.

With alpha(t, s) the sum over all paths to node (t, s), over moves m = (dt, ds)::

    alpha(0, 0) = 1
    alpha(t, s) = sum_m alpha(t - dt, s - ds) a_m(t - dt, s - ds)

Steps are n = t + s where some move consumes no frame, else n = t: all nodes of a step depend on earlier
steps only, so a few numpy calls treat a step of every utterance. The arrays are skewed, [n, ..., s], which
makes a step one contiguous row. beta is alpha of the lattice turned around (t -> T - t, s -> S-1 - s), so
both run in the same loop, as a batch of 2 B. What + and * are is up to a semiring.

numpy, whose calls cost less than torch's at this size; float64, since log alpha reaches thousands, where
float32 resolves 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from asr_kernels.lattice.arcs import Graph
from asr_kernels.lattice.scaling import Floats


class Semiring(NamedTuple):
    """What the recursion multiplies and adds with."""

    zero: float
    one: float
    times: np.ufunc
    add_up: Callable[[Floats, Floats], object]
    """add_up(terms (M, ...), out): the sum over the first dimension; leaves the terms as they are."""
    mixes: bool = False
    """Whether what is not a number may spread to other utterances; see `Skewed._seen`. Half the time."""


class Skewed:
    """Lattices of up to T frames and S states; rows from B on, if `turned`, are the same turned around."""

    def __init__(self, graph: Graph, T: int, S: int, semiring: Semiring, *, turned: bool) -> None:
        B, M = len(graph.frames), len(graph.moves)
        rows = 2 * B if turned else B
        self.graph, self.semiring = graph, semiring
        self.skew = skew = int(any(dt == 0 for dt, _ in graph.moves))
        self.lags = [(dt + skew * ds, ds) for dt, ds in graph.moves]
        steps = T + skew * (S - 1) + 1
        # Steps before the first and states before s = 0, always zero, make "n - 1, s - 1" a shifted view.
        self.early, self._left = max(lag for lag, _ in self.lags), max(ds for _, ds in self.lags)
        length, width = self.early + steps, self._left + S
        # In one piece, which the allocator is likelier to have at hand: new pages cost as much as the rest.
        memory = np.full((length, 1 + M, rows, width), semiring.zero)
        self._alpha, self._arcs = memory[:, 0], memory[:, 1:]
        self.alpha = self._alpha[self.early :, :, self._left :]
        """(steps, rows, S)"""
        self.arcs = self._arcs[self.early :, :, :, self._left :]
        """(steps, M, rows, S): the score of each move where it leaves; after `run`, times alpha there."""
        self.nodes = _unskewed(self.alpha, T + 1, skew)
        """(rows, T+1, S), a view of alpha."""
        self.arcs_from = [_unskewed(self.arcs[:, m, :B], T, skew) for m in range(M)]
        """(B, T, S) for every move, views of the arcs that are not turned around."""
        self.last = [t + skew * (s - 1) for t, s in zip(graph.frames, graph.states, strict=True)]
        """The step of each utterance's last node."""
        self.nodes[:B, 0, 0] = semiring.one
        for row, states in enumerate(graph.states if turned else (), B):
            self.nodes[row, 0, : min(graph.finals, states)] = semiring.one

    def turn(self) -> None:
        """Fill the arcs of the turned rows from the others."""
        B = len(self.last)
        for m, (lag, ds) in enumerate(self.lags):
            for b, (last, states) in enumerate(zip(self.last, self.graph.states, strict=True)):
                # A turned move leaves the place of the node that it led to.
                n, s = max(0, last + 1 - lag), max(0, states - ds)
                self.arcs[:n, m, B + b, :s] = self.arcs[:n, m, b, :s][::-1, ::-1]

    def run(self, every: int = 0, after: Callable[[int], None] | None = None) -> None:
        """Step by step, follow the moves and add up; after every so many steps n call after(n)."""
        times, add_up = self.semiring.times, self.semiring.add_up
        runs = list(self._runs())
        alpha = self._seen(self._alpha[:, None], 0, 1, (0, 0))[:, 0]
        together = None if len(runs) == 1 else np.empty((len(self.lags), *alpha.shape[1:]))
        with np.errstate(all="ignore"):
            for n, out in enumerate(alpha, 1):
                for moves, sources, arcs in runs:
                    terms = times(sources[n - 1], arcs[n - 1], arcs[n - 1])
                    if together is not None:
                        together[moves] = terms
                add_up(terms if together is None else together, out)
                if after is not None and n % every == 0:
                    after(n)

    def into(self, m: int) -> Floats:
        """(steps, rows, S), after `run`: what move m adds to each node; a view."""
        lag, ds = self.lags[m]
        first, left, (steps, _, S) = self.early - lag, self._left - ds, self.alpha.shape
        return self._arcs[first : first + steps, m, :, left : left + S]

    def turned_back(self, beta: Floats) -> Iterator[Floats]:
        """For every move (steps, B, S): values at the nodes that it leads to, of `beta` at turned nodes.

        `beta` is (steps, B, S), as the turned rows of alpha are.
        """
        steps, B, S = beta.shape
        there = np.full((steps + self.early, B, S + self._left), self.semiring.zero)
        for b, (last, states) in enumerate(zip(self.last, self.graph.states, strict=True)):
            there[: last + 1, b, :states] = beta[: last + 1, b, :states][::-1, ::-1]
        return (there[lag : lag + steps, :, ds : ds + S] for lag, ds in self.lags)

    def _runs(self) -> Iterator[tuple[slice, Floats, Floats]]:
        """Moves that lie evenly in memory: which they are, alpha where they leave, and their arcs.

        Both are (steps - 1, moves, ...), seen from where the moves lead from step 1 on.
        """
        alpha = np.broadcast_to(self._alpha[:, None], self._arcs.shape)
        first = 0
        while first < len(self.lags):
            gaps = np.diff(self.lags[first:], axis=0)
            count = 1 + int((gaps == gaps[:1]).all(axis=1).cumprod().sum())
            gap = (int(gaps[0, 0]), int(gaps[0, 1])) if count > 1 else (0, 0)
            where = first, count, gap, self.lags[first]
            yield slice(first, first + count), self._seen(alpha, *where), self._seen(self._arcs, *where)
            first += count

    def _seen(
        self,
        memory: Floats,
        first: int,
        count: int,
        gap: tuple[int, int],
        lag: tuple[int, int] = (0, 0),
    ) -> Floats:
        """(steps - 1, count, ...) of memory (length, M, rows, width): what lies `lag` before each step.

        From step 1 and the move `first` on, each further move `gap` (steps, states) before the one before. If
        rows may mix, their states are one dimension, those before s = 0 included: into them leads what leaves
        the last states of another row, which is zero, since no move leaves its lattice (or is not a number).
        """
        (steps, rows, S), (step, move, row, state) = self.alpha.shape, memory.strides
        start = memory[self.early + 1 - lag[0] :, first, :, self._left - lag[1] :]
        strides = step, move - gap[0] * step - gap[1] * state
        if self.semiring.mixes:
            return as_strided(
                start, (steps - 1, count, rows * (self._left + S) - self._left), (*strides, state)
            )
        return as_strided(start, (steps - 1, count, rows, S), (*strides, row, state))


def _unskewed(skewed: Floats, frames: int, skew: int) -> Floats:
    """View (rows, frames, S) of (steps, rows, S): [row, t, s] is [t + skew s, row, s] there."""
    step, row, state = skewed.strides
    return as_strided(skewed, (skewed.shape[1], frames, skewed.shape[2]), (row, step, skew * step + state))
