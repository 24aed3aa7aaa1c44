"""Fbank against kaldi-native-fbank and torchaudio, and any chunking against the whole, bit for bit.

The tolerance of 1e-3 holds for signals with a noise floor, as 16-bit recordings have. In a filter 90 dB and
more below the frame's loudest, as in high-passed speech, Kaldi's own single-precision error against float64
is larger than that, so no tolerance against it makes sense there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch
import torchaudio.compliance.kaldi
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr import state as states
from asr.config import validate
from asr.errors import AudioError, ConfigError
from asr.features.fbank import Fbank, FbankConfig, FbankState, feature_count
from asr.features.logmel import CPU_ROWS, mel_filters

TOLERANCE = 1e-3
EDGES = pytest.mark.parametrize("snip_edges", [False, True])


def speech(samples: int, sample_rate: int = 16000, seed: int = 0) -> Tensor:
    """Glottal pulses of gliding pitch through three formants, pauses, a little noise; 16-bit values."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / sample_rate
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voice = np.zeros(samples)
    for harmonic in range(1, 25):
        hertz = harmonic * pitch
        formants = sum(np.exp(-(((hertz - f) / 150) ** 2)) for f in (600, 1400, 2600))
        voice += (formants + 0.02) / harmonic * np.sin(harmonic * phase) * (hertz < 0.45 * sample_rate)
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * t) + 0.4, 0, 1)
    wave = 0.2 * voice * syllables + 0.001 * rng.standard_normal(samples)
    return torch.from_numpy(np.round(wave * 32768).clip(-32768, 32767) / 32768).float()


