"""Augmentation of waveforms: speed, volume, noise, reverberation, and concatenation of utterances.

Transforms are small objects, `transform(samples, rng) -> samples`, that compose with `Chain`; whatever is
random comes from the numpy generator they are given, so that a seed fixes the result. They work on arrays
in memory rather than through lhotse's lazy operations, which read the file again every time (0.27 ms for
a digit of 0.4 s, with perturb_speed 0.67 ms, with reverb_rir and its generated response 34 ms, where an
epoch of 2,520 digits has 3 s); cuts remain the unit of manifests.

- speed (Ko et al. 2015, "Audio augmentation for speech recognition"): resampling by a factor, so that
  tempo, pitch and formants change together, as Kaldi does it;
- noise at a signal-to-noise ratio, from recordings or generated with a power spectrum f^-a (a = 0 white,
  1 pink, 2 brown);
- equalisation with a random smooth frequency response (Nam et al. 2022, "FilterAugment");
- reverberation with measured impulse responses or generated ones: white noise with an exponential decay
  of 60 dB in T60 seconds (Polack's model) after a direct path. The direct path keeps its time and the
  signal its length, so that word times stay true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import soxr
from pydantic import Field, model_validator

from asr.audio import Samples, probe, read_audio
from asr.config import Config
from asr.errors import ConfigError

Range = tuple[float, float]
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}


class SpeedConfig(Config):
    """Speed perturbation: a factor drawn from `factors` for every utterance, then spread."""

    factors: tuple[float, ...] = (1.0,)
    """For example (0.9, 1.0, 1.1); 1.1 is faster and higher."""
    spread: float = 0.0
    """The drawn factor is multiplied by a uniform number in 1 ± spread."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.factors or not 0 <= self.spread < 0.5:
            raise ValueError("expected at least one speed factor and a spread in [0, 0.5)")
        if any(not 0.25 <= factor <= 4 for factor in self.factors):
            raise ValueError(f"expected speed factors between 0.25 and 4, found {self.factors}")
        return self


class VolumeConfig(Config):
    """A gain, or a level, drawn uniformly in decibels."""

    probability: float = 0.0
    gain_db: Range = (-12.0, 6.0)
    level_db: Range | None = None
    """If given, the RMS level relative to full scale that an utterance is brought to, instead of a gain:
    for corpora whose speakers differ in level by more than a gain may spread them."""


class NoiseConfig(Config):
    """Additive noise at a signal-to-noise ratio drawn uniformly in decibels."""

    probability: float = 0.0
    snr_db: Range = (5.0, 25.0)
    source: str | None = None
    """A directory of recordings or a cut manifest; None generates noise with spectrum f^-a."""
    exponent: Range = (0.0, 2.0)
    """Range of a for generated noise."""
    max_seconds: float = 600.0
    """At most this much noise is held in memory by each worker."""


class EqualizerConfig(Config):
    """A random smooth frequency response, as another microphone, room or vocal tract would give."""

    probability: float = 0.0
    gain_db: Range = (-12.0, 12.0)
    """Gain at each knot."""
    knots: int = Field(6, ge=2, le=64)
    """Evenly spaced in mel from 0 to half the sample rate; between them the gain in dB is linear."""


class ReverbConfig(Config):
    """Reverberation."""

    probability: float = 0.0
    source: str | None = None
    """A directory of impulse responses or a cut manifest; None generates them."""
    t60_s: Range = (0.1, 0.5)
    direct_to_reverberant_db: Range = (0.0, 12.0)


class AugmentConfig(Config):
    """All waveform transforms; everything is off by default."""

    speed: SpeedConfig = SpeedConfig()
    volume: VolumeConfig = VolumeConfig()
    noise: NoiseConfig = NoiseConfig()
    reverb: ReverbConfig = ReverbConfig()
    equalizer: EqualizerConfig = EqualizerConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for section in (self.volume, self.noise, self.reverb, self.equalizer):
            if not 0 <= section.probability <= 1:
                raise ValueError(f"expected a probability in [0, 1], found {section.probability}")
        ranges = [self.volume.gain_db, self.equalizer.gain_db, self.noise.snr_db, self.noise.exponent]
        ranges += [self.reverb.t60_s, self.volume.level_db or (0.0, 0.0)]
        for low, high in (*ranges, self.reverb.direct_to_reverberant_db):
            if not low <= high:
                raise ValueError(f"expected a range (low, high), found ({low}, {high})")
        if self.reverb.t60_s[0] <= 0:
            raise ValueError(f"expected t60_s above 0, found {self.reverb.t60_s}")
        return self


