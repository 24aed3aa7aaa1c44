"""Prompts of a telephone exchange: a reader, a microphone and words that no training here has heard.

    python egs/english/prompts.py OUT_DIR [--data-dir DIR]

Asterisk's core sounds in American English, recorded by Allison Smith (CC BY-SA 3.0), are downloaded from
their publisher, or read below DIR: `core-sounds-en.txt`, a line `NAME: WORDS` for each, and the recordings as
NAME.sln16 (16-bit samples at 16 kHz and nothing else), NAME.wav or NAME.flac. OUT_DIR gets two parts,
`dev-prompts.jsonl.gz`, to choose by, and `test-prompts.jsonl.gz`, and of .sln16 copies in FLAC. Left out are
prompts of less than three words, and those with digits or with what is no speech, in brackets.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse import MonoCut, SupervisionSegment
from sources import Source, download_source
from splits import words_of

from asr.data.manifests import cut_text, file_recording, write_cuts
from asr.errors import AsrError, DataError
from asr.text.lines import read_lines

ASTERISK = Source(
    page="https://www.asterisk.org/",
    licence="CC BY-SA 3.0",
    archive="https://downloads.asterisk.org/pub/telephony/sounds/asterisk-core-sounds-en-sln16-current.tar.gz",
    max_bytes=200_000_000,
    pattern="*",
    strip=0,
)
MAX_RAW_BYTES = 10_000_000
TEXT, RAW, SUFFIXES = "core-sounds-en.txt", ".sln16", (".sln16", ".wav", ".flac")
RATE = 16000
LEAST_WORDS = 3
PARTS = ("dev-prompts", "test-prompts")


class Prompt(NamedTuple):
    """A prompt and its recording."""

    name: str
    words: str
    path: Path


def prompts(folder: Path) -> Iterator[Prompt]:
    """Those of a folder that are spoken words and recorded; raises DataError if it has no text."""
    text = folder / TEXT
    if not text.is_file():
        raise DataError(f"{text}: expected the words of Asterisk's core sounds, found no such file")
    for _, line in read_lines(text):
        name, _, said = line.partition(":")
        words = "" if line.startswith(";") or "[" in said else words_of(said)
        paths = [path for path in (folder / f"{name}{suffix}" for suffix in SUFFIXES) if path.is_file()]
        if paths and len(words.split()) >= LEAST_WORDS:
            yield Prompt(name.replace("/", "_"), words, paths[0])


def prompt_cut(prompt: Prompt, copies: Path) -> MonoCut:
    """The cut of a prompt; a recording without a header is copied to `copies`. Raises AsrError."""
    name, words, path = prompt
    if path.suffix == RAW:
        path = copies / f"{name}.flac"
        _copy(prompt.path, path)
    recording = file_recording(path.absolute(), name)
    said = SupervisionSegment(
        name, name, 0, recording.duration, text=words, language="English", speaker="allison"
    )
    return MonoCut(name, 0, recording.duration, 0, supervisions=[said], recording=recording)


def _copy(raw: Path, path: Path) -> None:
    size = raw.stat().st_size
    if size % 2 or not 0 < size <= MAX_RAW_BYTES:
        raise DataError(f"{raw}: expected 16-bit samples, {MAX_RAW_BYTES} bytes at most, found {size} bytes")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.fromfile(raw, "<i2"), RATE)


def prepare(out_dir: Path, data_dir: Path | None = None) -> dict[str, list[MonoCut]]:
    """Write both parts, a prompt into that of the parity of its name's checksum; raises AsrError."""
    if data_dir is None:
        data_dir = download_source(ASTERISK, "asterisk", out_dir / "download", holding=TEXT)
    parts: dict[str, list[MonoCut]] = {part: [] for part in PARTS}
    names = set[str]()
    for prompt in prompts(data_dir):
        part = PARTS[zlib.crc32(prompt.name.encode()) % 2]
        if prompt.name in names:
            raise DataError(f"{data_dir / TEXT}: expected each prompt once, found {prompt.name} again")
        names.add(prompt.name)
        parts[part].append(prompt_cut(prompt, out_dir / "recordings"))
    if not all(parts.values()):
        raise DataError(f"{data_dir}: expected recorded prompts, found {sum(map(len, parts.values()))}")
    out_dir.mkdir(parents=True, exist_ok=True)
    for part, cuts in parts.items():
        write_cuts(cuts, out_dir / f"{part}.jsonl.gz")
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, print."""
    parser = argparse.ArgumentParser(description="Prompts of a telephone exchange as two parts.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data-dir", type=Path, help="folder with the prompts instead of a download")
    args = parser.parse_args(arguments)
    try:
        parts = prepare(args.out_dir, args.data_dir)
    except AsrError as error:
        print(f"prompts.py: {error}", file=sys.stderr)
        return 1
    for part, cuts in parts.items():
        words = sum(len(cut_text(cut).split()) for cut in cuts)
        minutes = sum(cut.duration for cut in cuts) / 60
        print(f"{args.out_dir / part}.jsonl.gz: {len(cuts)} prompts, {words} words, {minutes:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
