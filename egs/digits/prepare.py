"""Digits: from single recordings to a corpus of digit strings.

    python egs/digits/prepare.py OUT_DIR [--data-dir DIR] [--split official|speakers]

The Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) has files
`recordings/{digit}_{speaker}_{index}.wav`. Without --data-dir it is downloaded; with no connection an
equivalent corpus is synthesised (synthesise.py) and marked so.

train   isolated digits; training joins them into strings as it goes
dev     strings of 1 to 7 digits of one speaker, made from indices 5 to 7 of the training side
test    strings of indices 0 to 4 (`--split official`), or of all recordings of --test-speakers
        (`--split speakers`, which then are in neither train nor dev)
long    the recordings of test in strings of 70 digits or more, ten times the longest of training

In `--repeats` random arrangements every dev and test recording is used exactly once each. Strings are
16-bit files under OUT_DIR/strings with low noise in the gaps; each cut's alignment `word` says where in
the file every digit is, so that delays can be measured.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse.supervision import AlignmentItem

from asr.data.download import OfflineError, fetch, unpack
from asr.data.manifests import CorpusCard, file_recording, make_cut, save_card, write_cuts
from asr.errors import AsrError, ManifestError
from asr.lengths import samples_to_seconds, seconds_to_samples

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip"
MAX_ARCHIVE_BYTES = 500_000_000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"([0-9])_([^_]+)_([0-9]+)\.wav")
TEST_INDICES = range(5)
DEV_INDICES = range(5, 8)
PARTS = ("train", "dev", "test", "long")
LONGEST_STRING = 7
LONG_STRING = 10 * LONGEST_STRING
GAP_S = (0.05, 0.4)
EDGE_S = (0.0, 0.3)
GAP_LEVEL_DB = (-80.0, -50.0)


class Digit(NamedTuple):
    """One recording of one digit."""

    path: Path
    digit: int
    speaker: str
    index: int


class Parts(NamedTuple):
    """Recordings of each part of the corpus."""

    train: list[Digit]
    dev: list[Digit]
    test: list[Digit]


def find_digits(data_dir: Path) -> list[Digit]:
    """All recordings under DIR/recordings (or DIR), in a fixed order; raises ManifestError if none."""
    folder = data_dir / "recordings" if (data_dir / "recordings").is_dir() else data_dir
    found = []
    for path in folder.glob("*.wav"):
        if match := NAME.fullmatch(path.name):
            digit, speaker, index = match.groups()
            found.append(Digit(path.resolve(), int(digit), speaker, int(index)))
    if not found:
        raise ManifestError(f"{folder}: expected files named DIGIT_SPEAKER_INDEX.wav, found none")
    return sorted(found, key=lambda d: (d.speaker, d.digit, d.index))


def split_digits(digits: Sequence[Digit], split: str, test_speakers: Sequence[str]) -> Parts:
    """Divide recordings by index ("official") or by speaker; raises ManifestError if a part is empty."""
    if split == "official":
        test = [d for d in digits if d.index in TEST_INDICES]
        rest = [d for d in digits if d.index not in TEST_INDICES]
    else:
        missing = set(test_speakers) - {d.speaker for d in digits}
        if missing:
            known = ", ".join(sorted({d.speaker for d in digits}))
            raise ManifestError(
                f"--test-speakers: no recordings of {', '.join(sorted(missing))}; there are {known}"
            )
        test = [d for d in digits if d.speaker in test_speakers]
        rest = [d for d in digits if d.speaker not in test_speakers]
    parts = Parts(
        train=[d for d in rest if d.index not in DEV_INDICES],
        dev=[d for d in rest if d.index in DEV_INDICES],
        test=test,
    )
    for name, part in parts._asdict().items():
        if not part:
            raise ManifestError(f"--split {split}: expected recordings for {name}, found none")
    return parts


def isolated_cut(digit: Digit):
    """A cut of one whole recording."""
    cut_id = digit.path.stem
    recording = file_recording(digit.path, cut_id)
    return make_cut(recording, cut_id, WORDS[digit.digit], speaker=digit.speaker, language="English")


def arrange(digits: Sequence[Digit], rng: np.random.Generator) -> list[list[Digit]]:
    """Strings of 1 to 7 digits of one speaker that use every recording once."""
    strings = []
    for speaker in sorted({d.speaker for d in digits}):
        own = [d for d in digits if d.speaker == speaker]
        order = [own[i] for i in rng.permutation(len(own))]
        while order:
            length = int(rng.integers(1, LONGEST_STRING + 1))
            strings.append(order[:length])
            del order[:length]
    return strings


def arrange_long(digits: Sequence[Digit], repeats: int, rng: np.random.Generator) -> list[list[Digit]]:
    """Strings of LONG_STRING digits or more of one speaker that use every recording `repeats` times.

    A speaker with fewer recordings than that has them all in one string.
    """
    strings = []
    for speaker in sorted({d.speaker for d in digits}):
        own = [d for d in digits if d.speaker == speaker]
        order = np.concatenate([rng.permutation(len(own)) for _ in range(repeats)])
        pieces = np.array_split(order, max(1, len(order) // LONG_STRING))
        strings += [[own[i] for i in piece] for piece in pieces]
    return strings


def string_cut(string: Sequence[Digit], cut_id: str, path: Path, rng: np.random.Generator):
    """Write a string of digits as one 16-bit file and return its cut, with the place of every word."""
    recordings = [soundfile.read(digit.path, dtype="float32") for digit in string]
    rates = {rate for _, rate in recordings}
    if len(rates) != 1:
        raise ManifestError(f"{string[0].path.parent}: expected one sample rate, found {sorted(rates)}")
    rate = rates.pop()
    between = rng.uniform(*GAP_S, size=len(string) - 1).tolist()
    before, after = rng.uniform(*EDGE_S, size=2).tolist()
    level = 10 ** (rng.uniform(*GAP_LEVEL_DB) / 20)
    pieces, words, place = [], [], 0
    for silence_s, spoken in zip((before, *between, after), (*recordings, None), strict=True):
        silence = rng.standard_normal(seconds_to_samples(silence_s, rate), dtype=np.float32) * np.float32(
            level
        )
        pieces.append(silence)
        place += len(silence)
        if spoken is not None:
            samples = spoken[0] if spoken[0].ndim == 1 else spoken[0].mean(axis=1)
            pieces.append(samples)
            words.append((place, len(samples)))
            place += len(samples)
    _write_wav(path, np.concatenate(pieces), rate)
    alignment = [
        AlignmentItem(WORDS[d.digit], samples_to_seconds(start, rate), samples_to_seconds(length, rate))
        for d, (start, length) in zip(string, words, strict=True)
    ]
    return make_cut(
        file_recording(path.resolve(), cut_id),
        cut_id,
        " ".join(WORDS[d.digit] for d in string),
        speaker=string[0].speaker,
        language="English",
        alignment={"word": alignment},
    )


def string_cuts(digits: Sequence[Digit], part: str, out_dir: Path, repeats: int, seed: int) -> list:
    """Strings of a part of the corpus, `repeats` arrangements of all its recordings."""
    rng = np.random.default_rng([seed, PARTS.index(part)])
    if part == "long":
        strings = arrange_long(digits, repeats, rng)
    else:
        strings = [string for _ in range(repeats) for string in arrange(digits, rng)]
    folder = out_dir / "strings" / part
    folder.mkdir(parents=True, exist_ok=True)
    cuts, counts = [], {}
    for string in strings:
        speaker = string[0].speaker
        counts[speaker] = counts.get(speaker, 0) + 1
        cut_id = f"{speaker}_{part}_{counts[speaker]:03d}"
        cuts.append(string_cut(string, cut_id, folder / f"{cut_id}.wav", rng))
    wanted = {f"{cut.id}.wav" for cut in cuts}
    for stale in folder.iterdir():
        if stale.name not in wanted:
            stale.unlink()
    return cuts


def obtain(out_dir: Path, seed: int) -> tuple[Path, CorpusCard]:
    """Download the corpus, or, with no connection, say so and synthesise one."""
    try:
        archive = fetch(URL, out_dir / "fsdd.zip", MAX_ARCHIVE_BYTES)
    except OfflineError as error:
        print(f"{error}: synthesising an equivalent corpus with espeak-ng (marked as synthetic)")
        from synthesise import LICENCE, SAMPLE_RATE, synthesise_corpus

        folder = synthesise_corpus(out_dir / f"synthetic-{seed}", seed=seed)
        card = CorpusCard(
            name="digits (synthetic)",
            source="espeak-ng, egs/digits/synthesise.py",
            licence=LICENCE,
            sample_rate=SAMPLE_RATE,
            synthetic=True,
        )
        return folder, card
    return unpack(archive, out_dir / "recordings", "*/recordings/*.wav"), published_card()


def published_card() -> CorpusCard:
    """The card of the published corpus."""
    return CorpusCard(
        name="digits",
        source="Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset",
        licence="CC BY-SA 4.0",
        sample_rate=8000,
    )


def prepare(
    out_dir: Path,
    data_dir: Path | None = None,
    split: str = "official",
    test_speakers: Sequence[str] = (),
    repeats: int = 4,
    seed: int = 0,
) -> dict[str, list]:
    """Write manifests, strings and card into `out_dir`; returns the cuts of each part."""
    out_dir.mkdir(parents=True, exist_ok=True)
    folder, card = (data_dir, published_card()) if data_dir is not None else obtain(out_dir, seed)
    digits = find_digits(folder)
    if split == "speakers" and not test_speakers:
        test_speakers = sorted({d.speaker for d in digits})[-2:]
    parts = split_digits(digits, split, test_speakers)
    cuts = {
        "train": [isolated_cut(digit) for digit in parts.train],
        "dev": string_cuts(parts.dev, "dev", out_dir, repeats, seed),
        "test": string_cuts(parts.test, "test", out_dir, repeats, seed),
        "long": string_cuts(parts.test, "long", out_dir, repeats, seed),
    }
    for part, part_cuts in cuts.items():
        write_cuts(part_cuts, out_dir / f"{part}.jsonl.gz")
    unseen = f", test speakers {', '.join(test_speakers)}" if split == "speakers" else ""
    save_card(
        card.model_copy(update={"note": f"split {split}{unseen}, repeats {repeats}, seed {seed}"}), out_dir
    )
    return cuts


def _write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    soundfile.write(aside, samples, rate, subtype="PCM_16", format="WAV")
    shutil.move(aside, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data-dir", type=Path, help="folder with recordings/*.wav instead of a download")
    parser.add_argument("--split", choices=("official", "speakers"), default="official")
    parser.add_argument(
        "--test-speakers", default="", help="names with commas; default: the last two by name"
    )
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    speakers = [name for name in args.test_speakers.split(",") if name]
    try:
        cuts = prepare(args.out_dir, args.data_dir, args.split, speakers, args.repeats, args.seed)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for part, part_cuts in cuts.items():
        seconds = sum(cut.duration for cut in part_cuts)
        words = sum(len(cut.supervisions[0].text.split()) for cut in part_cuts)
        print(f"{part:5} {len(part_cuts):5} cuts {words:5} words {seconds / 3600:6.3f} h")
    print(f"manifests in {args.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
