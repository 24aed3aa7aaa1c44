"""Recorded English heard live by the model in the package: what was said and heard, when the first word came.

    python egs/english/listen.py [DIR] [--model DIR]

DIR, by default samples/ beside this file, holds `text`, a line `ID WORDS` for each recording, and the
recordings as ID.opus, ID.flac or ID.wav. All of them are heard, in pieces of 100 ms. Two times are printed:
where the first word was spoken, as the model has it, and how much audio had been fed when a word was first
shown, right or wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asr.errors import AsrError, DataError
from asr.live import feed_file
from asr.recognizer import Recognizer, load
from asr.score.report import summary_line
from asr.score.transcripts import read_transcripts
from asr.score.wer import score_pairs

SAMPLES = Path(__file__).parent / "samples"
SUFFIXES = (".opus", ".flac", ".wav")
CHUNK_S = 0.1


class Heard(NamedTuple):
    """What was recognised in one recording; times in seconds, None without a word."""

    text: str
    duration_s: float
    first_word_s: float | None
    """Where the first word of the result begins."""
    shown_s: float | None
    """Audio fed when a word was first shown."""


def find_recordings(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Id, recording and words of every line of `folder`/text. Raises DataError for what is not there."""
    if not (folder / "text").is_file():
        raise DataError(f"{folder / 'text'}: expected a line 'ID WORDS' per recording, found no such file")
    for name, words in read_transcripts(folder / "text").items():
        found = [path for path in (folder / f"{name}{suffix}" for suffix in SUFFIXES) if path.is_file()]
        if not found:
            raise DataError(f"{folder / 'text'}: {name}: found no {name}{' or '.join(SUFFIXES)} beside it")
        yield name, found[0], words


def hear(recognizer: Recognizer, path: Path) -> Heard:
    """Feed a recording as live audio. Raises AudioError, StreamingError."""
    shown_s, last = None, None
    for last in feed_file(recognizer, path, CHUNK_S):
        if shown_s is None and last.transcript.text.strip():
            shown_s = last.heard_s
    assert last is not None  # there is a final result always
    words = last.transcript.words
    return Heard(last.transcript.text, last.heard_s, words[0].start_s if words else None, shown_s)


def describe(name: str, said: str, heard: Heard) -> str:
    """Three lines of a recording."""
    timing = "no word was heard"
    if heard.first_word_s is not None and heard.shown_s is not None:
        timing = f"first word at {heard.first_word_s:.2f} s, shown at {heard.shown_s:.2f} s"
    return f"{name} ({heard.duration_s:.1f} s): {timing}\n  said   {said}\n  heard  {heard.text}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Hear every recording and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=SAMPLES)
    parser.add_argument("--model", type=Path, help="a model directory; by default the one in the package")
    options = parser.parse_args(arguments)
    try:
        recordings = list(find_recordings(options.folder))
        recognizer = load(options.model)
        said, heard = dict[str, str](), dict[str, str]()
        for name, path, words in recordings:
            result = hear(recognizer, path)
            said[name], heard[name] = words, result.text
            print(describe(name, words, result), flush=True)
        print(summary_line(score_pairs(said, heard, normalization="basic")))
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