class ConcatenateConfig(Config):
    """Concatenation of utterances (isolated digits to strings) with gaps of low noise."""

    min_parts: int = 1
    max_parts: int = 1
    """1 leaves utterances as they are; otherwise a length is drawn uniformly from min to max."""
    gap_s: Range = (0.05, 0.4)
    """Between two parts."""
    edge_s: Range = (0.0, 0.3)
    """Before the first and after the last part."""
    level_db: Range = (-80.0, -50.0)
    """RMS level of the noise in the gaps, relative to full scale."""
    same_speaker: bool = True
    part_gain_db: float = 0.0
    """Each part's gain is drawn uniformly within ± this."""

    @property
    def active(self) -> bool:
        """True if utterances change at all."""
        return self.max_parts > 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= self.min_parts <= self.max_parts:
            raise ValueError(
                f"expected 1 <= min_parts <= max_parts, found {self.min_parts}, {self.max_parts}"
            )
        for low, high in (self.gap_s, self.edge_s):
            if not 0 <= low <= high:
                raise ValueError(f"expected 0 <= low <= high seconds, found ({low}, {high})")
        return self


class Transform(Protocol):
    """Anything that turns samples (N,) float32 into samples, given a source of randomness."""

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Transformed samples; the input is left as it is."""
        ...


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other."""

    transforms: Sequence[Transform]

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Apply all in order."""
        for transform in self.transforms:
            samples = transform(samples, rng)
        return samples


@dataclass(frozen=True)
class Maybe:
    """A transform with a probability."""

    transform: Transform
    probability: float

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Apply it or not."""
        return self.transform(samples, rng) if rng.random() < self.probability else samples


@dataclass(frozen=True)
class Volume:
    """Gain or level, uniform in decibels; never beyond full scale (it would clip when stored or played)."""

    gain_db: Range
    level_db: Range | None = None

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Apply a drawn gain, or the gain that gives a drawn level."""
        if self.level_db is None:
            gain = 10 ** (rng.uniform(*self.gain_db) / 20)
        else:
            gain = 10 ** (rng.uniform(*self.level_db) / 20) / max(rms(samples), 1e-9)
        peak = float(np.abs(samples).max(initial=0.0))
        return samples * np.float32(min(gain, 1 / peak) if peak * gain > 1 and peak < 1 else gain)


@dataclass(frozen=True)
class Noise:
    """Additive noise; `draw(count, rng)` gives unscaled noise of `count` samples."""

    draw: Callable[[int, np.random.Generator], Samples]
    snr_db: Range

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Add noise at a drawn ratio."""
        noise = self.draw(len(samples), rng)
        scale = rms(samples) / max(rms(noise), 1e-12) * 10 ** (-rng.uniform(*self.snr_db) / 20)
        return samples + noise * np.float32(scale)


@dataclass(frozen=True)
class Equalizer:
    """Zero-phase filter whose gain in dB is drawn at mel-spaced knots; keeps length and level.

    After FilterAugment (Nam et al. 2022, the linear variant), on the waveform instead of the features.
    """

    gain_db: Range
    knots: int
    sample_rate: int

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Filter with a newly drawn response."""
        gains_db = rng.uniform(*self.gain_db, size=self.knots)
        spectrum = np.fft.rfft(samples)
        mel = np.log1p(np.linspace(0, self.sample_rate / 2, len(spectrum)) / 700)
        response_db = np.interp(mel, np.linspace(0, mel[-1], self.knots), gains_db)
        filtered = np.fft.irfft(spectrum * 10 ** (response_db / 20), len(samples)).astype(np.float32)
        return filtered * np.float32(rms(samples) / max(rms(filtered), 1e-12))


@dataclass(frozen=True)
class Reverb:
    """Convolution with an impulse response from `draw(rng)`; keeps length, direct path and level."""

    draw: Callable[[np.random.Generator], Samples]

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Apply a drawn response."""
        response = self.draw(rng)
        start = int(np.abs(response).argmax())
        size = 1 << (len(samples) + len(response) - 1).bit_length()
        spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
        wet = np.fft.irfft(spectrum, size)[start : start + len(samples)].astype(np.float32)
        return wet * np.float32(rms(samples) / max(rms(wet), 1e-12))


def change_speed(samples: Samples, factor: float) -> Samples:
    """Play `factor` times as fast: round(N / factor) samples, pitch and formants times `factor`."""
    if factor == 1.0:
        return samples
    changed: Samples = soxr.resample(samples, factor, 1.0, quality="MQ")
    return changed


def coloured_noise(count: int, exponent: float, rng: np.random.Generator) -> Samples:
    """`count` samples of Gaussian noise with power spectrum f^-exponent and RMS 1."""
    white = rng.standard_normal(max(count, 2), dtype=np.float32)
    if exponent != 0:
        spectrum = np.fft.rfft(white)
        spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** (-exponent / 2)
        spectrum[0] = 0
        white = np.fft.irfft(spectrum, len(white)).astype(np.float32)
    scaled: Samples = white[:count] / np.float32(max(rms(white), 1e-12))
    return scaled


