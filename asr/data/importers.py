"""Corpora in other people's layouts, turned into cuts: `import_corpus`.

========  ==================================================================================
lhotse    a manifest of cuts, or of recordings with the supervisions beside it, or a directory
kaldi     a data directory: `text`, `wav.scp`, optionally `utt2spk`, `segments`
nemo      JSON lines with `audio_filepath`, `text`, optionally `offset`, `duration`, `speaker`
ljspeech  `metadata.csv` of `id|text` or `id|text|normalised text`, audio in `wavs/`
pairs     a directory of recordings, the text of each beside it: `ID.wav`, `ID.txt`
========  ==================================================================================

Relative audio paths are relative to the folder of the file that names them or, for Kaldi, to one of its
parents or the working directory. Nothing in these files is executed: Kaldi's `command |` entries are
refused. Audio headers are read, so that durations are those of the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from lhotse import CutSet, Recording

from asr.data.manifests import (
    check_cut,
    file_recording,
    make_cut,
    one_line,
    parse_item,
    read_cuts,
    read_json_lines,
)
from asr.errors import AudioError, ManifestError
from asr.text.lines import read_lines

Kind = Literal["auto", "lhotse", "kaldi", "nemo", "ljspeech", "pairs"]
AUDIO_SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".mp3")
END_TOLERANCE_S = 0.05
"""Segment times are often rounded to 10 ms or a frame; an end this much past the audio is the audio's end."""


class Imported(NamedTuple):
    """Cuts, and what was left out because that was allowed."""

    cuts: CutSet
    skipped: list[str]
    """Utterances without an audio file."""
    broken: dict[str, str]
    """Utterances whose audio file cannot be read, and why."""


def import_corpus(
    source: Path | str,
    kind: Kind = "auto",
    *,
    skip_missing: bool = False,
    skip_broken: bool = False,
    progress: Callable[[], None] | None = None,
) -> Imported:
    """Read a corpus; raises ManifestError or AudioError naming file and line.

    With `skip_missing`, utterances whose audio file does not exist are listed instead, with `skip_broken`
    those whose audio file has a header that cannot be right. `progress` is called once for every utterance.
    """
    source = Path(source)
    kind = detect_kind(source) if kind == "auto" else kind
    cuts, skipped, broken = [], [], {}
    for item in READERS[kind](source):
        if progress is not None:
            progress()
        if isinstance(item, _Missing):
            if not skip_missing:
                raise ManifestError(f"{item.reason}; --skip-missing leaves it out")
            skipped.append(item.utterance)
        elif isinstance(item, _Broken):
            if not skip_broken:
                raise AudioError(item.reason)
            broken[item.utterance] = item.reason
        else:
            cuts.append(item)
    if not cuts:
        raise ManifestError(f"{source}: expected at least one utterance with audio, found none")
    return Imported(CutSet(cuts), skipped, broken)


def detect_kind(source: Path) -> Literal["lhotse", "kaldi", "nemo", "ljspeech", "pairs"]:
    """The layout of a file or directory, by its names and first line; raises ManifestError."""
    if source.is_dir():
        if (source / "wav.scp").is_file():
            return "kaldi"
        if (source / "metadata.csv").is_file():
            return "ljspeech"
        if any(_lhotse_files(source, "recordings")) or any(_lhotse_files(source, "cuts")):
            return "lhotse"
        if any(source.glob("*.txt")):
            return "pairs"
        raise ManifestError(
            f"{source}: expected wav.scp (Kaldi), metadata.csv (LJSpeech), *recordings*.jsonl.gz (lhotse) or "
            f"*.txt beside recordings"
        )
    if source.name == "metadata.csv":
        return "ljspeech"
    _, first = next(read_json_lines(source), (0, {}))
    return "nemo" if "audio_filepath" in first else "lhotse"


class _Missing(NamedTuple):
    """An utterance whose audio is not there."""

    utterance: str
    reason: str


class _Broken(NamedTuple):
    """An utterance whose audio cannot be read."""

    utterance: str
    reason: str


class _Recordings:
    """Recordings by path, each header read once."""

    def __init__(self) -> None:
        self._read: dict[str, Recording | AudioError] = {}

    def get(
        self, path: Path, recording_id: str, where: str, utterance: str
    ) -> Recording | _Missing | _Broken:
        """The recording, or why `utterance` has none."""
        if not path.is_file():
            return _Missing(utterance, f"{where}: {path}: there is no such audio file")
        key = str(path)
        if key not in self._read:
            try:
                self._read[key] = file_recording(path, recording_id)
            except AudioError as error:
                self._read[key] = error
        found = self._read[key]
        return _Broken(utterance, f"{where}: {found}") if isinstance(found, AudioError) else found


