"""Reading, resampling, and every error that a recording can give."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import audio
from asr.audio import Resampler, Samples, audio_blocks, check_samples, probe, read_audio
from asr.errors import AudioError, StreamingError

FORMATS = {  # suffix -> soundfile's format, subtype, and how far lossy coding may move a smooth signal
    "wav": ("WAV", "PCM_16", 1e-4),
    "float.wav": ("WAV", "FLOAT", 1e-6),
    "24.wav": ("WAVEX", "PCM_24", 1e-6),
    "64.wav": ("RF64", "PCM_16", 1e-4),
    "flac": ("FLAC", "PCM_16", 1e-4),
    "ogg": ("OGG", "VORBIS", 0.05),
    "opus": ("OGG", "OPUS", 0.05),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.05),
}


def tone(seconds: float, sample_rate: int = 48000, hertz: float = 440.0) -> Samples:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.4 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write(path: Path, samples: Samples, sample_rate: int = 48000, kind: str = "wav") -> Path:
    container, coding, _ = FORMATS[kind]
    soundfile.write(path, samples, sample_rate, format=container, subtype=coding)
    return path


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def patched(path: Path, offset: int, layout: str, value: int) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, value)
    path.write_bytes(content)
    return path


def everything_fails(path: Path, message: str) -> None:
    """Probing aside, which sees headers only: one line, naming the file, from every way to read."""
    for attempt in (lambda: read_audio(path), lambda: list(audio_blocks(path, 16000, 0.1))):
        with pytest.raises(AudioError, match=message) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


# --- what works ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(tmp_path: Path, kind: str) -> None:
    samples = tone(1.0)
    path = write(tmp_path / f"a.{kind}", samples, kind=kind)
    found = read_audio(path)
    assert found.sample_rate == 48000
    assert found.samples.dtype == np.float32
    assert found.samples.shape == samples.shape
    assert np.abs(found.samples - samples)[2000:-2000].max() < FORMATS[kind][2]
    info = probe(path)
    assert info[:3] == (48000, 1, 48000)
    assert info.duration_s == 1.0
    assert info.format == "/".join(FORMATS[kind][:2])


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    many = rng.uniform(-1, 1, (5000, channels)).astype(np.float32)
    path = write(tmp_path / "many.wav", many, kind="float.wav")
    assert probe(path).channels == channels
    np.testing.assert_allclose(read_audio(path).samples, many.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000])
def test_rates(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", tone(1.0, rate), rate, kind="float.wav")
    found = read_audio(path, 16000)
    assert found.sample_rate == 16000
    assert abs(len(found.samples) - 16000) <= 1
    np.testing.assert_allclose(found.samples[500:15500], tone(1.0, 16000)[500:15500], atol=1e-3)


@pytest.mark.parametrize("kind", ["wav", "flac", "opus", "mp3"])
def test_blocks_joined_are_the_whole(tmp_path: Path, kind: str) -> None:
    samples = tone(2.0) + 0.1 * np.random.default_rng(0).standard_normal(96000).astype(np.float32)
    path = write(tmp_path / f"a.{kind}", samples, kind=kind)
    for rate in (16000, 48000):
        whole = read_audio(path, rate).samples
        for block_s in (0.013, 0.1, 1.0, 30.0):
            blocks = list(audio_blocks(path, rate, block_s))
            assert all(len(block) for block in blocks)
            assert max(map(len, blocks)) <= 1.5 * block_s * rate + 2000
            np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


def test_blocks_are_read_when_asked_for(tmp_path: Path) -> None:
    """The samples of a broken end are not touched by the first block, and the file is closed early."""
    samples = tone(3.0)
    samples[-10] = np.nan
    path = write(tmp_path / "a.wav", samples, kind="float.wav")
    blocks = audio_blocks(path, 16000, 0.5)
    assert len(next(blocks)) > 7000
    blocks.close()


@pytest.mark.parametrize("kind", ["wav", "flac", "opus", "mp3"])
def test_segments(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    smooth = np.convolve(rng.standard_normal(96000), np.hanning(64) / 32, "same").astype(np.float32) * 0.1
    path = write(tmp_path / f"a.{kind}", smooth, kind=kind)
    whole = read_audio(path).samples
    found = read_audio(path, offset_s=0.7001, duration_s=0.5).samples
    first = round(0.7001 * 48000)
    np.testing.assert_allclose(found, whole[first : first + 24000], atol=0.02 if kind == "opus" else 1e-6)
    np.testing.assert_array_equal(read_audio(path, offset_s=1.5).samples, whole[72000:])
    rounded = read_audio(path, offset_s=1.5, duration_s=0.55).samples  # ends 50 ms late
    assert len(rounded) == 24000
    assert len(read_audio(path, 16000, offset_s=0.5, duration_s=0.25).samples) == 4000


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
def test_streaming_wav_headers_are_legal(tmp_path: Path, size: int) -> None:
    """Programs that write to a pipe cannot know the length; all that is there counts."""
    path = write(tmp_path / "a.wav", tone(1.0))
    expected = read_audio(path).samples
    patched(path, 40, "<I", size)
    assert probe(path).frames == 48000
    np.testing.assert_array_equal(read_audio(path).samples, expected)
    np.testing.assert_array_equal(np.concatenate(list(audio_blocks(path, 48000, 0.1))), expected)
    np.testing.assert_array_equal(read_audio(path, offset_s=0.5).samples, expected[24000:])


def test_wav_with_chunks_before_and_after(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.1))
    content = path.read_bytes()
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\0"
    path.write_bytes(content[:36] + extra + content[36:] + extra)
    assert len(read_audio(path).samples) == 4800


def test_half_a_millisecond(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0)[:24])
    assert len(read_audio(path).samples) == 24
    assert len(read_audio(path, 16000).samples) == 8


# --- the resampler ------------------------------------------------------------------------------------


@given(
    rates=st.sampled_from([(48000, 16000), (44100, 16000), (8000, 16000), (22050, 8000), (16000, 16000)]),
    sizes=st.lists(st.integers(0, 4000), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_streaming_equals_offline(rates: tuple[int, int], sizes: list[int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    samples = rng.uniform(-1, 1, sum(sizes)).astype(np.float32)
    stream, whole = Resampler(*rates), Resampler(*rates)
    parts = [stream.feed(part) for part in np.split(samples, np.cumsum(sizes)[:-1])]
    found = np.concatenate([*parts, stream.flush()])
    once = np.concatenate([whole.feed(samples), whole.flush()])
    np.testing.assert_allclose(found, once, rtol=0, atol=1e-4)
    if len(samples):
        np.testing.assert_allclose(found, soxr.resample(samples, *rates), rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", range(6))
def test_resampling_very_few_samples(count: int) -> None:
    resampler = Resampler(48000, 16000)
    samples = np.full(count, 0.5, np.float32)
    found = np.concatenate([resampler.feed(samples[i : i + 1]) for i in range(count)] + [resampler.flush()])
    assert len(found) == round(count / 3)
    assert np.isfinite(found).all()


def test_resampler_holds_back_little() -> None:
    resampler = Resampler(48000, 16000)
    given_out = sum(len(resampler.feed(tone(0.01))) for _ in range(100))
    assert 0 < resampler.delay_s < 0.05
    assert given_out / 16000 > 0.95
    assert given_out + len(resampler.flush()) == 16000
    assert Resampler(16000, 16000).delay_s == 0


def test_resampler_errors() -> None:
    resampler = Resampler(8000, 16000)
    with pytest.raises(AudioError, match="float32"):
        resampler.feed(np.zeros(10))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="finite"):
        resampler.feed(np.full(10, np.inf, np.float32))
    resampler.flush()
    for attempt in (resampler.flush, lambda: resampler.feed(np.zeros(1, np.float32))):
        with pytest.raises(StreamingError, match="flushed"):
            attempt()
    for rates in ((0, 16000), (16000, 999), (768_001, 16000), (-8000, 16000)):
        with pytest.raises(AudioError, match="sample rate of 1000 to 768000 Hz"):
            Resampler(*rates)


# --- what is wrong with files ---------------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "none.wav"
    everything_fails(path, "no such file")
    with pytest.raises(AudioError, match="no such file"):
        probe(path)


def test_directory(tmp_path: Path) -> None:
    everything_fails(tmp_path, "found a directory")


def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    everything_fails(tmp_path / "pipe.wav", "device or pipe")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.touch()
    everything_fails(path, "empty file")


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.txt", "a.mp3", "a"])
@pytest.mark.parametrize("content", [b"hello, world\n" * 100, b"\0" * 1000, b"RIFF", b"x"])
def test_not_audio(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    everything_fails(path, r"expected audio \(wav, flac, ogg, opus, mp3\)")


def test_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.1))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file, permissions or not")
    everything_fails(path, "cannot be read")


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("kind", ["wav", "float.wav", "24.wav", "64.wav", "flac", "ogg", "opus"])
def test_truncated(tmp_path: Path, kind: str, keep: float) -> None:
    path = cut(write(tmp_path / f"a.{kind}", tone(2.0), kind=kind), keep)
    everything_fails(path, "truncated|damaged")


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_truncated_mp3(tmp_path: Path, keep: float) -> None:
    """MP3 headers that count frames; without such a header, nothing shows that the end is missing."""
    path = cut(write(tmp_path / "a.mp3", tone(2.0), kind="mp3"), keep)
    everything_fails(path, "truncated")


@pytest.mark.parametrize("keep", [45, 40, 36, 30, 20])
def test_wav_cut_in_its_header(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.wav", tone(2.0))
    path.write_bytes(path.read_bytes()[:keep])
    everything_fails(path, "truncated")


def test_probe_sees_a_short_wav(tmp_path: Path) -> None:
    path = cut(write(tmp_path / "a.wav", tone(2.0)), 0.5)
    with pytest.raises(AudioError, match="header promises 192000 bytes of samples, the file holds 95978"):
        probe(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path: Path, bad: float) -> None:
    samples = tone(1.0)
    samples[24000] = bad
    path = write(tmp_path / "a.wav", samples, kind="float.wav")
    everything_fails(path, r"NaN or infinity at 0\.500 s")
    assert len(read_audio(path, offset_s=0.6).samples) == 19200


def test_zero_channels(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "a.wav", tone(0.1)), 22, "<H", 0)
    everything_fails(path, "found zero")


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 0xFFFFFFFF])
def test_absurd_rate(tmp_path: Path, rate: int) -> None:
    path = patched(write(tmp_path / "a.wav", tone(0.1)), 24, "<I", rate)
    everything_fails(path, f"sample rate of 1000 to 768000 Hz, found {rate}")
    path = write(tmp_path / "b.wav", tone(0.1))
    with pytest.raises(AudioError, match="sample rate"):
        read_audio(path, rate)


@pytest.mark.parametrize("kind", ["wav", "ogg"])
def test_zero_samples(tmp_path: Path, kind: str) -> None:
    everything_fails(write(tmp_path / f"a.{kind}", tone(0.0), kind=kind), "found a header and none")


def test_zero_samples_before_another_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.0))
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    everything_fails(path, "found a header and none")


def test_too_short_to_resample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0)[:1])
    with pytest.raises(AudioError, match="found none at 16000 Hz"):
        read_audio(path, 16000)


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", tone(1.0), kind="flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    everything_fails(path, "does not say how long")


def test_lies_about_the_length_cost_no_memory(tmp_path: Path) -> None:
    """A small FLAC file that claims 2^35 samples is refused before anything is allocated."""
    path = write(tmp_path / "a.flac", tone(1.0), kind="flac")
    content = bytearray(path.read_bytes())
    content[21] |= 0x08
    path.write_bytes(content)
    assert probe(path).frames > 2**35
    with pytest.raises(
        AudioError, match=r"expected at most 1\.3 h .* found 198\.8 h; read it with audio_blocks"
    ):
        read_audio(path)
    with pytest.raises(AudioError, match="truncated"):
        list(audio_blocks(path, 16000))


def test_longest_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", tone(2.0))
    monkeypatch.setattr(audio, "MAX_WHOLE_SAMPLES", 20000)
    with pytest.raises(AudioError, match="audio_blocks"):
        read_audio(path, 16000)
    assert len(read_audio(path, 16000, duration_s=1.0).samples) == 16000
    assert sum(map(len, audio_blocks(path, 16000))) == 32000


@pytest.mark.parametrize(
    "segment",
    [
        (-0.1, None),
        (1.0, None),
        (5.0, 0.1),
        (0.5, 0.7),
        (0.0, 0.0),
        (0.0, -1.0),
        (float("nan"), None),
        (0, float("nan")),
    ],
)
def test_segments_outside(tmp_path: Path, segment: tuple[float, float | None]) -> None:
    path = write(tmp_path / "a.wav", tone(1.0))
    with pytest.raises(AudioError, match=r"expected (offset_s|a segment)") as caught:
        read_audio(path, offset_s=segment[0], duration_s=segment[1])
    assert str(path) in str(caught.value)


def test_wrong_block_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.1))
    for block_s in (0.0, -1.0, float("nan")):
        with pytest.raises(AudioError, match="block_s"):
            list(audio_blocks(path, 16000, block_s))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(4), "float32 .* found float64"),
        (np.zeros(4, np.int16), "divide by 32768"),
        (np.zeros((4, 2), np.float32), r"mono .* found float32 \(4, 2\)"),
        (np.array([0, np.nan], np.float32), "found nan at sample 1"),
        (np.array([-np.inf, 0], np.float32), "found -inf at sample 0"),
    ],
)
def test_check_samples(samples: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=f"^microphone: .*{message}"):
        check_samples(samples, "microphone")
    check_samples(np.zeros(0, np.float32), "microphone")
