"""What a recording's own header promises, checked against the file before any sample is decoded.

libsndfile quietly shortens a RIFF or Ogg file whose end is missing, so a half-copied recording would pass
for a short one. Two look-ups close that hole:

- RIFF (wav, also WAVEX and RF64): the size of the data chunk against the size of the file. Sizes that
  programs write when they cannot know the length (0, or 2^31 - 4096 and more, as ffmpeg and sox write to
  pipes) are legal; a size of 0 needs help, see `OpenEndedWav`.
- Ogg (opus, vorbis): the last page carries the end-of-stream flag and is whole.

Sources: Multimedia Programming Interface 1.0 (RIFF), EBU Tech 3306 (RF64), RFC 3533 (Ogg). FLAC and MP3
promise a number of samples, which `asr.audio` compares with what is decoded.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from asr.errors import AudioError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

UNKNOWN_SIZE = 0x7FFF_F000
"""Data sizes from here on may mean "unknown": sox writes about this, ffmpeg 0xFFFFFFFF."""

MAX_CHUNKS = 1000
"""A RIFF file has a handful of chunks; more is a sign of damage."""

OGG_TAIL = 1 << 17
"""Bytes at the end of an Ogg file in which its last page must begin; a page has at most 65,307."""


class WavHeader(NamedTuple):
    """The fields of a RIFF/WAVE header that matter here."""

    channels: int
    sample_rate: int
    data_start: int
    """Byte at which the samples begin; the 4 bytes before it are their claimed size."""
    data_bytes: int | None
    """Claimed size of the samples; None if the writer could not know it."""


class OpenEndedWav(io.FileIO):
    """A wav file of data size 0, read as if it said "unknown": libsndfile takes 0 for an empty file."""

    def __init__(self, path: Path, data_start: int) -> None:
        super().__init__(path, "rb")
        self._size_at = data_start - 4

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read, replacing the four bytes of the size wherever they fall into the buffer."""
        start = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        for place in range(max(self._size_at, start), min(self._size_at + 4, start + count)):
            view[place - start] = 0xFF
        return count


def check_header(file: BinaryIO, size: int, name: str) -> WavHeader | None:
    """Raise AudioError if the header disagrees with the `size` of the file; the header of a wav file."""
    magic = file.read(12)
    if magic[:4] == b"OggS":
        _check_ogg(name, file, size)
    if magic[:4] not in {b"RIFF", b"RF64"} or magic[8:12] != b"WAVE":
        return None
    header = _wav_header(name, file, size)
    promised = header.data_bytes
    if promised is not None and header.data_start + promised > size:
        raise AudioError(
            f"{name}: truncated: its header promises {promised} bytes of samples, the file holds "
            f"{max(0, size - header.data_start)}; copy or record it again"
        )
    return header


def _wav_header(name: str, file: BinaryIO, size: int) -> WavHeader:
    channels = sample_rate = 0
    long_size: int | None = None
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        chunk, claimed = struct.unpack("<4sI", head)
        start = file.tell()
        if chunk == b"fmt ":
            channels, sample_rate = struct.unpack("<2xHI", file.read(8).ljust(8, b"\0"))
        elif chunk == b"ds64":
            long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        elif chunk == b"data":
            return WavHeader(channels, sample_rate, start, _data_bytes(file, claimed, long_size, size))
        file.seek(start + claimed + claimed % 2)
    raise AudioError(f"{name}: truncated: a wav header without samples; copy or record it again")


def _data_bytes(file: BinaryIO, claimed: int, long_size: int | None, size: int) -> int | None:
    """Claimed size of the samples, which begin at the file's position, or None if it is unknown."""
    left = size - file.tell()
    if long_size is not None and claimed == 0xFFFF_FFFF:
        return long_size
    if claimed == 0:
        name, following = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        another_chunk = name.isascii() and name.decode("ascii").isprintable() and following <= left - 8
        return 0 if left == 0 or another_chunk else None
    return None if claimed >= UNKNOWN_SIZE and claimed > left else claimed


def _check_ogg(name: str, file: BinaryIO, size: int) -> None:
    file.seek(max(0, size - OGG_TAIL))
    tail = file.read()
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27] if page >= 0 else b""
    whole = False
    if len(header) == 27:
        table = tail[page + 27 : page + 27 + header[26]]
        whole = len(table) == header[26] and page + 27 + len(table) + sum(table) <= len(tail)
    if not whole or not header[5] & 4:
        raise AudioError(
            f"{name}: truncated: its last Ogg page is not the end of the stream; copy it again, or re-encode "
            f"it (ffmpeg -i) to go on with what is there"
        )