def _read_lhotse(source: Path) -> Iterator[Any]:
    if source.is_dir():
        for path in _lhotse_files(source, "cuts"):
            yield from read_cuts(path)
        for path in _lhotse_files(source, "recordings"):
            yield from _read_recordings(path)
        return
    _, first = next(read_json_lines(source), (0, {}))
    yield from _read_recordings(source) if "sources" in first else read_cuts(source)


def _read_recordings(path: Path) -> Iterator[Any]:
    """One cut per supervision of a pair `*recordings*.jsonl.gz`, `*supervisions*.jsonl.gz`."""
    beside = path.with_name(path.name.replace("recordings", "supervisions"))
    if beside == path or not beside.is_file():
        raise ManifestError(
            f"{path}: expected the supervisions beside it in {beside.name}, found nothing there"
        )
    recordings = {}
    for number, item in read_json_lines(path):
        recording = parse_item(item, f"{path}:{number}", path.parent)
        if not isinstance(recording, Recording):
            raise ManifestError(f"{path}:{number}: expected a lhotse recording")
        recordings[recording.id] = recording
    for number, item in read_json_lines(beside):
        where = f"{beside}:{number}"
        supervision = parse_item(item, where, path.parent)
        recording = recordings.get(getattr(supervision, "recording_id", None))
        if recording is None:
            raise ManifestError(f"{where}: expected a supervision of a recording in {path.name}")
        cut = _supervised_cut(supervision, recording, where)
        check_cut(cut, where)
        yield cut


