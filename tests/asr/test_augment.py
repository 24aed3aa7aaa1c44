from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from asr.data.augment import (
    AugmentConfig,
    Augmenter,
    Chain,
    ConcatenateConfig,
    Equalizer,
    Maybe,
    Noise,
    NoiseConfig,
    Reverb,
    ReverbConfig,
    SpeedConfig,
    Volume,
    VolumeConfig,
    change_speed,
    coloured_noise,
    draw_speed,
    rms,
    synthetic_response,
)
from asr.data.manifests import file_recording, make_cut, write_cuts
from asr.errors import ConfigError

RATE = 8000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def peak_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * RATE / len(samples)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.0, 1.1, 1.07])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    changed = change_speed(tone(500), factor)
    assert changed.dtype == np.float32
    assert abs(len(changed) - RATE / factor) <= 1
    assert peak_hertz(changed) == pytest.approx(500 * factor, abs=1.5)


def test_speed_factors_are_drawn_around_the_given_ones() -> None:
    config = SpeedConfig(factors=(0.9, 1.1), spread=0.01)
    drawn = np.array([draw_speed(config, generator) for generator in [rng()] for _ in range(200)])
    near = np.abs(drawn[:, None] - [0.9, 1.1]).min(axis=1)
    assert near.max() <= 0.0111
    assert 60 < (drawn > 1).sum() < 140
    assert draw_speed(SpeedConfig(), rng()) == 1.0


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 17.0])
def test_noise_has_the_ratio_it_was_given(snr_db: float) -> None:
    speech = tone(300)
    noisy = Noise(lambda n, r: coloured_noise(n, 1.0, r), (snr_db, snr_db))(speech, rng())
    measured = 20 * np.log10(rms(speech) / rms(noisy - speech))
    assert measured == pytest.approx(snr_db, abs=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_its_slope(exponent: float) -> None:
    noise = coloured_noise(2**16, exponent, rng())
    assert rms(noise) == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    bands = np.array([power[2**k : 2 ** (k + 1)].mean() for k in range(8, 15)])
    slope = np.polyfit(np.arange(7), np.log2(bands), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.08)
    assert len(coloured_noise(1, exponent, rng())) == 1
    assert len(coloured_noise(0, exponent, rng())) == 0


def test_reverberation_keeps_length_level_and_time() -> None:
    click = np.zeros(RATE, dtype=np.float32)
    click[1000] = 1
    room = Reverb(lambda r: synthetic_response(0.3, 6.0, RATE, r))
    wet = room(click, rng())
    assert len(wet) == len(click)
    assert rms(wet) == pytest.approx(rms(click), rel=1e-4)
    assert int(np.abs(wet).argmax()) == 1000
    assert np.abs(wet[:999]).max() < 1e-5
    assert np.abs(wet[1001:2000]).max() > 1e-3


def test_a_measured_response_is_aligned_at_its_direct_path() -> None:
    late = np.zeros(400, dtype=np.float32)
    late[200] = -0.5
    wet = Reverb(lambda r: late)(tone(300), rng())
    np.testing.assert_allclose(wet, -tone(300), atol=1e-4)


def test_a_generated_response_decays_by_60_db_in_t60() -> None:
    t60_s = 0.4
    response = synthetic_response(t60_s, 0.0, RATE, rng())
    level = [np.log10((response[a : a + 400] ** 2).mean()) * 10 for a in range(400, 3200, 400)]
    slope = np.polyfit(np.arange(len(level)) * 400 / RATE, level, 1)[0]
    assert slope == pytest.approx(-60 / t60_s, rel=0.1)
    assert 10 * np.log10(1 / (response[1:] ** 2).sum()) == pytest.approx(0, abs=0.3)


def test_volume_never_passes_full_scale() -> None:
    loud = Volume((20.0, 20.0))(tone(300), rng())
    assert np.abs(loud).max() == pytest.approx(1, abs=1e-3)
    quiet = Volume((-20.0, -20.0))(tone(300), rng())
    np.testing.assert_allclose(quiet, tone(300) * 0.1, rtol=1e-5)
    assert not Volume((0.0, 0.0))(np.zeros(0, dtype=np.float32), rng()).size


def test_probability_of_a_transform() -> None:
    half = Maybe(lambda samples, r: samples + 1, 0.5)
    generator = rng()
    applied = sum(float(half(np.zeros(1, dtype=np.float32), generator)[0]) for _ in range(400))
    assert 160 < applied < 240
    both = Chain([lambda samples, r: samples + 1, lambda samples, r: samples * 2])
    assert both(np.ones(1, dtype=np.float32), rng())[0] == 4


def everything(**sources: str) -> AugmentConfig:
    return AugmentConfig(
        volume=VolumeConfig(probability=1),
        noise=NoiseConfig(probability=1, source=sources.get("noise")),
        reverb=ReverbConfig(probability=1, source=sources.get("reverb")),
    )


def test_the_same_seed_gives_the_same_samples() -> None:
    augment = Augmenter.build(everything(), RATE)
    first, again, other = (augment(tone(300), rng(seed), 1.1) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_everything_is_off_by_default() -> None:
    samples = tone(300)
    assert Augmenter.build(AugmentConfig(), RATE)(samples, rng()) is samples


def test_noise_and_responses_from_a_directory_or_manifest(tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "hum.wav", np.repeat(tone(50, 0.1), 2), 2 * RATE)
    response = np.zeros(100)
    response[10] = 1
    soundfile.write(tmp_path / "room.wav", response, RATE)
    cut = make_cut(file_recording(tmp_path / "room.wav", "room"), "room", "")
    write_cuts([cut], tmp_path / "rooms.jsonl.gz")
    config = everything(noise=str(tmp_path / "noise"), reverb=str(tmp_path / "rooms.jsonl.gz"))
    config = config.model_copy(update={"volume": VolumeConfig()})
    added = Augmenter.build(config, RATE)(tone(1000), rng()) - tone(1000)
    assert peak_hertz(added) == pytest.approx(50, abs=3)


def test_a_bank_without_sound_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no audio"):
        Augmenter.build(everything(noise=str(tmp_path)), RATE)
    soundfile.write(tmp_path / "silence.wav", np.zeros(100), RATE)
    with pytest.raises(ConfigError, match="not silent"):
        Augmenter.build(everything(noise=str(tmp_path)), RATE)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SpeedConfig, {"factors": ()}),
        (SpeedConfig, {"factors": (0.0,)}),
        (SpeedConfig, {"spread": 0.6}),
        (AugmentConfig, {"noise": {"probability": 1.5}}),
        (AugmentConfig, {"noise": {"snr_db": (20, 10)}}),
        (AugmentConfig, {"reverb": {"t60_s": (0, 1)}}),
        (ConcatenateConfig, {"min_parts": 3, "max_parts": 2}),
        (ConcatenateConfig, {"gap_s": (-1, 0)}),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, values: dict) -> None:
    with pytest.raises(ValidationError, match="expected"):
        kind.model_validate(values)


