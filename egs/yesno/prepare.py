"""yesno: sixty recordings of eight Hebrew words each, "ken" (YES) or "lo" (NO), one speaker.

    python egs/yesno/prepare.py OUT_DIR [--data-dir DIR]

The corpus (openslr.org/1) has files `waves_yesno/0_1_1_0_1_0_1_1.wav`, 1 for YES and 0 for NO. Split as
lhotse and icefall do it: of the files sorted by name every second one, from the first, is for training
(30), the others are the test set (30). The last `--dev` files of the training side are kept for
development.

Training recordings are cut into single words in the middle of their pauses, where eight words can be told
apart; training joins them into strings of changing length again. Without that a network learns that every
recording has eight words, and the 25 sequences by heart. Dev and test recordings stay whole.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asr.audio import read_audio
from asr.data.download import OfflineError, fetch, unpack
from asr.data.manifests import CorpusCard, file_recording, make_cut, save_card, write_cuts
from asr.errors import AsrError, DataError, ManifestError
from asr.lengths import samples_to_seconds

URL = "https://www.openslr.org/resources/1/waves_yesno.tar.gz"
MAX_ARCHIVE_BYTES = 50_000_000
NAME = re.compile(r"[01](_[01]){7}\.wav")
WORDS = {"0": "NO", "1": "YES"}
PAUSE_FRAMES = (12, 8, 5, 3)
"""Shortest pauses that are tried, in frames of 10 ms."""
THRESHOLDS_DB = range(8, 36, 2)
"""Levels below the loud parts of the recording that are tried as the limit of sound."""
WORD_FRAMES = 15
"""Shortest word."""
SPEAKER = "yesno"


def find_recordings(data_dir: Path) -> list[Path]:
    """The recordings under DIR/waves_yesno (or DIR), sorted by name; raises ManifestError if too few."""
    folder = data_dir / "waves_yesno" if (data_dir / "waves_yesno").is_dir() else data_dir
    found = sorted(path.resolve() for path in folder.glob("*.wav") if NAME.fullmatch(path.name))
    if not found:
        raise ManifestError(f"{folder}: expected files named 0_1_1_0_1_0_1_1.wav, found none")
    return found


def split_recordings(paths: Sequence[Path], dev: int) -> dict[str, list[Path]]:
    """Train, dev and test recordings; raises ManifestError if one is empty."""
    train, test = list(paths[::2]), list(paths[1::2])
    if not 0 < dev < len(train) or not test:
        raise ManifestError(
            f"--dev {dev}: expected between 1 and {len(train) - 1} of {len(train)} recordings"
        )
    return {"train": train[:-dev], "dev": train[-dev:], "test": test}


def recording_cut(path: Path):
    """A cut of a whole recording; its text is in its name."""
    text = " ".join(WORDS[mark] for mark in path.stem.split("_"))
    return make_cut(file_recording(path, path.stem), path.stem, text, speaker=SPEAKER, language="Hebrew")


def find_words(samples: np.ndarray, sample_rate: int, count: int) -> list[tuple[int, int]] | None:
    """Sample ranges of `count` stretches of sound between pauses; None if no threshold gives as many.

    The level is smoothed over 50 ms. The first reading that gives the count is taken, of the longest pauses
    first and of the loudest thresholds.
    """
    hop = sample_rate // 100
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), 2 * hop)[::hop]
    power = np.convolve((frames**2).mean(axis=1), np.ones(5) / 5, "same")
    level_db = 10 * np.log10(power + 1e-10)
    loud_db = np.percentile(level_db, 95)
    for pause, below_db in itertools.product(PAUSE_FRAMES, THRESHOLDS_DB):
        runs = _runs(level_db > loud_db - below_db, pause)
        words = [(a * hop, b * hop) for a, b in runs if b - a >= WORD_FRAMES]
        if len(words) == count:
            return words
    return None


def _runs(active: np.ndarray, pause: int) -> list[tuple[int, int]]:
    """Stretches of active frames; those less than `pause` apart are one."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(int)))
    runs: list[tuple[int, int]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if runs and start - runs[-1][1] < pause:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


def word_cuts(path: Path) -> list:
    """A cut for every word of a recording, from the middle of a pause to the middle of the next.

    The whole recording as one cut if its words cannot be told apart.
    """
    texts = [WORDS[mark] for mark in path.stem.split("_")]
    samples, rate = read_audio(path)
    words = find_words(samples, rate, len(texts))
    if words is None:
        return [recording_cut(path)]
    limits = [0, *((a[1] + b[0]) // 2 for a, b in itertools.pairwise(words)), len(samples)]
    recording = file_recording(path, path.stem)
    return [
        make_cut(
            recording,
            f"{path.stem}-{i}",
            text,
            speaker=SPEAKER,
            language="Hebrew",
            start_s=samples_to_seconds(limits[i], rate),
            duration_s=samples_to_seconds(limits[i + 1] - limits[i], rate),
        )
        for i, text in enumerate(texts)
    ]


def obtain(out_dir: Path) -> Path:
    """Download and unpack the corpus; raises DataError with no connection."""
    try:
        archive = fetch(URL, out_dir / "waves_yesno.tar.gz", MAX_ARCHIVE_BYTES)
    except OfflineError as error:
        raise DataError(f"{error}; pass --data-dir with the folder that holds waves_yesno") from error
    return unpack(archive, out_dir / "waves_yesno", "*waves_yesno/*.wav")


def prepare(out_dir: Path, data_dir: Path | None = None, dev: int = 5) -> dict[str, list]:
    """Write manifests and card into `out_dir`; returns the cuts of each part."""
    out_dir.mkdir(parents=True, exist_ok=True)
    folder = data_dir if data_dir is not None else obtain(out_dir)
    parts = split_recordings(find_recordings(folder), dev)
    cuts = {part: [recording_cut(path) for path in parts[part]] for part in ("dev", "test")}
    cuts = {"train": [cut for path in parts["train"] for cut in word_cuts(path)], **cuts}
    for part, part_cuts in cuts.items():
        write_cuts(part_cuts, out_dir / f"{part}.jsonl.gz")
    card = CorpusCard(
        name="yesno",
        source="https://www.openslr.org/1/",
        licence="CC BY",
        sample_rate=8000,
        note=f"split as in lhotse, last {dev} of the training side for development",
    )
    save_card(card, out_dir)
    return cuts


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data-dir", type=Path, help="folder with waves_yesno/*.wav instead of a download")
    parser.add_argument("--dev", type=int, default=5, help="recordings of the training side kept apart")
    args = parser.parse_args(arguments)
    try:
        cuts = prepare(args.out_dir, args.data_dir, args.dev)
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