def _supervised_cut(supervision: Any, recording: Recording, where: str) -> Any:
    try:
        stop_s = _end(supervision.start, supervision.end, recording, where)
        return make_cut(
            recording,
            supervision.id,
            supervision.text or "",
            speaker=supervision.speaker or "",
            language=supervision.language,
            start_s=supervision.start,
            duration_s=stop_s - supervision.start,
            alignment=supervision.alignment,  # lhotse counts its times from the recording's start
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ManifestError(
            f"{where}: expected numbers as times, found others ({one_line(error)})"
        ) from error


def _lhotse_files(directory: Path, what: str) -> list[Path]:
    return sorted(p for p in directory.glob(f"*{what}*") if p.name.endswith((".jsonl", ".jsonl.gz")))


def _read_kaldi(source: Path) -> Iterator[Any]:
    waves = _table(source / "wav.scp")
    texts = _table(source / "text", empty=True)
    speakers = _table(source / "utt2spk") if (source / "utt2spk").is_file() else {}
    segments = _table(source / "segments") if (source / "segments").is_file() else None
    recordings = _Recordings()
    for utterance, (number, text) in texts.items():
        where = f"{source / 'text'}:{number}"
        start_s, stop_s, recording_id = 0.0, None, utterance
        if segments is not None:
            recording_id, start_s, stop_s = _segment(segments, utterance, source, where)
        if recording_id not in waves:
            raise ManifestError(f"{where}: expected {recording_id} in wav.scp, found no such line")
        wave_number, location = waves[recording_id]
        where = f"{source / 'wav.scp'}:{wave_number}"
        if location.endswith("|") or location.startswith("|"):
            raise ManifestError(
                f"{where}: expected an audio file, found a shell command, which is not run; decode it"
            )
        path = _kaldi_path(source, location)
        recording = recordings.get(path, recording_id, where, utterance)
        if not isinstance(recording, Recording):
            yield recording
            continue
        stop_s = _end(start_s, stop_s, recording, where)
        speaker = speakers.get(utterance, (0, ""))[1]
        yield make_cut(
            recording, utterance, text, speaker=speaker, start_s=start_s, duration_s=stop_s - start_s
        )


def _segment(
    segments: dict[str, tuple[int, str]], utterance: str, source: Path, where: str
) -> tuple[str, float, float | None]:
    if utterance not in segments:
        raise ManifestError(f"{where}: expected {utterance} in segments, found no such line")
    number, line = segments[utterance]
    try:
        recording_id, start, stop = line.split()[:3]
        start_s, stop_s = float(start), float(stop)
    except ValueError as error:
        message = (
            f"{source / 'segments'}:{number}: expected UTTERANCE RECORDING START END, found {line[:80]!r}"
        )
        raise ManifestError(message) from error
    return recording_id, start_s, stop_s if stop_s >= 0 else None  # Kaldi: -1 is the end of the recording


def _kaldi_path(source: Path, location: str) -> Path:
    """Kaldi paths are relative to where its scripts ran: often a parent of the data directory."""
    path = Path(location)
    if path.is_absolute():
        return path
    candidates = [folder / path for folder in (source, *source.absolute().parents[:4], Path.cwd())]
    return next((c.resolve() for c in candidates if c.is_file()), path)


def _table(path: Path, empty: bool = False) -> dict[str, tuple[int, str]]:
    """Lines `KEY REST` of a Kaldi file, with their numbers; `empty` allows lines of a key alone."""
    table: dict[str, tuple[int, str]] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        key, *rest = line.split(maxsplit=1)
        if key in table:
            raise ManifestError(f"{path}:{number}: expected each key once, found {key} again")
        if not rest and not empty:
            raise ManifestError(f"{path}:{number}: expected KEY VALUE, found {line[:80]!r}")
        table[key] = (number, rest[0].strip() if rest else "")
    return table


def _read_nemo(source: Path) -> Iterator[Any]:
    recordings = _Recordings()
    used: dict[str, int] = {}
    for number, item in read_json_lines(source):
        where = f"{source}:{number}"
        location, text = item.get("audio_filepath"), item.get("text")
        if not isinstance(location, str) or not isinstance(text, str):
            raise ManifestError(
                f"{where}: expected the strings audio_filepath and text, found {sorted(item)[:6]}"
            )
        path = Path(location) if Path(location).is_absolute() else source.parent.absolute() / location
        stem = str(item.get("id") or path.stem)
        used[stem] = used.get(stem, 0) + 1
        cut_id = stem if used[stem] == 1 else f"{stem}-{used[stem]}"
        recording = recordings.get(path, path.stem, where, cut_id)
        if not isinstance(recording, Recording):
            yield recording
            continue
        start_s = _number(item, "offset", 0.0, where)
        length_s = _number(item, "duration", None, where)
        stop_s = _end(start_s, None if length_s is None else start_s + length_s, recording, where)
        speaker = str(item.get("speaker") or "")
        yield make_cut(recording, cut_id, text, speaker=speaker, start_s=start_s, duration_s=stop_s - start_s)


def _number(item: dict[str, Any], key: str, default: Any, where: str) -> Any:
    value = item.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ManifestError(f"{where}: expected {key} in seconds, found {str(value)[:40]!r}")
    return float(value)


def read_metadata(table: Path) -> Iterator[tuple[str, str, str]]:
    """File and line, id, and text (the normalised one if there is one) of every line of a metadata.csv."""
    for number, line in read_lines(table):
        if not line.strip():
            continue
        where = f"{table}:{number}"
        utterance, *texts = line.split("|")
        utterance = utterance.strip()
        if not texts or not re.fullmatch(r"[^/\\]+", utterance) or utterance in {".", ".."}:
            raise ManifestError(f"{where}: expected ID|TEXT or ID|TEXT|NORMALISED, found {line[:80]!r}")
        yield where, utterance, next((t.strip() for t in reversed(texts[:2]) if t.strip()), "")


def _read_ljspeech(source: Path) -> Iterator[Any]:
    table = source / "metadata.csv" if source.is_dir() else source
    for where, utterance, text in read_metadata(table):
        yield _named_cut(table.parent / "wavs", utterance, text, where)


def _read_pairs(source: Path) -> Iterator[Any]:
    for path in sorted(source.glob("*.txt")):
        text = " ".join(line.strip() for _, line in read_lines(path))
        yield _named_cut(source, path.stem, text, str(path))


def _named_cut(folder: Path, utterance: str, text: str, where: str) -> Any:
    """The cut of a whole file that has the utterance's name, or why there is none."""
    candidates = [folder.absolute() / f"{utterance}{suffix}" for suffix in AUDIO_SUFFIXES]
    path = next((c for c in candidates if c.is_file()), candidates[0])
    recording = _Recordings().get(path, utterance, where, utterance)
    return make_cut(recording, utterance, text) if isinstance(recording, Recording) else recording


def _end(start_s: float, stop_s: float | None, recording: Recording, where: str) -> float:
    """The end of a stretch of a recording, checked against its length."""
    length_s = float(recording.duration)
    stop_s = length_s if stop_s is None else stop_s
    if not 0 <= start_s < stop_s or not stop_s <= length_s + END_TOLERANCE_S:
        raise ManifestError(
            f"{where}: expected times within {length_s:.3f} s of audio, found {start_s:g} to {stop_s:g}"
        )
    return min(stop_s, length_s)


READERS: Mapping[str, Callable[[Path], Iterator[Any]]] = MappingProxyType(
    {
        "lhotse": _read_lhotse,
        "kaldi": _read_kaldi,
        "nemo": _read_nemo,
        "ljspeech": _read_ljspeech,
        "pairs": _read_pairs,
    }
)
"""A reader for every layout: it yields cuts, and what stands for those that cannot be made."""