def test_equalizer_bends_the_spectrum_and_keeps_the_level() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(8000).astype(np.float32)
    filtered = Equalizer((-12.0, 12.0), knots=6, sample_rate=8000)(samples, np.random.default_rng(1))
    assert len(filtered) == len(samples)
    assert rms(filtered) == pytest.approx(rms(samples), rel=1e-4)
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(filtered)) / np.abs(np.fft.rfft(samples)))
    drawn = np.random.default_rng(1).uniform(-12, 12, size=6)
    mel = np.log1p(np.linspace(0, 4000, len(gain_db)) / 700)
    expected = np.interp(mel, np.linspace(0, mel[-1], 6), drawn)
    offset = gain_db - expected  # the level is restored by one gain for all frequencies
    assert np.ptp(offset) < 0.01
    assert np.ptp(drawn) > 3
    flat = Equalizer((3.0, 3.0), knots=2, sample_rate=8000)(samples, rng)
    np.testing.assert_allclose(flat, samples, atol=1e-4)


def test_level_is_reached_whatever_it_was_and_silence_stays() -> None:
    samples = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    for scale in (1e-4, 0.2):
        changed = Volume((0.0, 0.0), level_db=(-30.0, -30.0))(
            samples * np.float32(scale), np.random.default_rng(1)
        )
        assert 20 * np.log10(rms(changed)) == pytest.approx(-30, abs=0.01)
    silence = np.zeros(800, np.float32)
    assert not Volume((0.0, 0.0), level_db=(-30.0, -30.0))(silence, np.random.default_rng(1)).any()
