"""Recordings to samples: mono float32 in [-1, 1] at the rate that is asked for.

Reads wav, flac, ogg (opus, vorbis) and mp3 through libsndfile, any rate and number of channels; channels are
averaged, rates are changed by soxr's high-quality filter. Files are decoded block by block, so that one of
many hours needs no more memory than one of a minute; `read_audio` alone holds a whole recording, and has a
limit. A whole recording is resampled by the streaming resampler, so live and offline samples are the same.

Memory never follows a number that a header claims. Whatever is wrong with a file is an AudioError of one
line that names it: missing, a directory, empty, not audio, truncated, no channels, an absurd rate, no
samples, NaN or infinite samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from asr.audio_headers import OpenEndedWav, check_header
from asr.errors import AudioError, StreamingError
from asr.lengths import samples_to_seconds, seconds_to_samples

Samples = npt.NDArray[np.float32]

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Sample rates in Hz outside of which a header is taken to be wrong."""

MAX_WHOLE_SAMPLES = 4 * 3600 * 16_000
"""Most samples that `read_audio` returns in one piece: 4 h at 16 kHz, 0.9 GB. `audio_blocks` has no limit."""

SEGMENT_SLACK_S = 0.1
"""A segment may claim to end this much after its recording: transcripts often round their times."""

READ_VALUES = 1 << 21
"""Most values decoded at a time, over all channels: 8 MB."""

MP3_SLACK = 2 * 1152
"""An MP3's header counts encoder delay and padding, up to two of its frames, that decoders leave out."""

UNKNOWN_FRAMES = 1 << 62
"""libsndfile reports numbers of this size for files that do not say how long they are."""


class Audio(NamedTuple):
    """A recording, or a part of one."""

    samples: Samples
    """(N,) float32, mono, in [-1, 1] (float files may exceed it)."""
    sample_rate: int
    """Hz."""


class AudioInfo(NamedTuple):
    """What a file's header says."""

    sample_rate: int
    """Hz."""
    channels: int
    frames: int
    """Samples per channel. MP3 headers may count up to 2,304 more than can be decoded."""
    duration_s: float
    format: str
    """Container and coding, for example "WAV/PCM_16" or "OGG/OPUS"."""


def probe(path: Path | str) -> AudioInfo:
    """Read a file's header only; raises AudioError for every fault that shows without decoding."""
    with _opened(Path(path)) as file:
        seconds = samples_to_seconds(file.frames, file.samplerate)
        kind = f"{file.format}/{file.subtype}"
        return AudioInfo(file.samplerate, file.channels, file.frames, seconds, kind)


def read_audio(
    path: Path | str,
    sample_rate: int | None = None,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
) -> Audio:
    """Read a recording, or `duration_s` of it from `offset_s` on, in one piece.

    `sample_rate` None keeps the file's own. Raises AudioError for any fault of the file, for a segment that
    starts outside of it or ends more than 0.1 s after it, and for more than 4 hours at 16 kHz or as many
    samples at another rate (`MAX_WHOLE_SAMPLES`): read such a recording with `audio_blocks`.
    """
    path = Path(path)
    with _opened(path) as file:
        start, count = _segment(path, file, offset_s, duration_s)
        return _in_one_piece(str(path), file, start, count, sample_rate)


def decode_audio(content: bytes, name: str, sample_rate: int, *, most_s: float) -> Audio:
    """What `read_audio` gives for a file of this content, wherever it comes from; `name` opens the errors.

    Raises AudioError also for a header that promises more than `most_s`: a few bytes can stand for hours.
    """
    stream = io.BytesIO(content)
    with _decodable(stream, stream, len(content), name) as file:
        if file.frames > most_s * file.samplerate:
            found = samples_to_seconds(file.frames, file.samplerate)
            raise AudioError(f"{name}: expected at most {most_s:.3f} s, found {found:.3f} s")
        return _in_one_piece(name, file, 0, file.frames, sample_rate)


def audio_blocks(path: Path | str, sample_rate: int, block_s: float = 30.0) -> Iterator[Samples]:
    """Read a recording of any length as blocks (N,) float32 of about `block_s` seconds at `sample_rate`.

    The blocks joined are what `read_audio` returns, but memory is that of one block. Raises AudioError for
    any fault of the file; one that shows only in the samples is raised when the blocks reach it.
    """
    path = Path(path)
    if not block_s > 0:
        raise AudioError(f"{path}: expected block_s above 0 s, found {block_s:g}")
    with _opened(path) as file:
        source = _decoded(str(path), file, 0, file.frames, seconds_to_samples(block_s, file.samplerate))
        yield from _resampled(source, file.samplerate, sample_rate)


