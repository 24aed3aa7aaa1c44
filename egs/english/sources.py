"""Where the corpora of egs/english come from, and the folders that they are read from: `find_folders`.

Archives that are fetched keep their publisher's layout below OUT_DIR/download/NAME.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from asr.data.download import OfflineError, fetch, unpack
from asr.errors import DataError, ManifestError

SPEECH = ("speechocean762", "kathleen", "ljspeech")
ACOUSTICS = ("noise", "rir")


class Source(NamedTuple):
    """A corpus as its publisher offers it."""

    page: str
    licence: str
    archive: str
    max_bytes: int
    """A larger download is refused."""
    pattern: str
    """Files of the archive that are wanted."""
    strip: int = 1
    """Folders of the archive above the layout that is read."""


SOURCES = {
    "speechocean762": Source(
        page="https://www.openslr.org/101/",
        licence="free for commercial and non-commercial use",
        archive="https://www.openslr.org/resources/101/speechocean762.tar.gz",
        max_bytes=1_000_000_000,
        pattern="*speechocean762/*",
    ),
    "kathleen": Source(
        page="https://github.com/rhasspy/dataset-voice-kathleen",
        licence="CC0",
        archive="https://github.com/rhasspy/dataset-voice-kathleen/archive/refs/heads/master.zip",
        max_bytes=3_000_000_000,
        pattern="*/data/*",
    ),
    "ljspeech": Source(
        page="https://keithito.com/LJ-Speech-Dataset/",
        licence="public domain",
        archive="https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
        max_bytes=4_000_000_000,
        pattern="*LJSpeech-1.1/*",
    ),
    "noise": Source(
        page="https://www.tensorflow.org/datasets/catalog/speech_commands",
        licence="CC BY 4.0",
        archive="https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        max_bytes=4_000_000_000,
        pattern="*_background_noise_/*.wav",
    ),
    "rir": Source(
        page="https://www.openslr.org/28/",
        licence="Apache-2.0",
        archive="https://www.openslr.org/resources/28/rirs_noises.zip",
        max_bytes=2_000_000_000,
        pattern="*/simulated_rirs/*room/Room0?1/*-00001.wav",  # one place in each of 30 of the 600 rooms
        strip=2,
    ),
}


def find_folders(out_dir: Path, data_dir: Path | None, only: Collection[str] = ()) -> dict[str, Path]:
    """The folders of the corpora in `only`, below `data_dir` or downloaded; raises DataError if one is not.

    By default those are all of SPEECH and, below `data_dir`, those of ACOUSTICS that are there.
    """
    unknown = sorted(set(only) - SOURCES.keys())
    if unknown or (only and not set(only) & set(SPEECH)):
        expected = f"expected {', '.join(SPEECH)}, with them perhaps {', '.join(ACOUSTICS)}"
        raise ManifestError(f"--only: {expected}, found {', '.join(unknown or sorted(only))}")
    if data_dir is None:
        return {name: download(name, out_dir / "download") for name in SOURCES if name in (only or SPEECH)}
    at_hand = [name for name in ACOUSTICS if (data_dir / name).is_dir()]
    folders = {name: data_dir / name for name in SOURCES if name in (only or {*SPEECH, *at_hand})}
    for folder in folders.values():
        if not folder.is_dir():
            raise ManifestError(f"{folder}: expected a corpus, found no such folder; --only leaves it out")
    return folders


def download(name: str, directory: Path) -> Path:
    """Fetch and unpack a corpus below `directory`; raises DataError with no connection."""
    return download_source(SOURCES[name], name, directory, holding=f"{name}/")


def download_source(source: Source, name: str, directory: Path, holding: str) -> Path:
    """The same of any source; `holding`: what a folder given instead has to hold."""
    try:
        path = directory / f"{name}-{Path(source.archive).name}"
        archive = fetch(source.archive, path, source.max_bytes)
    except OfflineError as error:
        raise DataError(f"{error}; pass --data-dir with the folder that holds {holding}") from error
    return unpack(archive, directory / name, source.pattern, source.strip)
