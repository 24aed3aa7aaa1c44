"""The recognisers that english.py compares, behind one Protocol; each has a process of its own (child.py).

    python tools/bench/recognisers.py KIND MODEL

toolkit       a model directory of this toolkit, fed 100 ms at a time; if it cannot stream, whole recordings
pocketsphinx  version 5 with the en-US model of its wheel, fed 100 ms at a time through its live decoder
whisper       a Whisper model in CTranslate2 form through faster-whisper, whole recordings

All on one thread, with the defaults of their makers. Pocketsphinx normalises its features with what it has
heard before; that is its state, handed from recording to recording, as one microphone's would be. Whisper
draws at random where it is unsure of itself; the seed is the same for every recording.

What a child imports counts as its memory: this file takes torch for the toolkit alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from child import serve

from asr.errors import ConfigError, MissingExtraError, ModelError

Samples = npt.NDArray[np.float32]
CHUNK_S = 0.1
"""Live audio comes in pieces of this length."""
PACKAGES = {"pocketsphinx": ("pocketsphinx",), "whisper": ("faster_whisper", "ctranslate2")}
EXTRA = "bench"


class Heard(NamedTuple):
    """What was recognised in one recording."""

    text: str
    first_word_s: float | None
    """Seconds of audio that had been fed when a word was first shown; None without words, or not live."""
    state: str = ""
    """What the next recording is to be heard with."""


class Recogniser(Protocol):
    """Turns recordings into text, one by one, on one thread."""

    @property
    def sample_rate(self) -> int:
        """Samples per second that it wants."""

    @property
    def streaming(self) -> bool:
        """Whether it shows words while audio comes in."""

    def hear(self, samples: Samples, state: str) -> Heard:
        """Recognise (N,) samples in -1..1; `state` is that of the last recording, "" for the first one."""


class Toolkit:
    """A model directory of this toolkit."""

    def __init__(self, model: str) -> None:
        import torch

        from asr.live import feed
        from asr.recognizer import load

        torch.set_num_threads(1)
        self._recognizer, self._feed = load(model), feed

    @property
    def sample_rate(self) -> int:
        return self._recognizer.sample_rate

    @property
    def streaming(self) -> bool:
        return self._recognizer.streaming

    def hear(self, samples: Samples, state: str) -> Heard:
        if not self.streaming:
            return Heard(self._recognizer.transcribe(samples, self.sample_rate).text, None)
        updates = self._feed(self._recognizer, pieces(samples, self.sample_rate), self.sample_rate)
        # All partial results are made into text, as somebody who looks on would have it.
        shown = [(update.heard_s, update.transcript.text) for update in updates]
        return Heard(shown[-1][1], first_shown(shown))


class Pocketsphinx:
    """The live decoder; a partial result is asked for after every piece."""

    sample_rate, streaming = 16000, True

    def __init__(self, model: str = "") -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(samprate=float(self.sample_rate), loglevel="ERROR")
        self._fresh = self._decoder.get_cmn(False)

    def hear(self, samples: Samples, state: str) -> Heard:
        decoder, fed, shown = self._decoder, 0, list[tuple[float, str]]()
        with warnings.catch_warnings():
            # It says that this is not needed, but without it the last recording's noise is remembered.
            warnings.simplefilter("ignore", DeprecationWarning)
            decoder.start_stream()
        decoder.set_cmn(state or self._fresh)
        decoder.start_utt()
        for piece in pieces(samples, self.sample_rate):
            decoder.process_raw((np.clip(piece, -1, 1) * 32767).astype("<i2").tobytes())
            fed += len(piece)
            shown.append((fed / self.sample_rate, self._text()))
        decoder.end_utt()
        shown.append((fed / self.sample_rate, self._text()))
        return Heard(shown[-1][1], first_shown(shown), decoder.get_cmn(False))

    def _text(self) -> str:
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""


class Whisper:
    """A whole recording at a time: nothing is shown before its end."""

    sample_rate, streaming = 16000, False

    def __init__(self, model: str) -> None:
        from ctranslate2 import set_random_seed
        from faster_whisper import WhisperModel

        self._seed: Callable[[int], None] = set_random_seed
        try:
            self._model: Any = WhisperModel(model, device="cpu", cpu_threads=1, num_workers=1)
        except Exception as error:
            raise ModelError(
                f"whisper {model}: cannot be loaded ({type(error).__name__}); give --whisper-model a "
                "directory in CTranslate2's form, or the name of a model that faster-whisper can download"
            ) from error

    def hear(self, samples: Samples, state: str) -> Heard:
        self._seed(0)
        segments, _ = self._model.transcribe(samples, language="en")
        return Heard(" ".join(segment.text.strip() for segment in segments), None)


KINDS: Mapping[str, Callable[[str], Recogniser]] = {
    "toolkit": Toolkit,
    "pocketsphinx": Pocketsphinx,
    "whisper": Whisper,
}


def pieces(samples: Samples, sample_rate: int) -> Iterator[Samples]:
    """The samples as they come live, `CHUNK_S` seconds at a time."""
    size = round(CHUNK_S * sample_rate)
    return (samples[start : start + size] for start in range(0, len(samples), size))


def first_shown(shown: list[tuple[float, str]]) -> float | None:
    """When the first text with a word was shown."""
    return next((heard_s for heard_s, text in shown if text.strip()), None)


def require_peer(kind: str) -> None:
    """Raises ConfigError for a peer that there is not, MissingExtraError if its package is not installed."""
    if kind not in PACKAGES:
        raise ConfigError(f"--peers: expected {', '.join(PACKAGES)}, found {kind!r}")
    if any(importlib.util.find_spec(package) is None for package in PACKAGES[kind]):
        raise MissingExtraError(kind, EXTRA)


def versions(kind: str) -> dict[str, str]:
    """Versions of the packages that the results of a kind depend on."""
    return {name: importlib.metadata.version(name.replace("_", "-")) for name in PACKAGES.get(kind, ())}


def command(kind: str, model: Path | str) -> list[str]:
    """The command that runs it in a process of its own."""
    return [sys.executable, __file__, kind, str(model)]


if __name__ == "__main__":
    serve(lambda: KINDS[sys.argv[1]](sys.argv[2]))
