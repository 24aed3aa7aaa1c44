"""Transcript files to score: what each utterance says, and who says it.

==================  ====================================================================================
format              a line
==================  ====================================================================================
JSON lines          ``{"id": "u1", "text": "seven", "speaker": "theo"}``, speaker optional: our hyp.jsonl,
                    lhotse supervisions
lhotse cuts         ``{"id": "u1", "supervisions": [{"text": ...}]}`` and mixed cuts; texts are joined
Kaldi text          ``u1 seven three nine``
plain (`.txt`)      ``seven three nine``; the id is the number of the line, from 1
==================  ====================================================================================

A file whose first line starts with ``{`` is JSON lines, one called `.txt` is plain, any other is Kaldi text.
Each may be gzipped (`.gz`). Lines are bounded, ids must differ, all errors name file and line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from asr.errors import ManifestError
from asr.score.words import HeardWord

MAX_LINE_BYTES = 16_000_000
"""A cut of a day-long recording with all its supervisions stays below this."""


class TranscriptLine(NamedTuple):
    """One utterance of a transcript file."""

    id: str
    text: str
    speaker: str | None
    words: tuple[HeardWord, ...] = ()
    """With times and confidences, where the file has them as our hyp.jsonl does."""


def read_transcripts(path: Path | str) -> dict[str, str]:
    """Return the text of every utterance by id, in file order; raises ManifestError naming file and line."""
    return {line.id: line.text for line in read_transcript_lines(path)}


def read_speakers(path: Path | str) -> dict[str, str]:
    """Return the speaker of every utterance that has one; raises ManifestError naming file and line."""
    return {line.id: line.speaker for line in read_transcript_lines(path) if line.speaker is not None}


def read_transcript_lines(path: Path | str) -> list[TranscriptLine]:
    """Return all utterances of a transcript file, in order; raises ManifestError naming file and line."""
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: expected a transcript file, found nothing there")
    parse: Callable[[str, int], TranscriptLine] | None = None
    found: dict[str, TranscriptLine] = {}
    for number, line in _lines(path):
        if not line.strip() and parse is not _plain:
            continue
        parse = parse or _format(path, line)
        try:
            entry = parse(line, number)
        except ValueError as error:
            raise ManifestError(f"{path}:{number}: {error}") from None
        if entry.id in found:
            raise ManifestError(f"{path}:{number}: the id {entry.id} was given before; ids must differ")
        found[entry.id] = entry
    if not found:
        raise ManifestError(f"{path}: expected at least one transcript, found an empty file")
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number the lines from 1; a damaged archive, a huge line or other bytes than UTF-8 are errors."""
    number = 0
    try:
        with _open(path) as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ManifestError(f"{path}:{number}: expected at most {MAX_LINE_BYTES} bytes a line")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}:{number}: expected UTF-8 text, found other bytes") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{path}: cannot be read after line {number}: {error}") from error


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _format(path: Path, first_line: str) -> Callable[[str, int], TranscriptLine]:
    if first_line.lstrip().startswith("{"):
        return _json
    return _plain if path.name.removesuffix(".gz").endswith(".txt") else _kaldi


def _plain(line: str, number: int) -> TranscriptLine:
    return TranscriptLine(str(number), line, None)


def _kaldi(line: str, number: int) -> TranscriptLine:
    name, *words = line.split(maxsplit=1)
    return TranscriptLine(name, words[0] if words else "", None)


def _json(line: str, number: int) -> TranscriptLine:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, found text that is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected an id, found {name!r}; every line needs one")
    if "text" in entry:
        return TranscriptLine(
            name, _text(entry["text"]), _speaker(entry.get("speaker")), _words(entry.get("words"))
        )
    if not ({"supervisions", "tracks"} & entry.keys()):
        raise ValueError(f"expected text or supervisions, found only {', '.join(map(str, entry))}")
    supervisions = _supervisions(entry)
    texts = [_text(supervision.get("text")) for supervision in supervisions]
    speakers = {_speaker(supervision.get("speaker")) for supervision in supervisions}
    return TranscriptLine(name, " ".join(filter(None, texts)), speakers.pop() if len(speakers) == 1 else None)


def _words(value: object) -> tuple[HeardWord, ...]:
    """Words as our hyp.jsonl has them; other programs write other things under this name."""
    try:
        words = [HeardWord(*(w[name] for name in HeardWord._fields)) for w in cast(Any, value or ())]
    except (TypeError, KeyError):
        return ()
    known = all(isinstance(word.text, str) and _is_share(word.confidence) for word in words)
    return tuple(words) if known else ()


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _supervisions(cut: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the supervisions of a lhotse cut; those of a mixed cut are in its tracks, in order."""
    tracks = cut.get("tracks", [])
    cuts = [cut, *(_mapping(_mapping(track, "track").get("cut"), "cut") for track in _list(tracks))]
    return [_mapping(entry, "supervision") for one in cuts for entry in _list(one.get("supervisions", []))]


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected each {what} to be an object, found {type(value).__name__}")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of supervisions or tracks, found {type(value).__name__}")
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"expected text to be a string, found {value!r}")
    return value


def _speaker(value: object) -> str | None:
    return None if value is None else str(value)
