"""A part of a corpus in shards: recordings in a few large files, read in sequence, found by an index.

::

    train.shar/
        shards/cuts.000000.jsonl.gz     lhotse Shar: `CutSet.from_shar(in_dir="train.shar/shards")`
        shards/recording.000000.tar     what is heard in each of these cuts, and nothing else
        index.bin                       a row (ENTRY) for every cut: where its recording and its words lie
        words.bin                       ids, speakers and texts
        shards.yaml                     what it was made of, sizes, checksums

Training reads index.bin, words.bin and the bytes that they point at; no tar header and no JSON is parsed.
Memory: both files are mapped, not read, so that the system keeps what is in use; of recordings only the
one that is being decoded is held (at most MAX_MEMBER_BYTES), of files at most OPEN_SHARDS are open. Disks:
the system is asked to read a shard from its beginning to its end when it is opened.

Nothing in these files is trusted: names of files are made of numbers, every size and place is checked
before it is used, and every recording has a checksum.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from asr.audio import Samples, decode_audio
from asr.config import Config, load_config
from asr.data.manifests import (
    MAX_CUT_S,
    check_cut,
    parse_item,
    read_json_lines,
)
from asr.errors import AudioError, ManifestError
from asr.text.lines import MAX_LINE_BYTES

SUFFIX = ".shar"
SHARDS, INDEX, WORDS, CARD = "shards", "index.bin", "words.bin", "shards.yaml"
ENTRY = np.dtype(
    [
        ("duration_s", "<f8"),
        ("offset", "<u8"),  # byte of the tar file at which the recording begins
        ("words_at", "<u8"),  # byte of words.bin at which id, speaker and text begin
        ("shard", "<u4"),
        ("size", "<u4"),
        ("crc32", "<u4"),  # of the recording's bytes
        ("id_bytes", "<u4"),
        ("speaker_bytes", "<u4"),
        ("text_bytes", "<u4"),
    ]
)
MAX_MEMBER_BYTES = 512 * 2**20
"""Four hours of 16-bit samples at 16 kHz."""
OPEN_SHARDS = 64
SLACK_S = 0.5
"""A recording may be this much longer than its cut: MP3 headers count what decoders leave out."""

Format = Literal["flac", "opus", "original"]


class ShardsCard(Config):
    """What a part in shards is, and how it was made; kept as shards.yaml."""

    version: Literal[1] = 1
    manifest_sha256: str
    """Of the manifest that it was made of."""
    format: Format
    shard_size: int
    """Cuts in a shard; fewer in the last one, or where recordings could not be read."""
    skip_broken: bool = False
    shards: int = 0
    cuts: int = 0
    skipped: int = 0
    """Cuts left out because their recordings could not be read."""
    duration_s: float = 0.0
    audio_bytes: int = 0
    """Of all tar files."""
    index_sha256: str = ""
    words_sha256: str = ""


class Words(NamedTuple):
    """What is said in a cut, and by whom."""

    id: str
    speaker: str
    text: str


class ShardedPart:
    """The cuts of a part in shards, by number; see the module's text."""

    sharded = True

    def __init__(self, directory: Path | str) -> None:
        """Open and check a part; raises ManifestError or ConfigError naming what is wrong."""
        self.directory = Path(directory)
        self.card = load_config(self.directory / CARD, ShardsCard)
        size = self.card.cuts * ENTRY.itemsize
        self._index = _mapped(self.directory / INDEX, self.card.index_sha256, size).view(ENTRY)
        self._words = _mapped(self.directory / WORDS, self.card.words_sha256)
        _check_index(self._index, self.card, len(self._words), self.directory / INDEX)
        self._open: OrderedDict[int, int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker that is not forked opens the files itself."""
        return ShardedPart, (self.directory,)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def durations_s(self) -> npt.NDArray[np.float64]:
        """Seconds of every cut, (N,)."""
        return self._index["duration_s"]

    @property
    def runs(self) -> list[range]:
        """The cuts of each shard that has any."""
        ends = [*(np.flatnonzero(np.diff(self._index["shard"])) + 1).tolist(), len(self)]
        return [range(first, last) for first, last in pairwise([0, *ends])]

    def words(self, number: int) -> Words:
        """Id, speaker and text of a cut."""
        row, place, found = self._index[number], int(self._index[number]["words_at"]), list[str]()
        for field in ("id_bytes", "speaker_bytes", "text_bytes"):
            end = place + int(row[field])
            found.append(self._words[place:end].tobytes().decode("utf-8", errors="replace"))
            place = end
        return Words(*found)

    def samples(self, number: int, sample_rate: int) -> Samples:
        """Mono float32 samples (N,) of a cut; raises AudioError naming the cut and its shard."""
        row = self._index[number]
        shard, offset, size = (int(row[field]) for field in ("shard", "offset", "size"))
        name = f"{self.words(number).id}: {self._tar(shard)}"
        try:
            content = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise AudioError(f"{name}: cannot be read: {error.strerror or error}") from error
        if len(content) < size:
            raise AudioError(f"{name}: truncated: expected {size} bytes at {offset}, found {len(content)}")
        if zlib.crc32(content) != row["crc32"]:
            raise AudioError(f"{name}: damaged: its checksum is another one; copy or make the shard again")
        return decode_audio(content, name, sample_rate, most_s=float(row["duration_s"]) + SLACK_S).samples

    def fingerprint(self) -> Iterator[bytes]:
        """Other bytes for other cuts."""
        yield self.card.index_sha256.encode()
        yield self.card.words_sha256.encode()

    def cuts(self) -> Iterator[Any]:
        """The lhotse cuts, with their alignments, in order; `samples` has what they sound like."""
        for shard in range(self.card.shards):
            path = self.directory / SHARDS / cuts_name(shard)
            for line, item in read_json_lines(path):
                cut = parse_item(item, f"{path}:{line}", path.parent, in_shard=True)
                check_cut(cut, f"{path}:{line}")
                yield cut

    def _tar(self, shard: int) -> Path:
        return self.directory / SHARDS / recording_name(shard)

    def _descriptor(self, shard: int) -> int:
        """The open file of a shard; the one that was not needed for the longest time is closed for it."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        descriptor = os.open(self._tar(shard), os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        self._open[shard] = descriptor
        if len(self._open) > OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        return descriptor


def cuts_name(shard: int) -> str:
    """File of a shard's cuts."""
    return f"cuts.{shard:06d}.jsonl.gz"


def recording_name(shard: int) -> str:
    """File of a shard's recordings."""
    return f"recording.{shard:06d}.tar"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mapped(path: Path, sha256: str, size: int | None = None) -> npt.NDArray[np.uint8]:
    """The bytes of a file, mapped; raises ManifestError unless they are those that the card speaks of."""
    found = path.stat().st_size if path.is_file() else 0
    if not found:
        raise ManifestError(f"{path}: expected a file with something in it; copy it or make the shards again")
    if (size is not None and found != size) or file_sha256(path) != sha256:
        raise ManifestError(f"{path}: not the file that {CARD} speaks of; copy it or make the shards again")
    return np.memmap(path, np.uint8, mode="r")


def _check_index(index: npt.NDArray[Any], card: ShardsCard, words_bytes: int, path: Path) -> None:
    """Refuse what no writer of shards has written, before anything trusts it."""
    durations, sizes, shards = index["duration_s"], index["size"], index["shard"]
    lengths = [index[field].astype(np.uint64) for field in ("id_bytes", "speaker_bytes", "text_bytes")]
    problems = {
        "durations": not (np.isfinite(durations).all() and (durations > 0).all())
        or bool((durations > MAX_CUT_S).any()),
        "sizes": bool((sizes == 0).any() or (sizes > MAX_MEMBER_BYTES).any()),
        "offsets": bool((index["offset"] >= 1 << 62).any()),
        "shards": bool((np.diff(shards.astype(np.int64)) < 0).any() or shards[-1] >= card.shards),
        "words": any(bool((length > MAX_LINE_BYTES).any()) for length in lengths)
        or bool((index["words_at"] > words_bytes).any())
        or bool((index["words_at"] + sum(lengths) > words_bytes).any()),
    }
    wrong = [name for name, found in problems.items() if found]
    if wrong:
        raise ManifestError(f"{path}: expected an index of shards, found impossible {', '.join(wrong)}")