def synthetic_response(t60_s: float, direct_db: float, sample_rate: int, rng: np.random.Generator) -> Samples:
    """Impulse response of a diffuse room: 1 at time 0, then noise that falls by 60 dB in `t60_s`.

    `direct_db` is the ratio of the energies of the direct path and of all the rest.
    """
    count = max(2, math.ceil(t60_s * sample_rate))
    decay = np.exp(-3 * math.log(10) * np.arange(count) / (t60_s * sample_rate))
    response: Samples = (rng.standard_normal(count) * decay).astype(np.float32)
    response[0] = 0
    response *= np.float32(10 ** (-direct_db / 20) / max(math.sqrt(float((response**2).sum())), 1e-12))
    # Late sound must stay below the direct path, whose place is found as the maximum.
    response = np.clip(response, -0.99, 0.99)
    response[0] = 1
    return response


def rms(samples: Samples) -> float:
    """Root mean square; 0 for no samples."""
    return math.sqrt(float(np.dot(samples, samples)) / len(samples)) if len(samples) else 0.0


@dataclass(frozen=True)
class Augmenter:
    """What an `AugmentConfig` does to an utterance at `sample_rate`.

    Speed is apart, because planning batches needs the duration before any audio is read.
    """

    config: AugmentConfig
    chain: Chain

    @classmethod
    def build(cls, config: AugmentConfig, sample_rate: int) -> Self:
        """Build the active transforms; reads noise and impulse responses if the config names them."""
        chain: list[Transform] = []
        if config.reverb.probability > 0:
            chain.append(Maybe(_reverb(config.reverb, sample_rate), config.reverb.probability))
        if (equalizer := config.equalizer).probability > 0:
            filtering = Equalizer(equalizer.gain_db, equalizer.knots, sample_rate)
            chain.append(Maybe(filtering, equalizer.probability))
        if config.noise.probability > 0:
            chain.append(Maybe(_noise(config.noise, sample_rate), config.noise.probability))
        if config.volume.probability > 0:
            chain.append(
                Maybe(Volume(config.volume.gain_db, config.volume.level_db), config.volume.probability)
            )
        return cls(config, Chain(chain))

    def __call__(self, samples: Samples, rng: np.random.Generator, speed: float = 1.0) -> Samples:
        """Apply the drawn `speed`, then reverberation, equaliser, noise and volume."""
        return self.chain(change_speed(samples, speed), rng)


def draw_speed(config: SpeedConfig, rng: np.random.Generator) -> float:
    """A speed factor for one utterance."""
    factor = config.factors[int(rng.integers(len(config.factors)))]
    return factor * rng.uniform(1 - config.spread, 1 + config.spread) if config.spread else factor


def _noise(config: NoiseConfig, sample_rate: int) -> Noise:
    if config.source is None:
        return Noise(lambda n, rng: coloured_noise(n, rng.uniform(*config.exponent), rng), config.snr_db)
    recordings = _load_bank(config.source, sample_rate, config.max_seconds)

    def draw(count: int, rng: np.random.Generator) -> Samples:
        recording = recordings[int(rng.integers(len(recordings)))]
        start = int(rng.integers(len(recording)))
        wrapped: Samples = np.take(recording, np.arange(start, start + count), mode="wrap")
        return wrapped

    return Noise(draw, config.snr_db)


def _reverb(config: ReverbConfig, sample_rate: int) -> Reverb:
    if config.source is not None:
        responses = _load_bank(config.source, sample_rate, max_seconds=60.0)
        return Reverb(lambda rng: responses[int(rng.integers(len(responses)))])

    def draw(rng: np.random.Generator) -> Samples:
        t60_s, direct_db = rng.uniform(*config.t60_s), rng.uniform(*config.direct_to_reverberant_db)
        return synthetic_response(t60_s, direct_db, sample_rate, rng)

    return Reverb(draw)


def _load_bank(source: str, sample_rate: int, max_seconds: float) -> list[Samples]:
    """Recordings of a directory or cut manifest, in order of name, up to `max_seconds` in all."""
    paths = _bank_paths(Path(source))
    share_s = max_seconds / len(paths)
    bank = []
    for path in paths:
        duration_s = min(share_s, probe(path).duration_s)
        bank.append(read_audio(path, sample_rate, duration_s=duration_s).samples)
    bank = [samples for samples in bank if rms(samples) > 0]
    if not bank:
        raise ConfigError(f"{source}: expected recordings that are not silent, found none")
    return bank


def _bank_paths(source: Path) -> list[str]:
    if source.is_dir():
        paths = [str(p) for p in sorted(source.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
    else:
        from asr.data.manifests import read_cuts
        from asr.data.samples import audio_files

        paths = sorted({path for cut in read_cuts(source) for path in audio_files(cut)})
    if not paths:
        raise ConfigError(f"{source}: expected a directory of recordings or a cut manifest, found no audio")
    return paths
