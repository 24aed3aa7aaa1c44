"""Transcripts as text: txt, json, srt, vtt, ctm, textgrid. Pure functions from a transcript to a string.

txt     the text, one line
json    one object: id, text, duration_s, words with start_s, end_s (ms precision) and confidence; maybe
        nbest, hypotheses with their scores (asr.transcript.Alternative)
srt     SubRip cues, `00:00:01,500 --> 00:00:02,750`
vtt     WebVTT cues (W3C), `00:00:01.500 --> 00:00:02.750`, with & < > escaped
ctm     NIST time-marked words, `id channel start duration word confidence`, 10 ms precision
textgrid  a tier of words for Praat (asr.cli.textgrid)

A cue holds at most two lines of 42 characters and 7 seconds, and ends at a pause of a second or more: common
subtitle practice (BBC and Netflix guides). Times are rounded once, to the unit shown, before they are split
into hours, minutes and seconds, so that 59.9996 s is `00:01:00.000` and never `00:00:60.000`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from asr.cli.textgrid import Interval, textgrid
from asr.errors import ConfigError
from asr.transcript import Alternative, as_json

LINE_CHARACTERS = 42
CUE_LINES = 2
CUE_S = 7.0
PAUSE_S = 1.0
MIN_CUE_S = 0.3
"""A cue stays at least this long if the next one leaves room: emitted words can be very short."""


class WordLike(Protocol):
    """A word with its times in seconds and its confidence in 0..1."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def start_s(self) -> float: ...  # noqa: D102
    @property
    def end_s(self) -> float: ...  # noqa: D102
    @property
    def confidence(self) -> float: ...  # noqa: D102


class TranscriptLike(Protocol):
    """What is rendered; `asr.recognizer.Transcript` is one."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def duration_s(self) -> float: ...  # noqa: D102
    @property
    def words(self) -> Sequence[WordLike]: ...  # noqa: D102
    @property
    def alternatives(self) -> Sequence[Alternative]: ...  # noqa: D102


class Cue(NamedTuple):
    """A subtitle: lines shown from start to end, in milliseconds."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def render(transcript: TranscriptLike, format_name: str, recording: str) -> str:
    """Return a transcript in the named format, ending with a newline; `recording` is its id (json, ctm).

    Raises ConfigError listing the formats if there is none of this name.
    """
    if format_name not in FORMATS:
        raise ConfigError(f"--format: expected {', '.join(FORMATS)}, found {format_name!r}")
    return FORMATS[format_name](transcript, recording)


def render_txt(transcript: TranscriptLike, recording: str) -> str:
    """Return the text on one line."""
    return " ".join(transcript.text.split()) + "\n"


def render_json(transcript: TranscriptLike, recording: str) -> str:
    """Return one JSON object on one line, so that several recordings are JSON lines."""
    words = [
        {
            "text": word.text,
            "start_s": round(word.start_s, 3),
            "end_s": round(word.end_s, 3),
            "confidence": round(word.confidence, 4),
        }
        for word in transcript.words
    ]
    entry: dict[str, object] = {
        "id": recording,
        "text": transcript.text,
        "duration_s": round(transcript.duration_s, 3),
        "words": words,
    }
    if transcript.alternatives:
        entry["nbest"] = [as_json(alternative) for alternative in transcript.alternatives]
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def render_srt(transcript: TranscriptLike, recording: str) -> str:
    """Return SubRip subtitles, numbered from 1; empty without words."""
    return "".join(
        f"{number}\n{clock(cue.start_ms, ',')} --> {clock(cue.end_ms, ',')}\n{_lines(cue, _plain)}\n\n"
        for number, cue in enumerate(cues(transcript.words), 1)
    )


def render_vtt(transcript: TranscriptLike, recording: str) -> str:
    """Return WebVTT subtitles."""
    return "WEBVTT\n" + "".join(
        f"\n{clock(cue.start_ms, '.')} --> {clock(cue.end_ms, '.')}\n{_lines(cue, _escape)}\n"
        for cue in cues(transcript.words)
    )


def render_ctm(transcript: TranscriptLike, recording: str) -> str:
    """Return NIST CTM lines; the id has its white space replaced, as the format separates by spaces."""
    name = re.sub(r"\s+", "_", recording) or "-"
    lines = []
    for word in transcript.words:
        start, end = round(100 * word.start_s), round(100 * word.end_s)
        lines.append(
            f"{name} 1 {start / 100:.2f} {max(end - start, 0) / 100:.2f} {word.text} {word.confidence:.4f}\n"
        )
    return "".join(lines)


def render_textgrid(transcript: TranscriptLike, recording: str) -> str:
    """Return a Praat TextGrid with one tier, the words."""
    words = [Interval(word.start_s, word.end_s, word.text) for word in transcript.words]
    return textgrid(transcript.duration_s, {"words": words})


def cues(words: Sequence[WordLike]) -> list[Cue]:
    """Group words into subtitles in order of time, none overlapping the next."""
    groups: list[list[WordLike]] = []
    for word in words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    found: list[Cue] = []
    for index, group in enumerate(groups):
        start = max(round(1000 * group[0].start_s), found[-1].end_ms if found else 0)
        end = max(round(1000 * group[-1].end_s), start + round(1000 * MIN_CUE_S))
        if index + 1 < len(groups):
            end = min(end, max(round(1000 * groups[index + 1][0].start_s), start + 1))
        found.append(Cue(start, end, tuple(_wrap([word.text for word in group]))))
    return found


def clock(milliseconds: int, point: str) -> str:
    """Return `HH:MM:SS` and milliseconds behind `point`; hours have as many digits as they need."""
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{thousandths:03d}"


def _fits(group: Sequence[WordLike], word: WordLike) -> bool:
    if word.start_s - group[-1].end_s >= PAUSE_S or word.end_s - group[0].start_s > CUE_S:
        return False
    return len(_wrap([*(member.text for member in group), word.text])) <= CUE_LINES


def _wrap(words: Sequence[str]) -> list[str]:
    """Break at the line length; a longer word has a line of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= LINE_CHARACTERS:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _lines(cue: Cue, mask: Callable[[str], str]) -> str:
    return "\n".join(mask(line) for line in cue.lines)


def _plain(line: str) -> str:
    # SubRip has no escapes; the arrow is the one text that would be read as a time.
    return line.replace("-->", "->")


def _escape(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


FORMATS: Mapping[str, Callable[[TranscriptLike, str], str]] = MappingProxyType(
    {
        "txt": render_txt,
        "json": render_json,
        "srt": render_srt,
        "vtt": render_vtt,
        "ctm": render_ctm,
        "textgrid": render_textgrid,
    }
)
"""The formats by name; each takes a transcript and the id of its recording."""