class Resampler:
    """Changes the sample rate of a live mono stream; whatever the chunks, the joined output is the same.

    `feed` holds samples back, as the filter sees into the future (`delay_s`); `flush` gives the rest and ends
    the stream. N samples become about N * target_rate / source_rate, which may be none for very few.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        for rate in (source_rate, target_rate):
            check_rate(rate, "resampler")
        self.source_rate, self.target_rate = source_rate, target_rate
        same = source_rate == target_rate
        self._stream = None if same else soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32")
        self._ended = False

    @property
    def delay_s(self) -> float:
        """Audio that has been fed and is not out yet, in seconds."""
        return 0.0 if self._stream is None else float(self._stream.delay()) / self.target_rate

    def feed(self, samples: Samples) -> Samples:
        """The next samples, (N,) float32, any N; returns what can be given by now, (M,) float32."""
        return self._process(samples, last=False)

    def flush(self) -> Samples:
        """End the stream: the samples still held, (M,) float32."""
        return self._process(np.zeros(0, np.float32), last=True)

    def _process(self, samples: Samples, last: bool) -> Samples:
        if self._ended:
            raise StreamingError("resampler: this stream has been flushed; begin another one")
        self._ended = last
        check_samples(samples, "resampler")
        if self._stream is None:
            return samples
        output: Samples = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        return output


def as_float(samples: npt.NDArray[Any], name: str) -> Samples:
    """Mono samples as float32 in -1..1: floats as they are, int16 scaled; raises AudioError otherwise."""
    samples = np.asarray(samples)
    if samples.dtype == np.int16:
        scaled = samples.astype(np.float32) / np.float32(32768)
    else:
        scaled = samples.astype(np.float32) if np.issubdtype(samples.dtype, np.floating) else samples
    check_samples(scaled, name)
    return scaled


def check_samples(samples: npt.NDArray[Any], name: str) -> None:
    """Raise AudioError, naming `name`, unless samples are a finite float32 array (N,); N may be 0."""
    if samples.dtype != np.float32 or samples.ndim != 1:
        raise AudioError(
            f"{name}: expected mono float32 samples (N,) in [-1, 1], found {samples.dtype} "
            f"{samples.shape}; convert them (16-bit integers: divide by 32768)"
        )
    if not np.isfinite(samples).all():
        first = int(np.argmin(np.isfinite(samples)))
        raise AudioError(
            f"{name}: expected finite samples, found {samples[first]} at sample {first}; repair it"
        )


def check_rate(sample_rate: int, name: str) -> None:
    """Raise AudioError, naming `name`, for a sample rate that no recording has."""
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise AudioError(
            f"{name}: expected a sample rate of {MIN_RATE} to {MAX_RATE} Hz, found {sample_rate}; "
            f"correct the header or re-encode"
        )


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The file, opened and found to promise samples."""
    _check_file(path)
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            file = stack.enter_context(_decodable(path, raw, path.stat().st_size, str(path)))
        except OSError as error:
            raise AudioError(f"{path}: cannot be read: {error.strerror or error}") from error
        yield file


@contextmanager
def _decodable(
    source: Path | io.BytesIO, raw: BinaryIO, size: int, name: str
) -> Iterator[soundfile.SoundFile]:
    """`source`, whose `size` bytes are also those of `raw`, opened and found to promise samples."""
    header = check_header(raw, size, name)
    raw.seek(0)
    with ExitStack() as stack:
        if header is not None:
            if header.channels == 0:
                raise AudioError(f"{name}: expected at least one channel, found zero; re-encode it")
            check_rate(header.sample_rate, name)
        try:
            stream: Any = source
            if header is not None and header.data_bytes is None:
                stream = stack.enter_context(_open_ended(source, header.data_start))
            file = stack.enter_context(soundfile.SoundFile(stream))
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: the name ends in .raw
            found = "expected audio (wav, flac, ogg, opus, mp3), found something else or a damaged header"
            raise AudioError(f"{name}: {found}") from error
        check_rate(file.samplerate, name)
        if file.frames == 0:
            raise AudioError(f"{name}: expected samples, found a header and none; record it again")
        if file.frames >= UNKNOWN_FRAMES:
            raise AudioError(f"{name}: its header does not say how long it is; re-encode it (ffmpeg -i)")
        yield file


