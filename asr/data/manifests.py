"""Manifests: lhotse cuts in JSON lines, and the card that says what a corpus is.

A corpus directory holds `train.jsonl.gz`, `dev.jsonl.gz`, `test.jsonl.gz` (lhotse CutSets) and
`corpus.yaml` (`CorpusCard`). A cut is a stretch of a recording with the supervision(s) spoken in it; its
text is the supervisions' texts in order of time, joined by a space.

Departures from lhotse, because a manifest may come from anywhere: lines are bounded, only audio *files*
are accepted as sources (lhotse also knows shell commands, URLs and inline bytes), fields that decide how
much memory is taken are checked, and every error names the file and the line. A relative audio path is
looked up beside the manifest first, then, as lhotse does, in the working directory.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.serialization import deserialize_item

from asr.audio import probe
from asr.config import Config, load_config, replacing, save_config
from asr.errors import ManifestError
from asr.text.lines import read_lines

MAX_CUT_S = 4 * 3600.0
"""A cut is read into memory as a whole; four hours at 48 kHz are 2.8 GB."""
MAX_SAMPLE_RATE = 768_000
CARD = "corpus.yaml"
IN_SHARD = [{"type": "shar", "channels": [0], "source": ""}]
CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "Cut")


class CorpusCard(Config):
    """What a corpus is and where it comes from; kept as `corpus.yaml` beside its manifests."""

    name: str
    source: str
    licence: str
    sample_rate: int
    synthetic: bool = False
    """True when the speech was synthesised: every result printed from it must say so."""
    note: str = ""


def load_card(directory: Path | str) -> CorpusCard:
    """Read DIR/corpus.yaml; raises ConfigError."""
    return load_config(Path(directory) / CARD, CorpusCard)


def save_card(card: CorpusCard, directory: Path | str) -> None:
    """Write DIR/corpus.yaml."""
    save_config(card, Path(directory) / CARD)


def read_cuts(path: Path | str) -> CutSet:
    """Read a lhotse cut manifest (.jsonl or .jsonl.gz) eagerly; duplicate ids are kept.

    Raises ManifestError, naming file and line, for anything that is not a plain cut manifest.
    """
    return CutSet(list(iter_cuts(path)))


def iter_cuts(path: Path | str) -> Iterator[Any]:
    """The cuts of a manifest one after the other, for manifests of any length; raises as `read_cuts` does."""
    path, found = Path(path), False
    for number, item in read_json_lines(path):
        where = f"{path}:{number}"
        if item.get("type") not in CUT_TYPES:
            raise ManifestError(f"{where}: expected a lhotse cut, found {_kind(item)}; use `asr data import`")
        cut = parse_item(item, where, path.parent)
        check_cut(cut, where)
        found = True
        yield cut
    if not found:
        raise ManifestError(f"{path}: expected at least one cut, found none")


def read_unique_cuts(path: Path | str) -> list[Any]:
    """All cuts of a manifest; raises ManifestError if an id stands for two, since results go by id."""
    cuts = list(read_cuts(path))
    check_unique((cut.id for cut in cuts), str(path))
    return cuts


def check_unique(ids: Iterable[str], where: str) -> None:
    """Raise ManifestError if an id stands for two cuts."""
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        shown = ", ".join(repeated[:5])
        raise ManifestError(f"{where}: {len(repeated)} cut ids stand for several cuts ({shown}); rename them")


def write_cuts(cuts: Iterable[Any], path: Path | str) -> None:
    """Write cuts as .jsonl.gz (or .jsonl), aside and renamed; the same cuts give the same bytes."""
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ManifestError(f"{path}: expected a name ending in .jsonl.gz or .jsonl")
    with replacing(path) as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                _write_lines(cuts, packed)
        else:
            _write_lines(cuts, raw)


def cut_text(cut: Any) -> str:
    """The words spoken in a cut: its supervisions' texts in order of time, joined by a space."""
    supervisions = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    return " ".join(s.text.strip() for s in supervisions if s.text and s.text.strip())


def cut_speaker(cut: Any) -> str:
    """The first supervision's speaker, or an empty string."""
    return next((s.speaker for s in cut.supervisions if s.speaker), "")


def file_recording(path: Path | str, recording_id: str) -> Recording:
    """A lhotse Recording from an audio file's header; raises AudioError naming the file."""
    info = probe(path)
    source = AudioSource(type="file", channels=list(range(info.channels)), source=str(path))
    return Recording(
        id=recording_id,
        sources=[source],
        sampling_rate=info.sample_rate,
        num_samples=info.frames,
        duration=info.frames / info.sample_rate,
        channel_ids=source.channels,
    )


