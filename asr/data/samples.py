"""Samples of a cut as one mono array, and a bounded cache of them.

Plain cuts (one file, one channel) are read by `asr.audio`; anything else that lhotse can express (mixed
or padded cuts, channel selection, transforms) by lhotse, then averaged over channels and resampled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from lhotse import MonoCut

from asr.audio import Audio, Samples, read_audio
from asr.data.manifests import one_line
from asr.errors import AsrError, AudioError


def load_samples(cut: Any, sample_rate: int) -> Samples:
    """Mono float32 samples (N,) of a cut at `sample_rate`; raises AudioError naming the cut."""
    return _load(cut, sample_rate).samples


def load_as_recorded(cut: Any) -> Audio:
    """Mono float32 samples (N,) of a cut at the rate of its file; raises AudioError naming the cut."""
    return _load(cut, None)


def _load(cut: Any, sample_rate: int | None) -> Audio:
    try:
        if is_plain(cut):
            path = cut.recording.sources[0].source
            part = {} if is_whole(cut) else {"offset_s": cut.start, "duration_s": cut.duration}
            return read_audio(path, sample_rate, **part)
        rate = cut.sampling_rate if sample_rate is None else sample_rate
        return Audio(_load_through_lhotse(cut, rate), rate)
    except AsrError as error:
        raise AudioError(f"{cut.id}: {error}") from error


class SampleCache:
    """Samples by number, the least recently used dropped above a number of bytes.

    A cache only saves time: what it returns does not depend on what it holds.
    """

    def __init__(self, load: Callable[[int], Samples], max_bytes: int) -> None:
        self.load = load
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[int, Samples] = OrderedDict()

    def __getitem__(self, number: int) -> Samples:
        """Samples of this number, not to be written to."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        samples = self.load(number)
        samples.flags.writeable = False
        self._keep(number, samples)
        return samples

    def _keep(self, number: int, samples: Samples) -> None:
        if samples.nbytes > self.max_bytes:
            return
        self._kept[number] = samples
        self.used_bytes += samples.nbytes
        while self.used_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.used_bytes -= dropped.nbytes


def is_plain(cut: Any) -> bool:
    """Whether a cut is a stretch of one file of one channel, as it is."""
    if type(cut) is not MonoCut or cut.recording.transforms:
        return False
    return len(cut.recording.sources) == 1 and len(cut.recording.sources[0].channels) == 1


def is_whole(cut: Any) -> bool:
    """Whether a cut is all of its recording."""
    return bool(cut.start == 0 and cut.duration >= cut.recording.duration)


def audio_files(cut: Any) -> list[str]:
    """Paths of all audio files that a cut reads."""
    tracks = getattr(cut, "tracks", None)
    cuts = [track.cut for track in tracks] if tracks else [cut]
    recordings = [c.recording for c in cuts if getattr(c, "recording", None) is not None]
    return [source.source for recording in recordings for source in recording.sources]


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
