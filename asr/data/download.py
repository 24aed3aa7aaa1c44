"""Fetch a published archive and unpack the recordings in it, safely and resumably.

A download goes to FILE.part, goes on where it stopped, and is renamed when complete. From an archive only
regular files whose path matches a pattern are taken, under their own base name or, where the folders
matter, under a path that is looked at first, and bounded in size and number, so that no path in it can
lead elsewhere and no small archive becomes a full disk. The folder appears under its name only when it is
complete.
"""

from __future__ import annotations

import fnmatch
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from asr.errors import DataError, ManifestError

TIMEOUT_S = 10.0
BLOCK_BYTES = 2**16
MAX_FILE_BYTES = 64 * 2**20
MAX_FILES = 200_000


class OfflineError(DataError):
    """The publisher cannot be reached."""


def fetch(url: str, path: Path | str, max_bytes: int) -> Path:
    """Download `url` to `path` unless it is there; raises OfflineError or, if too large, DataError."""
    path = Path(path)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
            _receive(response, part, done if resumed else 0, max_bytes, url)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise OfflineError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise OfflineError(f"{url}: no connection ({reason})") from error
    part.replace(path)
    return path


def unpack(archive: Path | str, directory: Path | str, pattern: str, strip: int | None = None) -> Path:
    """Unpack the files of a .zip or .tar.* whose path matches `pattern` into `directory`.

    All of them side by side, or with `strip` in the archive's folders but for the first `strip`. Nothing is
    done if the directory exists. Raises ManifestError for a damaged or suspicious archive.
    """
    archive, directory = Path(archive), Path(directory)
    if directory.is_dir():
        return directory
    aside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for path, stream in _members(archive, pattern):
            target = aside / _inner_path(archive, path, strip)
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out)
        if not any(aside.iterdir()):
            raise ManifestError(f"{archive}: expected files like {pattern} in it, found none")
        aside.replace(directory)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{archive}: cannot be unpacked ({reason}); delete it and run again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def _receive(response: Any, part: Path, done: int, max_bytes: int, url: str) -> None:
    announced = response.headers.get("Content-Length")
    with part.open("ab" if done else "wb") as out:
        start = done
        while block := response.read(BLOCK_BYTES):
            done += len(block)
            if done > max_bytes:
                part.unlink()
                raise DataError(
                    f"{url}: expected at most {max_bytes} bytes, found more; is it the right file?"
                )
            out.write(block)
    if announced is not None and done - start < int(announced):
        raise OfflineError(f"{url}: the connection broke after {done} bytes; run again to go on")


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    for number, (path, size, stream) in enumerate(_entries(archive, pattern)):
        if size > MAX_FILE_BYTES or number >= MAX_FILES:
            raise ManifestError(f"{archive}: {path}: an archive of recordings is not that large; delete it")
        yield path, stream


def _inner_path(archive: Path, path: str, strip: int | None) -> PurePosixPath:
    """Where a file of the archive goes within the directory."""
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    kept = parts[-1:] if strip is None else parts[strip:]
    if not kept or ".." in kept:
        raise ManifestError(f"{archive}: {path}: expected a path within {strip} folders or more; delete it")
    return PurePosixPath(*kept)


def _entries(archive: Path, pattern: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if not entry.is_dir() and fnmatch.fnmatchcase(entry.filename, pattern):
                    # The size is the archive's own claim, but zipfile reads no more than it.
                    yield entry.filename, entry.file_size, packed.open(entry)
        return
    with tarfile.open(archive, "r:*") as packed_tar:
        for member in packed_tar:
            if member.isfile() and fnmatch.fnmatchcase(member.name, pattern):
                stream = packed_tar.extractfile(member)
                assert stream is not None  # isfile() says so
                yield member.name, member.size, stream
