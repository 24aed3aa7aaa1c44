"""yesno: sixty recordings of eight Hebrew words each, "ken" (YES) or "lo" (NO), one speaker.

    python egs/yesno/prepare.py OUT_DIR [--data-dir DIR]

The corpus (openslr.org/1) has files `waves_yesno/0_1_1_0_1_0_1_1.wav`, 1 for YES and 0 for NO. Split as
lhotse and icefall do it: of the files sorted by name every second one, from the first, is for training
(30), the others are the test set (30). The last `--dev` files of the training side are kept for
development.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from asr.data.download import OfflineError, fetch, unpack
from asr.data.manifests import CorpusCard, file_recording, make_cut, save_card, write_cuts
from asr.errors import AsrError, DataError, ManifestError

URL = "https://www.openslr.org/resources/1/waves_yesno.tar.gz"
MAX_ARCHIVE_BYTES = 50_000_000
NAME = re.compile(r"[01](_[01]){7}\.wav")
WORDS = {"0": "NO", "1": "YES"}
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
    cuts = {part: [recording_cut(path) for path in paths] for part, paths in parts.items()}
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
