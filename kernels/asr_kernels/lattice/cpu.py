"""Forward-backward and best paths over a batch of lattices, in numpy and float64, on the layout of skewed.py.

Sums over all paths are taken on probabilities, as scaling.py explains, and on logarithms where that does not
do. Beforehand each label's probability is divided by that on its best frame: every path emits every label,
so this changes no posterior, and it brings the paths that count up to those without labels. The best path
replaces the sum by the maximum (Viterbi 1967), of logarithms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from asr_kernels.lattice import scaling
from asr_kernels.lattice.arcs import LOG_ZERO, Graph, Lattice, add_occupation, adjusted, arcs_of, fill_arcs
from asr_kernels.lattice.scaling import Bools, Floats, Scaling
from asr_kernels.lattice.skewed import Semiring, Skewed
from asr_kernels.lattice.topology import LABEL_SYMBOL

# Logarithm of what is nothing beside 1. exp is slow below: 7 times for zeros, 40 times for denormal numbers.
_TINY = -700.0


class Solution(NamedTuple):
    """Outcome for a batch of lattices."""

    log_total: Floats
    """(B,): log of the sum over all paths, or the score of the best; -inf where no path exists."""
    gradient: Floats
    """(B, T, U+1, K): of minus log_total at the scores, with FastEmit; NaN where the total is NaN."""


class Occupation(NamedTuple):
    """Outcome for a batch of lattices, by moves."""

    log_total: Floats
    """(B,): log of the sum over all paths, or the score of the best; -inf where no path exists."""
    occupation: Floats
    """(M, B, T, S): share of every move in it; zero where no path exists, NaN where the total is NaN."""


def log_total(arcs: Floats, graph: Graph) -> Floats:
    """(B,) log of the sum over all paths of lattices of arcs (M, B, T, S); -inf where there is none."""
    return _log_totals(_run(arcs, graph, LOGARITHMS))


def forward_backward(scores: Floats, lattice: Lattice) -> Solution:
    """Log of the sum over all paths, and its gradient, from scores (B, T, U+1, K)."""
    scores = adjusted(scores, lattice)
    probabilities, left_out = _probabilities(scores, lattice)
    if not float(probabilities.max(initial=0.0)) <= scaling.LARGEST:
        return _by_logarithms(scores, lattice)
    solution, sure = _by_probabilities(probabilities, lattice)
    solution.log_total[:] += left_out
    again = np.flatnonzero(~sure)
    if again.size > 0:
        mended = _by_logarithms(scores[again], lattice.part(again.tolist()))
        solution.log_total[again] = mended.log_total
        solution.gradient[again] = mended.gradient
    return solution


def log_forward_backward(arcs: Floats, graph: Graph) -> Occupation:
    """Log of the sum over all paths of lattices of arcs (M, B, T, S), and the posterior of every move."""
    skewed = _run(arcs, graph, LOGARITHMS, turned=True)
    total = _log_totals(skewed)
    with np.errstate(all="ignore"):
        # Without a path nothing is occupied, and a NaN stays.
        beta = skewed.alpha[:, len(total) :] - np.where(total == -np.inf, np.inf, total)[:, None]
        return Occupation(total, exp_(np.stack(_posteriors(skewed, beta, np.add))))


def best_path(arcs: Floats, graph: Graph) -> Occupation:
    """The best path through lattices of arcs (M, B, T, S)."""
    skewed = _run(arcs, graph, MAXIMUM)
    ends = _log_ends(skewed)
    score = ends.max(axis=0)
    # By which move each node got its value: the first of equal ones.
    came_by = np.zeros(skewed.alpha.shape, dtype=np.int16)
    for m in reversed(range(len(arcs))):
        came_by[skewed.into(m) == skewed.alpha] = m
    occupation = np.zeros(arcs.shape)
    occupation[:, np.isnan(score)] = np.nan
    for b in np.flatnonzero(np.isfinite(score)):
        s = graph.states[b] - 1 - int(ends[:, b].argmax())
        path = _walk_back(came_by[:, b].data, int(skewed.last[b]), s, skewed.lags)
        m, n, s = np.array(path).T
        occupation[m, b, n - skewed.skew * s, s] = 1.0
    return Occupation(score, occupation)


def _walk_back(
    came_by: memoryview, n: int, s: int, lags: list[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """The (move, step, state) that a path to state s of step n took, the last first."""
    path = []
    while n > 0:
        m = came_by[n, s]
        lag, ds = lags[m]
        n, s = n - lag, s - ds
        path.append((m, n, s))
    return path


# -- Probabilities -----------------------------------------------------------------------------------------


def _by_probabilities(probabilities: Floats, lattice: Lattice) -> tuple[Solution, Bools]:
    """The solution, and (B,) for which utterances it holds, from (B, T, U+1, K), whose memory it takes."""
    B, T, width, _ = probabilities.shape
    skewed = Skewed(lattice.graph, T, lattice.states(width), PROBABILITIES, turned=True)
    fill_arcs(skewed.arcs_from, probabilities, lattice, linear=True)
    skewed.turn()
    rows = Scaling(skewed.alpha, skewed.early)
    skewed.run(scaling.EVERY, rows.renormalise)
    rows.finish()
    with np.errstate(all="ignore"):
        up, down = rows.log2_bounds(*_ends(skewed), skewed.last)
        sure = scaling.sure(up, down) & (np.array(lattice.frames) > 0)
        # The step that a turned node has in the lattice, and with it the scale of what leads to it.
        step = np.array(skewed.last) - np.arange(len(rows.final))[:, None]
        exponent = rows.computed[step, np.arange(B)] + rows.final[:, B:] - np.where(sure, down, 0.0)
        beta = skewed.alpha[:, B:]
        scaling.multiply_by_power(beta, exponent)
        np.minimum(beta, 1e300, out=beta)  # where it is infinite, alpha is nothing
        occupation = _posteriors(skewed, beta, np.multiply)
    gradient = probabilities
    gradient[:] = 0.0
    add_occupation(occupation, gradient, lattice)
    return Solution(down * math.log(2), gradient), sure


def _probabilities(scores: Floats, lattice: Lattice) -> tuple[Floats, Floats]:
    """exp of the scores, with 1 for each label on its best frame; (B,) what that leaves out of log totals."""
    scores = scores.copy()
    left_out = np.zeros(len(scores))
    for b, (T, U) in enumerate(zip(lattice.frames, lattice.labels, strict=True)):
        if T > 0 and U > 0:
            left_out[b] = put_best_first(scores[b, :T, :U, LABEL_SYMBOL])
    return exp_(scores), left_out


def put_best_first(scores: Floats) -> float:
    """Subtract from the scores (T, U) of each label that of its best frame, in place; the sum of those."""
    best = scores.max(axis=0)
    best[~(best > LOG_ZERO)] = 0.0
    scores -= best
    return float(best.sum())


def _ends(skewed: Skewed) -> tuple[Floats, Floats]:
    """(B,) each: the sums of all paths to an end, and from there to the start."""
    graph = skewed.graph
    B = len(graph.frames)
    b, T, S = np.arange(B), np.array(graph.frames), np.array(graph.states)
    alpha, beta = (skewed.nodes[row, T, S - 1] for row in (b, B + b))
    if graph.finals == 2:  # of one step, since all moves consume frames then
        alpha = alpha + np.where(S > 1, skewed.nodes[b, T, S - 2], 0.0)
    return alpha, beta


def _sum(terms: Floats, out: Floats) -> None:
    np.add(terms[0], terms[1], out)
    for term in terms[2:]:
        np.add(out, term, out)


# -- Logarithms --------------------------------------------------------------------------------------------


def _by_logarithms(scores: Floats, lattice: Lattice) -> Solution:
    arcs = arcs_of(scores, lattice)
    found = log_forward_backward(arcs, lattice.graph)
    gradient = np.zeros_like(scores)
    add_occupation(found.occupation, gradient, lattice)
    return Solution(found.log_total, gradient)


def _log_sum(terms: Floats, out: Floats) -> None:
    if len(terms) == 2:
        # log(e^high + e^low); several times faster than np.logaddexp, which is not vectorised
        high = np.maximum(terms[0], terms[1], out=out)
        low = np.minimum(terms[0], terms[1])
        low -= high
        np.maximum(low, _TINY, out=low)
        np.exp(low, out=low)
        np.log1p(low, out=low)
        high += low
    else:
        np.maximum.reduce(terms, axis=0, out=out)
        relative = terms - out
        np.maximum(relative, _TINY, out=relative)
        np.exp(relative, out=relative)
        out += np.log(np.add.reduce(relative, axis=0))


def exp_(x: Floats) -> Floats:
    """In place."""
    counts = x > _TINY
    np.maximum(x, _TINY, out=x)
    np.exp(x, out=x)
    x *= counts
    return x


def _log_ends(skewed: Skewed) -> Floats:
    """(finals, B): alpha of the states in which a path may end; -inf where none arrives."""
    graph = skewed.graph
    b, T = np.arange(len(graph.frames)), np.array(graph.frames)
    S = np.array(graph.states) - 1 - np.arange(graph.finals)[:, None]
    ends = np.where(S >= 0, skewed.nodes[b, T, S.clip(0)], -np.inf)
    ends[(ends < LOG_ZERO / 2) | (T == 0)] = -np.inf
    return ends


def _log_totals(skewed: Skewed) -> Floats:
    """(B,) log of the sum over all paths; -inf where there is none."""
    ends = _log_ends(skewed)
    with np.errstate(all="ignore"):
        totals: Floats = ends[0] if len(ends) == 1 else np.logaddexp(ends[0], ends[1])
    return totals


# -- What both share ---------------------------------------------------------------------------------------

PROBABILITIES = Semiring(0.0, 1.0, np.multiply, _sum, mixes=True)
LOGARITHMS = Semiring(LOG_ZERO, 0.0, np.add, _log_sum)
MAXIMUM = Semiring(LOG_ZERO, 0.0, np.add, lambda terms, out: np.maximum.reduce(terms, axis=0, out=out))


def _run(arcs: Floats, graph: Graph, semiring: Semiring, *, turned: bool = False) -> Skewed:
    """The recursion over lattices of arcs (M, B, T, S)."""
    skewed = Skewed(graph, arcs.shape[2], arcs.shape[3], semiring, turned=turned)
    for move, scores in zip(skewed.arcs_from, arcs, strict=True):
        move[:] = scores
    if turned:
        skewed.turn()
    skewed.run()
    return skewed


def _posteriors(skewed: Skewed, beta: Floats, times: np.ufunc) -> list[Floats]:
    """(B, T, S) of every move: beta / P, at turned nodes (steps, B, S), by alpha and the move itself."""
    B = beta.shape[1]
    for m, there in enumerate(skewed.turned_back(beta)):
        own = skewed.arcs[:, m, :B]
        times(own, there, out=own)
    return skewed.arcs_from
