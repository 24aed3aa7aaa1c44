"""CTC forward-backward in numpy and float64, with one score per state: the fast path of `ctc_loss`.

States are blank, label 1, blank, label 2, ..., blank; e(t, s) is the probability of the symbol of state s at
frame t. All moves into a state emit its symbol, so the recursion (Graves et al. 2006, equations 6 to 8) needs
no score per move, as the general one in lattice/ does, and half its time::

    alpha(t, s) = e(t, s) (alpha(t-1, s) + alpha(t-1, s-1) + skip(s) alpha(t-1, s-2))

skip(s) is 1 at labels that differ from the one before. beta is alpha of the lattice turned around, in the
same loop; both hold e(t, s), so the posterior of state s at frame t is alpha beta / (e P). Probabilities are
kept within the numbers, and known to suffice, as lattice/scaling.py explains.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from asr_kernels.lattice import scaling
from asr_kernels.lattice.arcs import Lattice
from asr_kernels.lattice.cpu import exp_
from asr_kernels.lattice.scaling import Bools, Floats, Scaling

# States before the first one, always zero.
_LEFT = 2


class Solution(NamedTuple):
    """Outcome for a batch."""

    log_total: Floats
    """(B,): log of the sum over all paths."""
    gradient: Floats
    """(B, T, U+1): of minus log_total at the scores."""
    sure: Bools
    """(B,): whether both hold: not without a path, with NaN in the batch, or where numbers do not suffice."""


def forward_backward(scores: Floats, lattice: Lattice) -> Solution:
    """From log-probabilities (B, T, U+1) of blank and of the labels at each frame."""
    probabilities = exp_(scores.copy())
    if (
        not float(probabilities.max(initial=0.0)) <= scaling.LARGEST
    ):  # also where it is NaN, which would spread
        return Solution(np.zeros(len(scores)), np.zeros_like(scores), np.zeros(len(scores), dtype=bool))
    trellis = _Trellis(probabilities, lattice)
    trellis.run()
    with np.errstate(all="ignore"):
        up, down = trellis.log2_bounds()
        sure = scaling.sure(up, down) & (np.array(lattice.frames) > 0)
        gradient = np.zeros_like(scores)
        for b in np.flatnonzero(sure):
            own = trellis.posterior(int(b), down[b])
            T, U = lattice.frames[b], lattice.labels[b]
            gradient[b, :T, 0] = -own[:, ::2].sum(axis=1)
            gradient[b, :T, 1 : U + 1] = -own[:, 1::2]
    return Solution(down * math.log(2), gradient, sure)


class _Trellis:
    """alpha of B utterances and, in the rows from B on, of the same ones turned around.

    All arrays are (T+1, 2 B, _LEFT + S); a step of all rows is treated as one vector. Step 0 is before the
    first frame.
    """

    def __init__(self, probabilities: Floats, lattice: Lattice) -> None:
        B, T, width = probabilities.shape
        self._B, self._lattice = B, lattice
        shape = T + 1, 2 * B, _LEFT + 2 * width - 1
        self._alpha, self._emitted, self._skip = np.zeros(shape), np.zeros(shape), np.zeros(shape[1:])
        by_frame = probabilities.transpose(1, 0, 2)
        targets = lattice.targets.numpy()
        self._skip[:B, _LEFT + 3 :: 2] = targets[:, 1:] != targets[:, :-1]
        for b in range(B):
            emitted, turned = self._rows(self._emitted, b)
            T_b, S_b = emitted.shape
            emitted[:, ::2] = by_frame[:T_b, b, :1]
            emitted[:, 1::2] = by_frame[:T_b, b, 1 : (S_b + 1) // 2]
            turned[:] = emitted[::-1, ::-1]
            skip, back = (self._skip[row, _LEFT + 2 : _LEFT + S_b] for row in (b, B + b))
            back[:] = skip[::-1]
        self._alpha[0, :, _LEFT] = 1.0
        self._scaling = Scaling(self._alpha[:, :, _LEFT:], early=1)

    def run(self) -> None:
        """Fill alpha."""
        flat = (len(self._alpha), -1)
        alpha, emitted = self._alpha.reshape(flat), self._emitted.reshape(flat)
        skip = self._skip.reshape(-1)[_LEFT:]
        term = np.empty_like(skip)
        with np.errstate(all="ignore"):
            for n in range(1, len(alpha)):
                before, out = alpha[n - 1], alpha[n, _LEFT:]
                np.multiply(before[:-2], skip, out=term)
                np.add(before[2:], before[1:-1], out=out)
                np.add(out, term, out=out)
                np.multiply(out, emitted[n, _LEFT:], out=out)
                if n % scaling.EVERY == 0:
                    self._scaling.renormalise(n)
        self._scaling.finish()

    def log2_bounds(self) -> tuple[Floats, Floats]:
        """(B,) each, of the sum over all paths."""
        b, T = np.arange(self._B), np.array(self._lattice.frames)
        last = _LEFT + 2 * np.array(self._lattice.labels)  # and what lies before the first state is zero
        alpha, beta = (self._alpha[T, row, last] + self._alpha[T, row, last - 1] for row in (b, self._B + b))
        return self._scaling.log2_bounds(alpha, beta, self._lattice.frames)

    def posterior(self, b: int, log2_total: float) -> Floats:
        """(T_b, S_b): the probability of each state of utterance b at each frame."""
        (alpha, beta), (emitted, _) = self._rows(self._alpha, b), self._rows(self._emitted, b)
        T_b = len(alpha)
        forward, back = (self._scaling.final[1 : T_b + 1, row] for row in (b, self._B + b))
        posterior: Floats = beta[::-1, ::-1] / np.where(emitted > 0.0, emitted, 1.0)
        scaling.multiply_by_power(posterior, forward + back[::-1] - log2_total)
        np.minimum(posterior, 1e300, out=posterior)  # where it is infinite, alpha is nothing
        posterior *= alpha
        return posterior

    def _rows(self, array: Floats, b: int) -> tuple[Floats, Floats]:
        """Views (T_b, S_b) of utterance b: its own row, and the one turned around."""
        frames = slice(1, self._lattice.frames[b] + 1)
        states = slice(_LEFT, _LEFT + 2 * self._lattice.labels[b] + 1)
        return array[frames, b, states], array[frames, self._B + b, states]
