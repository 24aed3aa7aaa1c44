"""Minimum Bayes risk over an n-best list: the hypothesis that is expected to have the fewest word errors.

    p(h)      = softmax over the list of  scale * score(h)
    risk(h)   = sum over g of the list  p(g) * edit distance in words (h, g)
    decision  = argmin risk(h)

The most probable sentence is the best guess at whole sentences; word errors are fewer where a hypothesis
agrees in its words with many others. The scale flattens posteriors, which a beam search makes too sharp: 0
counts all alike, and a large one returns the most probable hypothesis. No lattice is needed.

Sources: Stolcke, Koenig and Weintraub 1997 ("Explicit word error minimization in N-best list rescoring"),
Kumar and Byrne 2004 ("Minimum Bayes-risk decoding for statistical machine translation"). Departure:
hypotheses with the same words are one, with the sum of their probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from asr.errors import ConfigError


class MinimumRisk(NamedTuple):
    """The decision, and what it was made from, by hypothesis in the order of the list."""

    chosen: int
    """The hypothesis of least risk; the first of several."""
    risks: tuple[float, ...]
    """Expected word errors."""
    posteriors: tuple[float, ...]
    """Probabilities given the list; they add up to 1."""


def minimum_bayes_risk(
    hypotheses: Sequence[Sequence[str]], scores: Sequence[float], scale: float = 1.0
) -> MinimumRisk:
    """Choose among hypotheses, lists of words, with total scores (natural logarithms, -inf allowed).

    Raises ConfigError for a scale that is negative or not finite.
    """
    assert len(hypotheses) == len(scores) > 0
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(f"n-best scale: expected a number from 0 on, found {scale:g}")
    weights = _posteriors(np.array(scores, dtype=np.float64), scale)
    words = [tuple(hypothesis) for hypothesis in hypotheses]
    mass: dict[tuple[str, ...], float] = {}
    for hypothesis, weight in zip(words, weights.tolist(), strict=True):
        mass[hypothesis] = mass.get(hypothesis, 0.0) + weight
    risk = {h: sum(p * Levenshtein.distance(h, g) for g, p in mass.items() if p) for h in mass}
    risks = tuple(risk[hypothesis] for hypothesis in words)
    return MinimumRisk(risks.index(min(risks)), risks, tuple(weights.tolist()))


def _posteriors(scores: np.ndarray[tuple[int], np.dtype[np.float64]], scale: float) -> np.ndarray:
    """Of scores that are all minus infinity none is better."""
    assert not np.isnan(scores).any()
    best = scores.max()
    if best == -math.inf:
        return np.full(len(scores), 1.0 / len(scores))
    possible = np.isfinite(scores)
    weights = np.where(possible, np.exp(scale * (np.where(possible, scores, best) - best)), 0.0)
    return np.asarray(weights / weights.sum())
