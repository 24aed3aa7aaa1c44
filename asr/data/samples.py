"""Samples of a cut as one mono array, and a bounded cache of them.

Plain cuts (one file, one channel) are read by `asr.audio`; anything else that lhotse can express (mixed
or padded cuts, channel selection, transforms) by lhotse, then averaged over channels and resampled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from lhotse import MonoCut

from asr.audio import Samples, read_audio
from asr.data.manifests import one_line
from asr.errors import AsrError, AudioError


def load_samples(cut: Any, sample_rate: int) -> Samples:
    """Mono float32 samples (N,) of a cut at `sample_rate`; raises AudioError naming the cut."""
    try:
        if _is_plain(cut):
            path = cut.recording.sources[0].source
            whole = cut.start == 0 and cut.duration >= cut.recording.duration
            part = {} if whole else {"offset_s": cut.start, "duration_s": cut.duration}
            return read_audio(path, sample_rate, **part).samples
        return _load_through_lhotse(cut, sample_rate)
    except AsrError as error:
        raise AudioError(f"{cut.id}: {error}") from error


class SampleCache:
    """Samples of cuts by index, the least recently used dropped above a number of bytes.

    A cache only saves time: what it returns does not depend on what it holds.
    """

    def __init__(self, cuts: Sequence[Any], sample_rate: int, max_bytes: int) -> None:
        self.cuts = cuts
        self.sample_rate = sample_rate
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[int, Samples] = OrderedDict()

    def __getitem__(self, index: int) -> Samples:
        """Samples of cut `index`, not to be written to."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        samples = load_samples(self.cuts[index], self.sample_rate)
        samples.flags.writeable = False
        self._keep(index, samples)
        return samples

    def _keep(self, index: int, samples: Samples) -> None:
        if samples.nbytes > self.max_bytes:
            return
        self._kept[index] = samples
        self.used_bytes += samples.nbytes
        while self.used_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.used_bytes -= dropped.nbytes


def audio_files(cut: Any) -> list[str]:
    """Paths of all audio files that a cut reads."""
    tracks = getattr(cut, "tracks", None)
    cuts = [track.cut for track in tracks] if tracks else [cut]
    recordings = [c.recording for c in cuts if getattr(c, "recording", None) is not None]
    return [source.source for recording in recordings for source in recording.sources]


def _is_plain(cut: Any) -> bool:
    if type(cut) is not MonoCut or cut.recording.transforms:
        return False
    return len(cut.recording.sources) == 1 and len(cut.recording.sources[0].channels) == 1


def _load_through_lhotse(cut: Any, sample_rate: int) -> Samples:
    for path in audio_files(cut):
        if not Path(path).is_file():
            raise AudioError(f"{path}: expected an audio file, found nothing there")
    try:
        loaded = cut.load_audio()
    except Exception as error:  # lhotse wraps its backends' errors in several types
        raise AudioError(f"cannot be read: {one_line(error)}") from error
    mono = np.asarray(loaded, dtype=np.float32).mean(axis=0)
    if cut.sampling_rate != sample_rate:
        mono = soxr.resample(mono, cut.sampling_rate, sample_rate)
    if not np.isfinite(mono).all():
        raise AudioError("expected finite samples, found NaN or infinity")
    return np.ascontiguousarray(mono, dtype=np.float32)
