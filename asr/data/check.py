"""Look for what would break training or falsify scores, before either: `check_cuts`.

Every recording's header is read, with `all_samples` the whole recording. Frames too few for the labels: a
transducer or CTC model needs about one frame after subsampling for every label; without a tokenizer the
words are counted, of which any tokenizer makes at least one label each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asr.audio import MP3_SLACK, AudioInfo, audio_blocks, probe
from asr.data.manifests import cut_text
from asr.data.shards import ShardedPart
from asr.errors import AudioError, TokenError
from asr.lengths import seconds_to_frames, subsampled

if TYPE_CHECKING:
    from asr.text.tokenizer import Tokenizer

DURATION_TOLERANCE_S = 0.025
"""Less than a frame and a half; lossy formats add or drop a few milliseconds."""

PROBLEMS = {
    "missing": "audio file missing",
    "unreadable": "audio file unreadable",
    "silent": "every sample is zero",
    "sample_rate": "sample rate differs from the manifest's",
    "duration": "duration differs from the manifest's",
    "duplicate": "id used more than once",
    "empty": "no text",
    "symbols": "symbol outside the tokenizer",
    "frames": "too few frames for the labels",
}
"""Every kind of problem and how it is shown."""


@dataclass
class CheckReport:
    """What was looked at, and the ids of the cuts with each kind of problem (keys of `PROBLEMS`)."""

    cuts: int = 0
    recordings: int = 0
    duration_s: float = 0.0
    problems: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    """For each kind the first case in words."""

    @property
    def ok(self) -> bool:
        """True if there is no problem at all."""
        return not self.problems

    def add(self, kind: str, cut_id: str, detail: str = "") -> None:
        """Note a problem of a cut."""
        assert kind in PROBLEMS
        self.problems.setdefault(kind, []).append(cut_id)
        self.details.setdefault(kind, detail)


def check_cuts(
    cuts: Iterable[Any],
    *,
    all_samples: bool = False,
    tokenizer: Tokenizer | None = None,
    subsampling: int = 4,
    frame_shift_s: float = 0.01,
    progress: Callable[[], None] | None = None,
) -> CheckReport:
    """Check cuts and the recordings they name; problems are reported, not raised."""
    report = CheckReport()
    ids: Counter[str] = Counter()
    seen: dict[str, list[tuple[str, str]]] = {}
    for cut in cuts:
        report.cuts += 1
        report.duration_s += cut.duration
        ids[cut.id] += 1
        for recording in recordings_of(cut):
            key = repr((recording.id, [source.source for source in recording.sources]))
            if key not in seen:
                seen[key] = recording_problems(recording, all_samples)
            for kind, detail in seen[key]:
                report.add(kind, cut.id, detail)
        _check_span(cut, report)
        _check_text(cut, report, tokenizer, subsampling, frame_shift_s)
        if progress is not None:
            progress()
    report.recordings = len(seen)
    for cut_id, count in ids.items():
        if count > 1:
            report.add("duplicate", cut_id, f"{cut_id}: {count} cuts have this id")
    return report


def check_shards(
    part: ShardedPart,
    *,
    tokenizer: Tokenizer | None = None,
    subsampling: int = 4,
    progress: Callable[[], None] | None = None,
) -> CheckReport:
    """Check the cuts of a part in shards and decode what is stored; problems are reported, not raised.

    Raises ManifestError if the cuts themselves cannot be read.
    """
    report = CheckReport()
    for number, cut in enumerate(part.cuts()):
        report.cuts += 1
        report.duration_s += cut.duration
        try:
            samples = part.samples(number, cut.sampling_rate)
            if abs(len(samples) / cut.sampling_rate - cut.duration) > DURATION_TOLERANCE_S:
                found = f"{len(samples) / cut.sampling_rate:.3f} s, cut {cut.duration:.3f} s"
                report.add("duration", cut.id, f"{cut.id}: {found}")
            if not samples.any():
                report.add("silent", cut.id, cut.id)
        except AudioError as error:
            report.add("unreadable", cut.id, str(error))
        _check_text(cut, report, tokenizer, subsampling, frame_shift_s=0.01)
        if progress is not None:
            progress()
    report.recordings = report.cuts
    return report


def label_frames(cut: Any, subsampling: int, frame_shift_s: float = 0.01) -> int:
    """Frames that a model with this subsampling has for a cut."""
    return subsampled(seconds_to_frames(cut.duration, frame_shift_s), subsampling)


def recordings_of(cut: Any) -> list[Any]:
    """All recordings that a cut is made of."""
    cuts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    return [c.recording for c in cuts if getattr(c, "recording", None) is not None]


def recording_problems(recording: Any, all_samples: bool) -> list[tuple[str, str]]:
    """Kind and detail of everything wrong with a recording's files."""
    problems = []
    for source in recording.sources:
        path = source.source
        if not Path(path).is_file():
            problems.append(("missing", path))
            continue
        try:
            info = probe(path)
            problems += _header_problems(recording, path, info)
            if all_samples:
                problems += _sample_problems(path, info)
        except AudioError as error:
            problems.append(("unreadable", str(error)))
    return problems


def _header_problems(recording: Any, path: str, info: AudioInfo) -> list[tuple[str, str]]:
    if recording.transforms:  # the manifest describes the transformed recording, the file the original
        return []
    problems = []
    if info.sample_rate != recording.sampling_rate:
        problems.append(
            ("sample_rate", f"{path}: {info.sample_rate} Hz, manifest {recording.sampling_rate} Hz")
        )
    if abs(info.duration_s - recording.duration) > _tolerance_s(info):
        problems.append(("duration", f"{path}: {info.duration_s:.3f} s, manifest {recording.duration:.3f} s"))
    return problems


def _sample_problems(path: str, info: AudioInfo) -> list[tuple[str, str]]:
    count, peak = 0, 0.0
    for block in audio_blocks(path, info.sample_rate):
        count += len(block)
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
    seconds = count / info.sample_rate
    if abs(seconds - info.duration_s) > _tolerance_s(info):
        return [("unreadable", f"{path}: only {seconds:.3f} s of {info.duration_s:.3f} s can be read")]
    return [("silent", path)] if peak == 0 else []


def _tolerance_s(info: AudioInfo) -> float:
    """MP3 headers may count samples that decoders leave out."""
    return DURATION_TOLERANCE_S + (MP3_SLACK / info.sample_rate if info.format.startswith("MP3") else 0)


def _check_span(cut: Any, report: CheckReport) -> None:
    """A cut of a recording may not reach beyond it."""
    recording = getattr(cut, "recording", None)
    if recording is None or hasattr(cut, "tracks"):
        return
    if cut.start < 0 or cut.start + cut.duration > recording.duration + DURATION_TOLERANCE_S:
        span = f"{cut.start:.3f} to {cut.start + cut.duration:.3f} s of {recording.duration:.3f} s"
        report.add("duration", cut.id, f"{cut.id}: {span}")


def _check_text(
    cut: Any, report: CheckReport, tokenizer: Tokenizer | None, subsampling: int, frame_shift_s: float
) -> None:
    text = cut_text(cut)
    if not text:
        report.add("empty", cut.id, cut.id)
        return
    try:
        labels = len(text.split() if tokenizer is None else tokenizer.encode(text, cut.id))
    except TokenError as error:
        report.add("symbols", cut.id, str(error))
        return
    frames = label_frames(cut, subsampling, frame_shift_s)
    if frames < labels:
        detail = f"{cut.id}: {frames} frames after subsampling by {subsampling}, {labels} labels"
        report.add("frames", cut.id, detail)
