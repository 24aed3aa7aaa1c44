"""The best CTC path with a byte per state and frame, for recordings that are long; numpy, float64.

States s = 0..2U are blank, label 1, blank, label 2, ..., blank; with e(t, s) the log-probability of the
symbol of state s at frame t::

    v(0, s) = e(0, s) for s = 0 and 1, else -inf
    v(t, s) = e(t, s) + max(v(t-1, s), v(t-1, s-1), v(t-1, s-2) if s is a label other than that of s-2)
    P       = max(v(T-1, 2U), v(T-1, 2U-1))

(Graves et al. 2006, section 4.1, with a maximum for the sum.) Only which of the three was taken is stored;
the general lattice (../lattice) knows any topology and takes a hundred times as much.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from asr_kernels.lattice.scaling import Floats


class Path(NamedTuple):
    """The best path of an utterance."""

    states: npt.NDArray[np.int64]
    """(T,) state at every frame; empty where no path exists."""
    score: float
    """Its log-probability; -inf where none exists, NaN where NaN is in the way."""

    def label_frames(self, labels: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(U,) first frame of each label, and the first that is no longer part of it."""
        held = np.flatnonzero(self.states % 2)
        label = self.states[held] // 2
        first, behind = (np.searchsorted(label, np.arange(labels), side) for side in ("left", "right"))
        return held[first], held[behind - 1] + 1


def best_path(log_probs: Floats, labels: npt.NDArray[np.int64], blank: int) -> Path:
    """The best path of one utterance through log_probs (T, V) that puts out labels (U,)."""
    T, S = len(log_probs), 2 * len(labels) + 1
    symbols = np.full(S, blank)
    symbols[1::2] = labels
    # Two states that are never reached stand before the first, so that "s - 2" is a shifted view.
    skipped = np.full(S, -np.inf)
    skipped[3::2] = np.where(labels[1:] != labels[:-1], 0.0, -np.inf)
    value = np.full(S + 2, -np.inf)
    value[1] = 0.0  # at frame 0 the first two states follow this one by steps of 1 and 2
    skipped[1:2] = 0.0
    steps = np.zeros((T, S), dtype=np.int8)
    with np.errstate(invalid="ignore"):
        for t in range(T):
            stay, one, two = value[2:], value[1:-1], value[:-2] + skipped
            best = np.maximum(stay, one)
            np.greater(one, stay, out=steps[t], casting="unsafe")
            steps[t][two > best] = 2
            value[2:] = np.maximum(best, two) + log_probs[t, symbols]
            value[1] = -np.inf
    ends = value[2:][-2:]
    score = float(ends.max()) if T else -np.inf
    if not np.isfinite(score):
        return Path(np.zeros(0, dtype=np.int64), score)
    return Path(_walk_back(steps, S - len(ends) + int(ends.argmax())), score)


def _walk_back(steps: npt.NDArray[np.int8], state: int) -> npt.NDArray[np.int64]:
    """(T,) states of the path that ends in `state`."""
    states = np.empty(len(steps), dtype=np.int64)
    for t in range(len(steps) - 1, -1, -1):
        states[t] = state
        state -= int(steps[t, state])
    return states
