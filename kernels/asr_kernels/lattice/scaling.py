"""Sums over paths on probabilities instead of logarithms, with proof that nothing was lost.

A multiplication and an addition per move, where logarithms take an exp and a log. Every few steps the rows
are multiplied with a power of two, so that the largest number of the last one is about 1. What lies some 500
nats below that is lost, and whether it mattered is known exactly. The rows of alpha round it up, to a floor
above all that a few steps can lose, and those of beta, the sums of the same lattice from its end, round it
down, to zero. So their totals are bounds of the sum P of all paths, and posteriors are as close::

    total of beta  <=  P  <=  total of alpha       |alpha beta - exactly that|  <=  difference of the totals

Where both are equal (`sure`), nothing was lost that counts; elsewhere logarithms have to be taken. The floor
is high enough for probabilities of moves up to LARGEST: until the next renormalisation what was lost, at
most 1e-304, grows by LARGEST^16 = 1e6, and by 1e20 with a dozen moves into a node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

EVERY = 16
"""Steps from one renormalisation to the next."""
LARGEST = 2.4
"""Of the probabilities of moves."""
_FLOOR = 1e-280
_SURE = 1e-10


class Scaling:
    """Keeps the rows of alpha and beta within the numbers and knows by which power of two each is multiplied.

    `alpha` (steps, 2 B, S) are rows of B utterances and of the same ones from their end; steps look `early`
    steps back.
    """

    def __init__(self, alpha: Floats, early: int) -> None:
        steps, rows, _ = alpha.shape
        self._alpha, self._early = alpha, early
        self._known, self._now = 0, np.zeros(rows)
        self.computed = np.zeros((steps, rows))
        """Exponents of the numbers that each step was computed from."""
        self.final = np.zeros((steps, rows))
        """Exponents of the rows as they are: alpha 2^final is the sum over paths."""

    def renormalise(self, n: int) -> None:
        """After step n, one of every EVERY: the largest number that is still looked at becomes about 1."""
        self._note(n + 1)
        window = slice(max(0, n + 1 - self._early), n + 1)
        rows = self._alpha[window]
        B = rows.shape[1] // 2
        up, down = rows[:, :B], rows[:, B:]
        np.maximum(up, _FLOOR, out=up)
        down *= down >= _FLOOR
        _, exponent = np.frexp(rows.max(axis=(0, 2)))
        rows *= np.ldexp(1.0, -exponent)[:, None]
        self.final[window] += exponent
        self._now += exponent

    def finish(self) -> None:
        """After the last step."""
        self._note(len(self.final))

    def log2_bounds(self, alpha: Floats, beta: Floats, last: Sequence[int]) -> tuple[Floats, Floats]:
        """(B,) each: of the sum over all paths, from those to the ends, which lie in the steps `last`."""
        B = len(alpha)
        above, below = self.final[last, np.arange(B)], self.final[last, np.arange(B, 2 * B)]
        # The steps since the last renormalisation may have lost as much as any others.
        return np.log2(alpha + _FLOOR) + above, np.log2(beta) + below

    def _note(self, end: int) -> None:
        self.computed[self._known : end] = self.final[self._known : end] = self._now
        self._known = end


def sure(log2_up: Floats, log2_down: Floats) -> Bools:
    """Whether both totals are that of all paths; not where there is none, or NaN."""
    with np.errstate(invalid="ignore"):
        found: Bools = abs(log2_up - log2_down) * math.log(2) < _SURE
    return found


def multiply_by_power(x: Floats, exponent: Floats) -> None:
    """x (..., S) *= 2^exponent (...), in two factors, as exponents have twice the range of numbers."""
    half = np.exp2(np.minimum(0.5 * exponent, 1000.0))[..., None]
    x *= half
    x *= half
