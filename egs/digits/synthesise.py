"""A stand-in for the Free Spoken Digit Dataset, synthesised with espeak-ng.

    python egs/digits/synthesise.py OUT_DIR

Six voices say each of the ten digits fifty times: `{digit}_{speaker}_{index}.wav`, 8 kHz, 16 bits. Takes
differ in rate, pitch, intonation range, vocal tract (by resampling), level, background noise and in how
closely the silence at the ends was cut. Everything is drawn from the seed. espeak-ng comes as a shared
library in the pip wheel `espeakng-loader` (extra `synth`) and is called through ctypes, in this process;
its own playback is never started.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile
import soxr
from rich.progress import track

from asr.data.augment import coloured_noise, rms
from asr.errors import AsrError, DataError, MissingExtraError

SAMPLE_RATE = 8000
LICENCE = "none claimed; generated with espeak-ng (GPL-3.0-or-later software)"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TAKES = 50


class Voice(NamedTuple):
    """One synthetic speaker: an espeak-ng voice and where its takes are centred."""

    name: str
    espeak: str
    rate: int
    """Words per minute."""
    pitch: int
    """0 to 99; 50 is the voice's own."""
    tract: float
    """Resampling factor: above 1 a shorter vocal tract, higher formants."""


VOICES = (
    Voice("amber", "en-us+f3", 150, 55, 1.00),
    Voice("basil", "en-us+m3", 140, 45, 1.00),
    Voice("cedar", "en+m7", 165, 50, 0.96),
    Voice("daisy", "en-gb-scotland+f2", 145, 60, 1.03),
    Voice("ebony", "en-gb-x-rp+f4", 155, 48, 1.05),
    Voice("flint", "en-us-nyc+m1", 135, 40, 0.94),
)


class Take(NamedTuple):
    """How one recording is spoken and recorded."""

    rate: int
    pitch: int
    range: int
    tract: float
    level: float
    """Root mean square, full scale 1."""
    snr_db: float
    noise_exponent: float
    before_s: float
    after_s: float


class Speaker(Protocol):
    """Speaks text; `Espeak`, or a substitute in tests."""

    sample_rate: int

    def seed(self, seed: int) -> None:
        """Fix the speaker's own randomness."""
        ...

    def set_voice(self, name: str) -> None:
        """Choose a voice."""
        ...

    def speak(self, text: str, *, rate: int, pitch: int, range: int) -> np.ndarray:
        """Samples (N,) float32 at `sample_rate`."""
        ...


class Espeak:
    """libespeak-ng through ctypes; one instance per process, as the library's state is global."""

    SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback while espeak_Synth runs
    DO_NOT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report missing data by the return value
    RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
    UTF8 = 1
    CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise MissingExtraError("synthesising a corpus", "synth") from error
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self._library.espeak_Initialize(self.SYNCHRONOUS, 0, data, self.DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise DataError(f"{data.decode()}: espeak-ng cannot start; reinstall espeakng-loader")
        self._pieces: list[np.ndarray] = []
        self._callback = self.CALLBACK(self._receive)  # kept here: C holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def seed(self, seed: int) -> None:
        """Seed espeak-ng's own randomness (breath and flutter), else taken from the clock."""
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def set_voice(self, name: str) -> None:
        """Choose a voice such as `en-us+f3`; raises DataError if there is none."""
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {name!r}; reinstall espeakng-loader")

    def speak(self, text: str, *, rate: int, pitch: int, range: int) -> np.ndarray:
        """Samples (N,) float32 of spoken text."""
        for parameter, value in ((self.RATE, rate), (self.PITCH, pitch), (self.RANGE, range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces = []
        encoded = text.encode()
        failed = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self.UTF8, None, None)
        if failed or not self._pieces:
            raise DataError(f"espeak-ng could not say {text!r} (code {failed})")
        return np.concatenate(self._pieces).astype(np.float32) / 32768

    def _receive(self, samples, count: int, events) -> int:
        if count > 0 and samples:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


def draw_take(voice: Voice, rng: np.random.Generator) -> Take:
    """A take near the voice's centre."""
    return Take(
        rate=int(np.clip(rng.normal(voice.rate, 18), 90, 260)),
        pitch=int(np.clip(rng.normal(voice.pitch, 9), 5, 95)),
        range=int(np.clip(rng.normal(50, 15), 5, 95)),
        tract=voice.tract * rng.uniform(0.97, 1.03),
        level=10 ** (rng.uniform(-34, -16) / 20),
        snr_db=rng.uniform(18, 45),
        noise_exponent=rng.uniform(0, 2),
        before_s=rng.uniform(0.0, 0.05),
        after_s=rng.uniform(0.0, 0.08),
    )


def record(spoken: np.ndarray, sample_rate: int, take: Take, rng: np.random.Generator) -> np.ndarray:
    """Bring synthesised speech to 8 kHz, trim it and give it level and background noise."""
    samples = soxr.resample(spoken, sample_rate * take.tract, SAMPLE_RATE, quality="MQ")
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    samples = samples * np.float32(take.level / rms(samples))
    padding = (int(take.before_s * SAMPLE_RATE), int(take.after_s * SAMPLE_RATE))
    samples = np.pad(samples, padding)
    noise = coloured_noise(len(samples), take.noise_exponent, rng)
    return np.clip(samples + noise * np.float32(take.level * 10 ** (-take.snr_db / 20)), -1, 1)


def synthesise_corpus(
    out_dir: Path, *, seed: int = 0, takes: int = TAKES, speaker: Speaker | None = None
) -> Path:
    """Write the recordings into `out_dir`, which appears when complete; nothing is done if it exists."""
    if out_dir.is_dir():
        return out_dir
    speaker = Espeak() if speaker is None else speaker
    aside = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    quiet = not sys.stdout.isatty()
    speaker.seed(seed)
    for number, voice in enumerate(track(VOICES, "synthesising", transient=True, disable=quiet)):
        rng = np.random.default_rng([seed, number])
        speaker.set_voice(voice.espeak)
        for digit, word in enumerate(WORDS):
            for index in range(takes):
                take = draw_take(voice, rng)
                spoken = speaker.speak(word, rate=take.rate, pitch=take.pitch, range=take.range)
                samples = record(spoken, speaker.sample_rate, take, rng)
                path = aside / f"{digit}_{voice.name}_{index}.wav"
                soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    aside.replace(out_dir)
    return out_dir


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, synthesise, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        folder = synthesise_corpus(args.out_dir, seed=args.seed)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(list(folder.glob('*.wav')))} recordings in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
