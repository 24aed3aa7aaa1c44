"""Voice activity: how long the speaker has been silent, by silero-vad (extra `vad`).

Silero VAD (https://github.com/snakers4/silero-vad, MIT) is a small recurrent network that comes inside its
package; it hears 32 ms at a time and answers with the probability of speech. Speech begins at `threshold` and
ends 0.15 below it, as in its own iterator.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, Protocol

import numpy as np
import torch

from asr.audio import Resampler, Samples
from asr.errors import MissingExtraError

RATE, WINDOW = 16000, 512
_HYSTERESIS = 0.15


class VoiceActivity(Protocol):
    """Tells speech from silence in one stream."""

    def feed(self, samples: Samples) -> None:
        """The next samples (N,) of the stream."""

    @property
    def silence_s(self) -> float:
        """Seconds since the last speech; since the beginning if there was none."""


class SileroVad:
    """See the module docstring; for one stream of samples at `sample_rate`."""

    def __init__(self, sample_rate: int, threshold: float = 0.5) -> None:
        if importlib.util.find_spec("silero_vad") is None:
            raise MissingExtraError("voice activity detection", "vad")
        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad

        torch.set_num_threads(threads)  # importing it sets one for the whole process
        with warnings.catch_warnings():
            # The package loads its network with torch.jit, which torch means to leave some day.
            warnings.simplefilter("ignore", FutureWarning)
            self._model: Any = load_silero_vad()
        self._model.reset_states()
        self._resampler, self._threshold = Resampler(sample_rate, RATE), threshold
        self._waiting = np.zeros(0, np.float32)
        self._speaking, self._silent_windows = False, 0

    def feed(self, samples: Samples) -> None:
        """See VoiceActivity."""
        self._waiting = np.concatenate((self._waiting, self._resampler.feed(samples)))
        count = len(self._waiting) // WINDOW
        with torch.inference_mode():
            for window in self._waiting[: count * WINDOW].reshape(count, WINDOW):
                probability = float(self._model(torch.from_numpy(window.copy()), RATE))
                bound = self._threshold - _HYSTERESIS if self._speaking else self._threshold
                self._speaking = probability >= bound
                self._silent_windows = 0 if self._speaking else self._silent_windows + 1
        self._waiting = self._waiting[count * WINDOW :]

    @property
    def silence_s(self) -> float:
        """See VoiceActivity."""
        return self._silent_windows * WINDOW / RATE