def kaldi(samples: Tensor, config: FbankConfig) -> Tensor:
    """The oracle; it takes 16-bit values as floats."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_length_ms
    options.frame_opts.frame_shift_ms = config.frame_shift_ms
    options.frame_opts.preemph_coeff = config.preemphasis
    options.frame_opts.remove_dc_offset = config.remove_dc_offset
    options.frame_opts.snip_edges = config.snip_edges
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = config.num_mel_bins
    options.mel_opts.low_freq = config.low_freq
    options.mel_opts.high_freq = config.high_freq
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(config.sample_rate, (samples * 32768).tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return torch.from_numpy(np.stack(frames)) if frames else torch.zeros(0, config.num_mel_bins)


def whole(fbank: Fbank, samples: Tensor) -> Tensor:
    return fbank(samples[None], torch.tensor([len(samples)])).features[0]


def streamed(fbank: Fbank, samples: Tensor, chunks: Sequence[int]) -> Tensor:
    """One stream, cut into `chunks` and what is left."""
    state, parts, at = fbank.initial_state(1), [], 0
    for size in [*chunks, max(0, len(samples) - sum(chunks))]:
        chunk = samples[None, at : at + size]
        features, _, state = fbank(chunk, torch.tensor([chunk.shape[1]]), state)
        parts.append(features[0])
        at += size
    return torch.cat([*parts, fbank.flush(state).features[0]])


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# --- against Kaldi -------------------------------------------------------------------------------------


@EDGES
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sample_rate": 8000, "num_mel_bins": 40},
        {"sample_rate": 22050, "num_mel_bins": 80},  # odd window, 551 samples
        {"sample_rate": 44100, "low_freq": 0.0},
        {"num_mel_bins": 23, "low_freq": 100.0, "high_freq": -400.0},
        {"frame_length_ms": 32.0, "frame_shift_ms": 8.0, "preemphasis": 0.0},
        {"remove_dc_offset": False, "high_freq": 7000.0},
        {"frame_length_ms": 10.0, "num_mel_bins": 20},  # shift equals window: nothing to reflect at the start
    ],
)
def test_kaldi_on_speech(settings: dict[str, float], snip_edges: bool) -> None:
    config = FbankConfig.model_validate({**settings, "snip_edges": snip_edges})
    samples = speech(2 * config.sample_rate + 77, config.sample_rate)
    expected = kaldi(samples, config)
    found = whole(Fbank(config), samples)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE
    assert expected.std() > 1  # the signal exercises the scale


@EDGES
@pytest.mark.parametrize("sample_rate", [16000, 8000, 22050])
def test_kaldi_on_short_signals(sample_rate: int, snip_edges: bool) -> None:
    config = FbankConfig(sample_rate=sample_rate, num_mel_bins=40, snip_edges=snip_edges)
    fbank = Fbank(config)
    signal = speech(2 * config.window, sample_rate, seed=1)
    half, shift, window = config.shift // 2, config.shift, config.window
    edges = [
        0,
        1,
        half - 1,
        half,
        half + 1,
        shift,
        window // 2,
        window - 1,
        window,
        window + 1,
        window + shift,
    ]
    for length in {*edges, *range(0, 2 * window, 37)}:
        expected = kaldi(signal[:length], config)
        found = whole(fbank, signal[:length])
        assert found.shape == expected.shape, length
        assert len(found) == feature_count(length, config)
        assert torch.allclose(found, expected, rtol=0, atol=TOLERANCE), length


@pytest.mark.parametrize("level", [0.0, 1 / 32768, 1000 / 32768, -0.5])
def test_kaldi_on_digital_silence(level: float) -> None:
    """Zeros, or a constant offset, are at the floor exactly, as in Kaldi."""
    config = FbankConfig()
    samples = torch.full((8000,), level)
    found = whole(Fbank(config), samples)
    assert torch.equal(found, torch.full_like(found, torch.finfo(torch.float32).eps).log())
    assert (found - kaldi(samples, config)).abs().max() < TOLERANCE


def test_kaldi_on_a_large_offset_and_full_scale() -> None:
    config = FbankConfig()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16000, generator=generator)
    for samples in (0.4 + 0.001 * noise, (0.5 * noise).clamp(-1, 32767 / 32768), torch.sign(noise) * 0.999):
        samples = (samples * 32768).round() / 32768
        assert (whole(Fbank(config), samples) - kaldi(samples, config)).abs().max() < TOLERANCE


@pytest.mark.parametrize("pattern", ["fsdd/recordings/7_*_3.wav", "yesno/waves_yesno/0_0_*.wav"])
def test_kaldi_on_recordings(pattern: str) -> None:
    files = sorted((Path(__file__).parents[3] / "shared" / "data").glob(pattern))[:6]
    if not files:
        pytest.skip(f"no recordings ../shared/data/{pattern} here")
    for file in files:
        samples, sample_rate = soundfile.read(file, dtype="float32")
        config = FbankConfig(sample_rate=sample_rate, num_mel_bins=40)
        found = whole(Fbank(config), torch.from_numpy(samples))
        assert (found - kaldi(torch.from_numpy(samples), config)).abs().max() < TOLERANCE, file


@EDGES
def test_torchaudio(snip_edges: bool) -> None:
    samples = speech(24000, seed=2)
    expected = torchaudio.compliance.kaldi.fbank(
        samples[None] * 32768, num_mel_bins=80, snip_edges=snip_edges, high_freq=0.0, dither=0.0
    )
    found = whole(Fbank(FbankConfig(snip_edges=snip_edges)), samples)
    assert (found - expected).abs().max() < TOLERANCE


def test_filters_without_a_bin_give_the_floor() -> None:
    config = FbankConfig(num_mel_bins=300)
    empty = mel_filters(config).sum(dim=0) == 0
    found = whole(Fbank(config), speech(8000))
    floor = torch.tensor(torch.finfo(torch.float32).eps).log()
    assert empty.any()
    assert torch.equal(found[:, empty], floor.expand(len(found), int(empty.sum())))
    assert (found[:, ~empty] > floor).all()


# --- any chunking, any batch: the same bits --------------------------------------------------------------


@EDGES
@pytest.mark.parametrize("sample_rate", [16000, 22050])
def test_one_sample_at_a_time(snip_edges: bool, sample_rate: int) -> None:
    fbank = Fbank(FbankConfig(sample_rate=sample_rate, snip_edges=snip_edges))
    samples = speech(1400, sample_rate)
    assert torch.equal(streamed(fbank, samples, [1] * 1400), whole(fbank, samples))


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_chunking(data: st.DataObject) -> None:
    config = FbankConfig(
        sample_rate=data.draw(st.sampled_from([8000, 16000, 11025])),
        num_mel_bins=data.draw(st.sampled_from([40, 80])),
        snip_edges=data.draw(st.booleans()),
    )
    fbank = Fbank(config)
    size = st.one_of(st.integers(0, 5), st.integers(0, 3 * config.window), st.integers(0, 20000))
    chunks = data.draw(st.lists(size, max_size=12))
    samples = speech(sum(chunks) + data.draw(st.integers(0, 2000)), config.sample_rate)
    assert torch.equal(streamed(fbank, samples, chunks), whole(fbank, samples))


@EDGES
def test_chunks_beside_whole_blocks(threads: int, snip_edges: bool) -> None:
    """Chunks that end just before, at and after full blocks of frames; one and two threads."""
    config = FbankConfig(snip_edges=snip_edges)
    fbank = Fbank(config)
    samples = speech(config.shift * (2 * CPU_ROWS + 5), seed=3)
    expected = whole(fbank, samples)
    block = CPU_ROWS * config.shift
    for size in (block - 1, block, block + 1, block + config.window, 9001):
        assert torch.equal(streamed(fbank, samples, [size] * (len(samples) // size)), expected), size


def test_threads_give_the_same_bits() -> None:
    fbank, samples = Fbank(), speech(100_000, seed=4)
    found = []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(whole(fbank, samples))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@EDGES
def test_ragged_batch_equals_single_utterances(threads: int, snip_edges: bool) -> None:
    fbank = Fbank(FbankConfig(snip_edges=snip_edges))
    lengths = [50000, 0, 1, 399, 400, 17000, 16000, 80, 33333]
    batch = torch.full((len(lengths), max(lengths)), torch.nan)  # padding must not matter
    for row, (stream, length) in enumerate(zip(batch, lengths, strict=True)):
        stream[:length] = speech(length, seed=row)
    output = fbank(batch, torch.tensor(lengths))
    assert output.feature_lengths.dtype == torch.int64
    assert output.feature_lengths.tolist() == [feature_count(n, fbank.config) for n in lengths]
    for row, (length, frames) in enumerate(zip(lengths, output.feature_lengths.tolist(), strict=True)):
        assert torch.equal(output.features[row, :frames], whole(fbank, batch[row, :length]))
        assert (output.features[row, frames:] == 0).all()


@EDGES
@pytest.mark.parametrize("seed", range(4))
def test_ragged_streams(snip_edges: bool, seed: int) -> None:
    """Streams of one batch get different numbers of samples at a time, none too; padding holds NaN."""
    rng = np.random.default_rng(seed)
    fbank = Fbank(FbankConfig(sample_rate=[16000, 11025][seed % 2], snip_edges=snip_edges))
    signals = [speech(int(n), seed=i) for i, n in enumerate(rng.integers(0, 9000, size=5))]
    state, at = fbank.initial_state(5), [0] * 5
    parts: list[list[Tensor]] = [[] for _ in signals]
    while any(a < len(s) for a, s in zip(at, signals, strict=True)):
        most = int(rng.choice([1, 7, 300, 1500, 5000]))
        sizes = [min(int(rng.integers(0, most + 1)), len(s) - a) for a, s in zip(at, signals, strict=True)]
        chunk = torch.full((5, max(sizes)), torch.nan)
        for i, size in enumerate(sizes):
            chunk[i, :size] = signals[i][at[i] : at[i] + size]
            at[i] += size
        features, counts, state = fbank(chunk, torch.tensor(sizes), state)
        for i, count in enumerate(counts.tolist()):
            parts[i].append(features[i, :count])
            assert (features[i, count:] == 0).all()
    features, counts, _ = fbank.flush(state)
    for i, count in enumerate(counts.tolist()):
        assert torch.equal(torch.cat([*parts[i], features[i, :count]]), whole(fbank, signals[i]))


def test_streams_that_come_and_go() -> None:
    """States split, stack, select and reset as a server does it; the flushed state begins a new stream."""
    fbank, a, b = Fbank(), speech(5000, seed=5), speech(4000, seed=6)
    first = fbank(a[None, :3000], torch.tensor([3000]), fbank.initial_state(1))
    second = fbank(b[None, :100], torch.tensor([100]), fbank.initial_state(1))
    joined = states.select(states.stack([second.state, first.state]), torch.tensor([1, 0]))
    rest = torch.zeros(2, 3900)
    rest[0, :2000], rest[1] = a[3000:], b[100:]
    third = fbank(rest, torch.tensor([2000, 3900]), joined)
    last = fbank.flush(third.state)
    found = torch.cat([first.features[0], third.features[0, : third.feature_lengths[0]]])
    tail = last.features[0, : last.feature_lengths[0]]
    assert torch.equal(torch.cat([found, tail]), whole(fbank, a))
    assert torch.equal(streamed_from(fbank, states.split(last.state)[0], b), whole(fbank, b))
    fresh = states.where(torch.tensor([True, False]), fbank.initial_state(2), third.state)
    assert torch.equal(streamed_from(fbank, states.split(fresh)[0], b), whole(fbank, b))


def streamed_from(fbank: Fbank, state: FbankState, samples: Tensor) -> Tensor:
    output = fbank(samples[None], torch.tensor([len(samples)]), state)
    return torch.cat([output.features[0], fbank.flush(output.state).features[0]])


def test_state_size_is_fixed_and_small() -> None:
    fbank = Fbank()
    state = fbank.initial_state(2)
    size = states.bytes_per_stream(state)
    assert size < 2000
    for n in (0, 1, 50, 5000):
        state = fbank(torch.zeros(2, n), torch.tensor([n, n]), state).state
        assert states.bytes_per_stream(state) == size


def test_a_frame_needs_lookahead_s() -> None:
    """The frame of nominal start t is given out once t + lookahead_s of audio is in, and no sooner."""
    for snip_edges in (False, True):
        fbank = Fbank(FbankConfig(snip_edges=snip_edges))
        samples = round((10 * fbank.shift_s + fbank.lookahead_s) * 16000)
        for given_samples, expected in ((samples, 11), (samples - 1, 10)):
            chunk = torch.zeros(1, given_samples)
            output = fbank(chunk, torch.tensor([given_samples]), fbank.initial_state(1))
            assert output.feature_lengths.item() == expected
        assert fbank.window_s == 0.025
        assert fbank.shift_s == 0.01


# --- surroundings ---------------------------------------------------------------------------------------


def test_nan_stays_in_its_stream_and_its_frames() -> None:
    fbank = Fbank()
    batch = torch.stack([speech(8000, seed=7), speech(8000, seed=8)])
    clean = fbank(batch, torch.tensor([8000, 8000])).features
    batch[0, 4000] = torch.nan
    found = fbank(batch, torch.tensor([8000, 8000])).features
    hit = found[0].isnan().any(dim=1)
    assert 0 < hit.sum() <= 3
    assert torch.equal(found[0, ~hit], clean[0, ~hit])
    assert torch.equal(found[1], clean[1])


def test_training_settings_do_not_reach_the_features() -> None:
    """Neither autocast nor a lower precision of matrix products may coarsen features."""
    fbank, samples = Fbank(), speech(8000)
    expected = whole(fbank, samples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whole(fbank, samples), expected)
    torch.set_float32_matmul_precision("medium")
    try:
        assert (whole(fbank, samples) - expected).abs().max() < 1e-4
    finally:
        torch.set_float32_matmul_precision("highest")


def test_dither_is_seeded_and_fills_silence() -> None:
    fbank = Fbank(FbankConfig(dither=1.0))
    silence, lengths = torch.zeros(1, 16000), torch.tensor([16000])

    def dithered(seed: int) -> Tensor:
        return fbank(silence, lengths, generator=torch.Generator().manual_seed(seed)).features

    assert torch.equal(dithered(1), dithered(1))
    assert not torch.equal(dithered(1), dithered(2))
    assert dithered(1).mean() > 0  # white noise of one 16-bit unit
    assert (silence == 0).all()


def test_features_can_be_trained_on() -> None:
    """They are ordinary tensors, which autograd may keep, and their state can be fed later."""
    output = Fbank()(speech(3000)[None], torch.tensor([3000]), Fbank().initial_state(1))
    weight = torch.ones(80, requires_grad=True)
    (output.features * weight).sum().backward()
    assert torch.equal(weight.grad, output.features.sum(dim=(0, 1)))
    assert not any(leaf.is_inference() for leaf in states.leaves(output.state))


def test_layouts_of_the_input() -> None:
    """Non-contiguous samples and an empty batch."""
    fbank, samples = Fbank(), speech(6000)
    wide = torch.stack([samples, samples * 0.5], dim=1)
    lengths = torch.tensor([6000, 6000])
    assert torch.equal(fbank(wide.t(), lengths).features, fbank(wide.t().contiguous(), lengths).features)
    empty = fbank(torch.zeros(0, 500), torch.zeros(0, dtype=torch.int64))
    assert empty.features.shape == (0, 0, 80)


@pytest.mark.parametrize(
    "samples", [torch.zeros(1, 100, dtype=torch.int16), torch.zeros(1, 100).double(), torch.zeros(100)]
)
def test_wrong_samples(samples: Tensor) -> None:
    with pytest.raises(AudioError, match=r"expected float32 samples \(batch, time\)"):
        Fbank()(samples, torch.tensor([100]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"high_freq": 9000.0}, "Nyquist"),
        ({"low_freq": 8000.0}, "low_freq < high_freq"),
        ({"high_freq": -8000.0}, "low_freq < high_freq"),
        ({"frame_shift_ms": 30.0}, "at most frame_length_ms"),
        ({"frame_shift_ms": 0.01}, "at least one sample"),
        ({"num_mel_bins": 0}, "num_mel_bins"),
        ({"sample_rate": 10}, "sample_rate"),
        ({"bins": 80}, "unknown setting"),
    ],
)
def test_wrong_config(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(settings, FbankConfig, "features.yaml")
    assert "\n" not in str(caught.value)
