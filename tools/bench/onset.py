"""Where speech begins in a recording, by its energy.

The level of a recording is the 95th percentile of the power of its frames of 25 ms, every 10 ms, in dB.
Speech begins with the first frame of a run of at least 50 ms that is above level - 15 dB: vowels are that
loud, and clicks are not that long. A soft consonant before the first vowel is taken for silence, so that
delays from here are a little short, for all recognisers alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FRAME_S, SHIFT_S = 0.025, 0.01
BELOW_LEVEL_DB = 15.0
SHORTEST_S = 0.05


def speech_onset(samples: npt.NDArray[np.float32], sample_rate: int) -> float | None:
    """Seconds until speech begins in (N,) samples; None in silence or without a frame."""
    size, shift = round(FRAME_S * sample_rate), round(SHIFT_S * sample_rate)
    if len(samples) < size:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), size)[::shift]
    power = np.square(frames).mean(axis=1)
    level = float(np.quantile(power, 0.95))
    if level <= 0:
        return None
    loud = power > level * 10 ** (-BELOW_LEVEL_DB / 10)
    run = round(SHORTEST_S / SHIFT_S)
    if len(loud) < run:
        return None
    whole = np.lib.stride_tricks.sliding_window_view(loud, run).all(axis=1)
    return float(np.argmax(whole) * SHIFT_S) if whole.any() else None
