"""The lines of a text file, numbered, so that an error can name the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from asr.errors import ManifestError

MAX_LINE_BYTES = 4 * 2**20
"""One cut with hundreds of aligned words takes some 100 kB; a longer line is no manifest."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, without their ends, of a UTF-8 text file, gzipped if it ends in .gz.

    Raises ManifestError, which names file and line.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: expected a file, found nothing there (or not a regular file)")
    number = 0
    try:
        with _open(path) as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ManifestError(f"{path}:{number}: expected at most {MAX_LINE_BYTES} bytes in a line")
                yield number, line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}:{number}: expected UTF-8 text, found byte {error.start} that is not"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(
            f"{path}: damaged gzip file after line {number}; write or fetch it again"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