def make_cut(
    recording: Recording,
    cut_id: str,
    text: str,
    *,
    speaker: str = "",
    language: str | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    alignment: dict[str, list[Any]] | None = None,
) -> MonoCut | MultiCut:
    """A cut of `recording` with one supervision that spans it; all channels if there are several."""
    duration_s = recording.duration - start_s if duration_s is None else duration_s
    channels = list(recording.channel_ids)
    supervision = SupervisionSegment(
        id=cut_id,
        recording_id=recording.id,
        start=0.0,
        duration=duration_s,
        channel=channels[0] if len(channels) == 1 else channels,
        text=text,
        speaker=speaker or None,
        language=language,
        alignment=alignment,
    )
    kind = MonoCut if len(channels) == 1 else MultiCut
    return kind(
        id=cut_id,
        start=start_s,
        duration=duration_s,
        channel=supervision.channel,
        recording=recording,
        supervisions=[supervision],
    )


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects of a .jsonl or .jsonl.gz file; blank lines are skipped."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply or a number too large")
            raise ManifestError(f"{path}:{number}: expected a JSON object in every line: {reason}") from error
        if not isinstance(item, dict):
            raise ManifestError(f"{path}:{number}: expected a JSON object, found {type(item).__name__}")
        yield number, item


def parse_item(item: dict[str, Any], where: str, directory: Path, *, in_shard: bool = False) -> Any:
    """Turn a JSON object into lhotse's type after refusing what could run code or reach elsewhere.

    A cut `in_shard` has no sources: its recording lies in the shard.
    """
    try:
        _check_sources(_without_placeholder(item) if in_shard else item, where, directory)
        return deserialize_item(item)
    except ManifestError:
        raise
    except Exception as error:  # lhotse raises whatever the malformed field happens to break
        raise ManifestError(f"{where}: not a valid lhotse manifest line: {one_line(error)}") from error


def check_cut(cut: Any, where: str) -> None:
    """Raise ManifestError unless the fields that others rely on have sane values."""
    try:
        problem = _cut_problem(cut)
    except Exception as error:  # malformed fields break lhotse's properties in many ways
        problem = f"well-formed fields ({one_line(error)})"
    if problem:
        raise ManifestError(f"{where}: expected {problem} in the cut")


def one_line(error: Exception) -> str:
    """The message of a foreign exception, short and on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _cut_problem(cut: Any) -> str:
    """What the cut lacks, or an empty string."""
    if not isinstance(cut.id, str) or not cut.id:
        return "an id"
    if not _within(cut.duration, MAX_CUT_S) or cut.duration <= 0:
        return f"a duration between 0 and {MAX_CUT_S:g} s"
    if not isinstance(cut.sampling_rate, int) or not 0 < cut.sampling_rate <= MAX_SAMPLE_RATE:
        return f"a sampling rate between 1 and {MAX_SAMPLE_RATE} Hz"
    if not cut.has_recording:
        return "a recording"
    if any(
        not isinstance(s.text, str | None) or not isinstance(s.speaker, str | None) for s in cut.supervisions
    ):
        return "strings as text and speaker"
    if any(not _within(s.start, 1e9) for s in cut.supervisions):
        return "a start time in every supervision"
    return ""


def _check_sources(node: Any, where: str, directory: Path) -> None:
    """Refuse sources other than files, at any depth, and resolve relative paths."""
    if isinstance(node, list):
        for child in node:
            _check_sources(child, where, directory)
    if not isinstance(node, dict):
        return
    sources = node.get("sources")
    for source in sources if isinstance(sources, list) else []:
        kind, location = (
            (source.get("type"), source.get("source")) if isinstance(source, dict) else (None, None)
        )
        if (
            kind != "file"
            or not isinstance(location, str)
            or "://" in location
            or location.startswith("pipe:")
        ):
            raise ManifestError(
                f"{where}: expected audio of source type 'file', found {kind!r}; store it in files"
            )
        if not Path(location).is_absolute() and (directory / location).is_file():
            source["source"] = str(directory / location)
    for child in node.values():
        _check_sources(child, where, directory)


def _without_placeholder(item: dict[str, Any]) -> dict[str, Any]:
    """A cut of lhotse Shar without the source that stands for the bytes in the shard, and names nothing."""
    recording = item.get("recording")
    if not isinstance(recording, dict) or recording.get("sources") != IN_SHARD:
        return item
    return {**item, "recording": {**recording, "sources": []}}


def _within(value: Any, limit: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= limit


def _kind(item: dict[str, Any]) -> str:
    for key, kind in (
        ("sources", "a recording"),
        ("recording_id", "a supervision"),
        ("audio_filepath", "NeMo"),
    ):
        if key in item:
            return kind
    return f"an object with {', '.join(list(item)[:4]) or 'nothing in it'}"


def _write_lines(cuts: Iterable[Any], stream: Any) -> None:
    for cut in cuts:
        stream.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
