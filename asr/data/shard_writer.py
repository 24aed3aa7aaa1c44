"""Write a part of a corpus in shards (`asr.data.shards`): `write_shards`, and `asr data shard`.

A shard holds the recordings of `shard_size` cuts, each as long as its cut:

========  ==================================================================================
flac      bit for bit what the recording has, up to 24 bits; what no integers of 24 bits say (mixes of
          channels, decoded mp3 or opus, float files) is rounded to them, or float where it is too loud
opus      lossy, about a tenth of the size; rates that Opus has none of are resampled to the next
original  the recording's file as it is; of cuts that are not a whole file flac
========  ==================================================================================

Everything is written beside the destination, synced and renamed, shard by shard, and at the end as a whole:
a directory that is there is complete. What was interrupted is gone on with if it is the same job (the same
manifest, format and size of shards), and begun anew if it is another.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from lhotse import MonoCut, Recording, fastcopy
from lhotse.audio import AudioSource

from asr.audio import Samples
from asr.config import load_config, replacing, save_config
from asr.data.manifests import CARD as CORPUS_CARD
from asr.data.manifests import cut_speaker, cut_text, iter_cuts, write_cuts
from asr.data.samples import is_plain, is_whole, load_as_recorded
from asr.data.shards import (
    CARD,
    ENTRY,
    INDEX,
    MAX_MEMBER_BYTES,
    SHARDS,
    SUFFIX,
    WORDS,
    Format,
    ShardsCard,
    cuts_name,
    file_sha256,
    recording_name,
)
from asr.errors import AudioError, ConfigError, ManifestError

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
PIECES, JOB, LOCK = "pieces", "job.yaml", "lock"


class Encoded(NamedTuple):
    """A recording as it is stored."""

    content: bytes
    suffix: str
    sample_rate: int
    frames: int


class Extent(NamedTuple):
    """What a manifest holds."""

    cuts: int
    duration_s: float


def write_shards(
    manifest: Path,
    out: Path,
    *,
    shard_size: int = 1000,
    form: Format = "flac",
    skip_broken: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ShardsCard:
    """Write the cuts of `manifest` as shards into the new directory `out`, NAME.shar.

    In memory are the cuts of one shard and one recording. With `skip_broken`, cuts whose recordings cannot
    be read are left out and counted. `progress` is told the cuts done and all of them. Raises ManifestError
    or AudioError naming the line or cut.
    """
    if out.suffix != SUFFIX:
        raise ManifestError(f"{out}: expected a name ending in {SUFFIX}, for example train{SUFFIX}")
    if out.exists():
        raise ManifestError(f"{out}: there is something here already; remove it or choose another name")
    extent = survey(manifest)
    job = ShardsCard(
        manifest_sha256=file_sha256(manifest), format=form, shard_size=shard_size, skip_broken=skip_broken
    )
    with _workshop(out, job) as aside:
        done = 0
        for shard, cuts in enumerate(_batched(iter_cuts(manifest), shard_size)):
            if not _piece(aside, shard, INDEX).is_file():
                _write_shard(aside, shard, cuts, job)
            done += len(cuts)
            progress(done, extent.cuts)
        card = _assemble(aside, job, extent)
        _publish(aside, out)
    _keep_corpus_card(manifest.parent, out.parent)
    return card


def survey(manifest: Path) -> Extent:
    """Read all of a manifest once; raises ManifestError for what would stop the writing in its middle."""
    digests, duration_s = bytearray(), 0.0
    for cut in iter_cuts(manifest):
        if not _can_name_a_member(cut.id):
            raise ManifestError(
                f"{manifest}: expected cut ids that can name a file in a tar, found {cut.id!r}; rename it"
            )
        digests += hashlib.blake2b(cut.id.encode(), digest_size=8).digest()
        duration_s += cut.duration
    ids = np.frombuffer(digests, np.uint64)
    repeated = len(ids) - len(np.unique(ids))
    if repeated:
        raise ManifestError(
            f"{manifest}: {repeated} cut ids are repeated (asr data check names them); rename"
        )
    return Extent(len(ids), duration_s)


def encode_cut(cut: Any, form: Format) -> Encoded:
    """What is heard in a cut, as it goes into a shard; raises AudioError naming the cut."""
    audio = load_as_recorded(cut)  # also of what is copied: what cannot be read must not get in
    try:
        if form == "original" and is_plain(cut) and is_whole(cut):
            source = Path(cut.recording.sources[0].source)
            encoded = Encoded(source.read_bytes(), source.suffix, audio.sample_rate, len(audio.samples))
        else:
            encoded = _opus(*audio) if form == "opus" else _flac(*audio)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{cut.id}: cannot be stored as {form}: {error}; resample it") from error
    if len(encoded.content) > MAX_MEMBER_BYTES:
        found = f"found {len(encoded.content)}"
        raise AudioError(f"{cut.id}: expected at most {MAX_MEMBER_BYTES} bytes of audio, {found}; split it")
    return encoded


def _flac(samples: Samples, rate: int) -> Encoded:
    values: npt.NDArray[Any] = np.rint(samples.astype(np.float64) * 2**15)
    subtype, suffix, container = "PCM_16", ".flac", "FLAC"
    if np.array_equal(values, samples.astype(np.float64) * 2**15) and np.abs(values + 0.5).max() < 2**15:
        values = values.astype(np.int16)
    elif np.abs(samples).max() <= 1:
        steps = np.rint(samples.astype(np.float64) * 2**23)
        values = np.clip(steps, -(2**23), 2**23 - 1).astype(np.int32) << 8
        subtype = "PCM_24"
    else:
        values, subtype, suffix, container = samples, "FLOAT", ".wav", "WAV"
    return _encoded(values, rate, container, subtype, suffix)


def _opus(samples: Samples, rate: int) -> Encoded:
    target = next((r for r in OPUS_RATES if r >= rate), OPUS_RATES[-1])
    if target != rate:
        samples = soxr.resample(samples, rate, target)
    return _encoded(np.clip(samples, -1, 1), target, "OGG", "OPUS", ".opus")


def _encoded(values: npt.NDArray[Any], rate: int, container: str, subtype: str, suffix: str) -> Encoded:
    stream = io.BytesIO()
    soundfile.write(stream, values, rate, format=container, subtype=subtype)
    return Encoded(stream.getvalue(), suffix, rate, len(values))


@contextmanager
def _workshop(out: Path, job: ShardsCard) -> Iterator[Path]:
    """The hidden directory beside `out` in which this job alone is worked on, maybe since an earlier try."""
    aside = out.with_name(f".{out.name}.unfinished")
    aside.mkdir(parents=True, exist_ok=True)
    with (aside / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ManifestError(f"{out}: another process is writing it; wait for its end") from error
        if not _is_same_job(aside / JOB, job):
            (aside / JOB).unlink(missing_ok=True)
            for folder in (SHARDS, PIECES):
                shutil.rmtree(aside / folder, ignore_errors=True)
            save_config(job, aside / JOB)
        for folder in (SHARDS, PIECES):
            (aside / folder).mkdir(exist_ok=True)
            for half_written in (aside / folder).glob(".*.tmp"):
                half_written.unlink()
        yield aside


def _is_same_job(path: Path, job: ShardsCard) -> bool:
    try:
        return load_config(path, ShardsCard) == job
    except ConfigError:
        return False


def _write_shard(aside: Path, shard: int, cuts: Sequence[Any], job: ShardsCard) -> None:
    """One shard; it is complete once its piece of the index is there, which is written last."""
    stored, rows, words = [], [], bytearray()
    with (
        replacing(aside / SHARDS / recording_name(shard)) as raw,
        tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for cut in cuts:
            try:
                encoded = encode_cut(cut, job.format)
            except AudioError:
                if not job.skip_broken:
                    raise
                continue
            placed = _placed(cut, encoded)
            offset = _add(tar, f"{cut.id}{encoded.suffix}", encoded.content)
            _add(tar, f"{cut.id}.json", json.dumps(placed.recording.to_dict()).encode() + b"\n")
            said = [text.encode() for text in (cut.id, cut_speaker(cut), cut_text(cut))]
            lengths = [len(text) for text in said]
            size, crc32 = len(encoded.content), zlib.crc32(encoded.content)
            rows.append((cut.duration, offset, len(words), shard, size, crc32, *lengths))
            words += b"".join(said)
            stored.append(placed)
    write_cuts(stored, aside / SHARDS / cuts_name(shard))
    for name, content in ((WORDS, bytes(words)), (INDEX, np.array(rows, ENTRY).tobytes())):
        with replacing(_piece(aside, shard, name)) as raw:
            raw.write(content)


def _placed(cut: Any, encoded: Encoded) -> MonoCut:
    """The cut as lhotse Shar describes it: of a recording that is nothing but this cut, on one channel."""
    recording = Recording(
        id=cut.id,
        sources=[AudioSource(type="shar", channels=[0], source="")],
        sampling_rate=encoded.sample_rate,
        num_samples=encoded.frames,
        duration=encoded.frames / encoded.sample_rate,
        channel_ids=[0],
    )
    return MonoCut(
        id=cut.id,
        start=0,
        duration=cut.duration,
        channel=0,
        supervisions=[fastcopy(s, channel=0) for s in cut.supervisions],
        recording=recording,
        custom=getattr(cut, "custom", None),
    )


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member of the same bytes every time; returns the offset at which its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return int(tar.offset) - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _assemble(aside: Path, job: ShardsCard, extent: Extent) -> ShardsCard:
    """Join the pieces of all shards, in a stream, and write the card."""
    shards = sorted(path.name.split(".")[0] for path in (aside / PIECES).glob(f"*.{INDEX}"))
    duration_s, count, base = 0.0, 0, 0
    with replacing(aside / INDEX) as index, replacing(aside / WORDS) as words:
        for shard in map(int, shards):
            rows = np.fromfile(_piece(aside, shard, INDEX), ENTRY)
            said = _piece(aside, shard, WORDS).read_bytes()
            rows["words_at"] += base
            index.write(rows.tobytes())
            words.write(said)
            base, count = base + len(said), count + len(rows)
            duration_s += float(rows["duration_s"].sum())
    if not count:
        raise AudioError(f"{aside}: expected a recording that can be read, found none")
    changes = {
        "shards": len(shards),
        "cuts": count,
        "skipped": extent.cuts - count,
        "duration_s": duration_s,
        "audio_bytes": sum(path.stat().st_size for path in (aside / SHARDS).glob("*.tar")),
        "index_sha256": file_sha256(aside / INDEX),
        "words_sha256": file_sha256(aside / WORDS),
    }
    card = job.model_copy(update=changes)
    save_config(card, aside / CARD)
    return card


def _publish(aside: Path, out: Path) -> None:
    shutil.rmtree(aside / PIECES)
    for name in (JOB, LOCK):
        (aside / name).unlink()
    for folder in (aside / SHARDS, aside):
        _sync(folder)
    aside.rename(out)
    _sync(out.parent)


def _keep_corpus_card(source: Path, target: Path) -> None:
    """What is known of the corpus goes along to another directory."""
    if (source / CORPUS_CARD).is_file() and not (target / CORPUS_CARD).exists():
        shutil.copyfile(source / CORPUS_CARD, target / CORPUS_CARD)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _piece(aside: Path, shard: int, name: str) -> Path:
    return aside / PIECES / f"{shard:06d}.{name}"


def _batched(cuts: Iterable[Any], size: int) -> Iterator[list[Any]]:
    cuts = iter(cuts)
    while batch := list(islice(cuts, size)):
        yield batch


def _can_name_a_member(name: str) -> bool:
    """As lhotse looks them up, and without a way out of the folder into which someone may unpack them."""
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and name.isprintable()