def _open_ended(source: Path | io.BytesIO, data_start: int) -> BinaryIO:
    """A wav file that does not say how long it is, so that libsndfile reads all of it."""
    if isinstance(source, Path):
        return OpenEndedWav(source, data_start)
    content = source.getvalue()
    return io.BytesIO(content[: data_start - 4] + b"\xff" * 4 + content[data_start:])


def _in_one_piece(
    name: str, file: soundfile.SoundFile, start: int, count: int, sample_rate: int | None
) -> Audio:
    target = file.samplerate if sample_rate is None else sample_rate
    check_rate(target, f"{name}: sample_rate asked for")
    seconds, most = count / file.samplerate, MAX_WHOLE_SAMPLES / target
    if seconds > most:
        raise AudioError(
            f"{name}: expected at most {most / 3600:.1f} h to read in one piece at {target} Hz, found "
            f"{seconds / 3600:.1f} h; read it with audio_blocks, or in parts with offset_s and duration_s"
        )
    blocks = list(_resampled(_decoded(name, file, start, count), file.samplerate, target))
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(samples):
        raise AudioError(f"{name}: expected samples, found none at {target} Hz; the recording is too short")
    return Audio(samples, target)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path}: expected a recording, found a directory")
    if not path.exists():
        raise AudioError(f"{path}: expected a recording, found no such file; check the path")
    if not path.is_file():
        raise AudioError(f"{path}: expected a regular file, found a device or pipe; save it to a file first")
    if path.stat().st_size == 0:
        raise AudioError(
            f"{path}: expected a recording, found an empty file (0 bytes); record or copy it again"
        )


def _segment(
    path: Path, file: soundfile.SoundFile, offset_s: float, duration_s: float | None
) -> tuple[int, int]:
    """First sample and number of samples of a segment, at the file's rate."""
    rate, frames = file.samplerate, file.frames
    length_s = samples_to_seconds(frames, rate)
    if not 0 <= offset_s < length_s:
        raise AudioError(f"{path}: expected offset_s of 0 to below its {length_s:.3f} s, found {offset_s:g}")
    start = min(seconds_to_samples(offset_s, rate), frames - 1)
    if duration_s is None:
        return start, frames - start
    if not 0 < duration_s <= length_s - offset_s + SEGMENT_SLACK_S:
        raise AudioError(
            f"{path}: expected a segment that ends by its {length_s:.3f} s, found {duration_s:g} s from "
            f"{offset_s:g} s on; correct the segment's times"
        )
    return start, min(max(1, seconds_to_samples(duration_s, rate)), frames - start)


def _decoded(
    name: str, file: soundfile.SoundFile, start: int, count: int, block: int = READ_VALUES
) -> Iterator[Samples]:
    """Mono samples `start` to `start + count` at the file's rate, in blocks, checked."""
    inexact = file.format == "MP3"  # seeking lands near the place only: decode from the beginning instead
    if start and not inexact:
        file.seek(start)
    at, stop = (0 if inexact else start), start + count
    block = max(1, min(block, READ_VALUES // file.channels))
    while at < stop:
        wanted = min(block, stop - at)
        try:
            values = file.read(wanted, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _truncated(name, file, at) from error
        if len(values) < wanted and stop - at - len(values) > (MP3_SLACK if inexact else 0):
            raise _truncated(name, file, at + len(values))
        mono = values[:, 0] if file.channels == 1 else values.mean(axis=1)
        if not np.isfinite(mono).all():
            second = samples_to_seconds(at + int(np.argmin(np.isfinite(mono))), file.samplerate)
            raise AudioError(
                f"{name}: expected finite samples, found NaN or infinity at {second:.3f} s; repair it"
            )
        if at + len(mono) > start:
            yield mono[max(0, start - at) :]
        if len(values) < wanted:
            return
        at += len(values)


def _truncated(name: str, file: soundfile.SoundFile, at: int) -> AudioError:
    promised, found = (samples_to_seconds(n, file.samplerate) for n in (file.frames, at))
    return AudioError(
        f"{name}: truncated or damaged: its header promises {promised:.3f} s, decoding stops after "
        f"{found:.3f} s; copy or record it again"
    )


def _resampled(blocks: Iterator[Samples], source_rate: int, target_rate: int) -> Iterator[Samples]:
    resampler = Resampler(source_rate, target_rate)
    for block in blocks:
        output = resampler.feed(block)
        if len(output):
            yield output
    rest = resampler.flush()
    if len(rest):
        yield rest
