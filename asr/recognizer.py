"""Audio to text: files, arrays, batches and live streams, all through one path.

A stream is fbank -> encoder -> search, each with explicit state. A whole recording is the same path fed
once and flushed; for models that cannot stream (bidirectional) the whole recording is encoded at once, or in
windows that overlap (asr.encoders.windowed) where it is too long for that or they are asked for.

    >>> recognizer = asr.load("exp/digits")
    >>> recognizer.transcribe("seven.wav").text
    >>> session = recognizer.stream(sample_rate=16000)
    >>> for samples in microphone:
    ...     for event in session.feed(samples): print(event.text)
    >>> session.finish()
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asr.audio import Resampler, Samples, as_float, audio_blocks, probe
from asr.config import override
from asr.encoders import Encoder, EncoderOutput, Latency, WindowConfig, WindowedEncoder, windows_suiting
from asr.endpoint import EndpointConfig
from asr.errors import AudioError
from asr.lengths import samples_to_seconds, seconds_to_samples
from asr.model_directory import LoadedModel, load_model
from asr.pipeline import BLOCK_S, Pipeline, StreamState
from asr.pretrained import pretrained
from asr.search import SearchConfig
from asr.session import Event, Session
from asr.transcript import TimedToken, Transcript, Word
from asr.vad import VoiceActivity

__all__ = [
    "EndpointConfig",
    "Event",
    "Latency",
    "Recognizer",
    "Session",
    "StreamState",
    "TimedToken",
    "Transcript",
    "WindowConfig",
    "Word",
    "load",
]

WHOLE_S = 120.0
"""Longer ones go through in blocks in a batch too: masks of the whole grow with the square of its length."""


def load(
    directory: Path | str | None = None,
    device: str = "cpu",
    search: SearchConfig | None = None,
    *,
    latency: Latency | None = None,
    head: Literal["transducer", "ctc"] | None = None,
    settings: Sequence[str] = (),
    windows: WindowConfig | None = None,
) -> Recognizer:
    """Read a model directory, optionally with other search settings, latency or head than it was saved with.

    None is the English model that comes with the package. `settings` change single settings of the search, as
    in `method=beam`, `fusion.lm=english.arpa`. `windows`: see `Recognizer.with_windows`. Raises ModelError
    naming the file, ConfigError for a latency, head, setting or windows that the network does not have.
    """
    directory = Path(pretrained() if directory is None else directory)
    model = load_model(directory, device)
    search = override(search or model.config.search, settings, "--search")
    if head is not None:
        search = search.model_copy(update={"head": head})
    recognizer = Recognizer(model, _found(search, directory))
    recognizer = recognizer if latency is None else recognizer.with_latency(latency)
    return recognizer if windows is None else recognizer.with_windows(windows)


def _found(search: SearchConfig, directory: Path) -> SearchConfig:
    """A model's own language models lie beside it."""
    return search.model_copy(update={"fusion": search.fusion.beside(directory)})


class Recognizer(Pipeline):
    """A loaded model that turns audio into transcripts; see Pipeline for what it does with samples."""

    finals: Recognizer | None

    def with_latency(self, latency: Latency) -> Recognizer:
        """The same model, its weights shared, answering sooner or later. Raises ConfigError."""
        return self._with_encoder(self.network.encoder.with_latency(latency))

    def with_windows(self, windows: WindowConfig | None = None) -> Recognizer:
        """The same model, its weights shared, hearing windows that overlap: in bounded memory, live too.

        For models that otherwise hear whole recordings; its latency is that of a window. Raises ConfigError.
        """
        return self._with_encoder(WindowedEncoder(self.network.encoder, windows or WindowConfig()))

    def with_finals(self, finals: Literal["live", "whole"]) -> Recognizer:
        """The same model, its weights shared, with these final results. Raises ConfigError."""
        model = LoadedModel(self.config, self.network, self.tokenizer)
        return Recognizer(model, self.search_config.model_copy(update={"finals": finals}), self.scorer)

    def _with_encoder(self, encoder: Encoder) -> Recognizer:
        model = LoadedModel(self.config, self.network.with_encoder(encoder), self.tokenizer)
        return Recognizer(model, self.search_config, self.scorer)

    @property
    def longest_whole_s(self) -> float:
        """Seconds of a recording that can be heard whole."""
        windows = self._windows_of_finals
        return self.network.encoder.longest_whole_s if windows is None else windows.length_s

    @property
    def _windows_of_finals(self) -> WindowConfig | None:
        """In which recordings go through for final results, where those are of a second hearing."""
        encoder = None if self.finals is None else self.finals.network.encoder
        return encoder.windows if isinstance(encoder, WindowedEncoder) else None

    def transcribe(
        self,
        source: Path | str | npt.NDArray[Any],
        sample_rate: int | None = None,
        *,
        hotwords: Sequence[str] = (),
    ) -> Transcript:
        """Transcribe a file, or an array of samples (N,) float in -1..1 or int16 at `sample_rate`.

        Files of any length are read in blocks, and go through in windows where the model would have to hear
        them whole and cannot (`windows_for`). `hotwords`: see `listen`. Raises AudioError naming the file.
        """
        if self.finals is not None:
            return self.finals.transcribe(source, sample_rate, hotwords=hotwords)
        rate = sample_rate or self.sample_rate
        name = str(source) if isinstance(source, str | Path) else "array"
        source = source if isinstance(source, str | Path) else as_float(source, name)
        if (windows := self._windows_of(source, rate)) is not None:
            return self.with_windows(windows).transcribe(source, sample_rate, hotwords=hotwords)
        blocks = self._blocks(source, rate)
        if self.streaming:
            session = Session(self, self.sample_rate, name, hotwords=hotwords)
            for block in blocks:
                session.feed(block)
            return session.finish()[-1].transcript
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
        return self.transcribe_batch([samples], [name], hotwords=[hotwords])[0]

    def windows_for(self, duration_s: float) -> WindowConfig | None:
        """The windows in which a recording goes through that is too long to be heard whole; None without."""
        if duration_s <= self.longest_whole_s:
            return None
        if self.network.encoder.streaming:
            return self._windows_of_finals
        return windows_suiting(self.network.encoder)

    def _windows_of(self, source: Path | str | Samples, sample_rate: int) -> WindowConfig | None:
        """The same of a file, or of samples at `sample_rate`; what streams needs no look at the header."""
        if self.network.encoder.streaming:
            return None
        if isinstance(source, str | Path):
            return self.windows_for(probe(source).duration_s)
        return self.windows_for(samples_to_seconds(len(source), sample_rate))

    def transcribe_batch(
        self,
        recordings: Sequence[npt.NDArray[Any]],
        names: Sequence[str] | None = None,
        *,
        hotwords: Sequence[Sequence[str]] | None = None,
    ) -> list[Transcript]:
        """Transcribe several recordings (N,), float in -1..1 or int16, at the model's rate at once.

        `names` go into error messages. `hotwords`: of each recording, see `listen`. Long recordings go in
        blocks, in windows (`windows_for`) or one by one. Raises AudioError for samples that are not finite,
        and for recordings that are too long for a search that hears them whole, or to be rescored.
        """
        if self.finals is not None:
            return self.finals.transcribe_batch(recordings, names, hotwords=hotwords)
        names = names or [f"recording {i}" for i in range(len(recordings))]
        checked = [as_float(samples, name) for samples, name in zip(recordings, names, strict=True)]
        if not checked:
            return []
        lengths = torch.tensor([len(samples) for samples in checked])
        longest = int(lengths.argmax())
        longest_s = len(checked[longest]) / self.sample_rate
        if self.second_pass is not None:
            self.second_pass.check_length(longest_s, names[longest])
        self._check_search(longest_s, names[longest])
        whole_s = self.network.encoder.longest_stored_s / math.sqrt(len(checked))
        if not self.streaming and (longest_s > whole_s or self.windows_for(longest_s) is not None):
            return self._one_by_one(checked, names, hotwords)
        padded = torch.zeros(len(checked), int(lengths.max()))
        for row, samples in zip(padded, checked, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        phrases = [self.listen(*each) for each in zip(hotwords or [()] * len(names), names, strict=True)]
        in_blocks = self.streaming and longest_s > min(WHOLE_S, whole_s)
        result = (self.in_blocks if in_blocks else self.at_once)(padded, lengths, phrases)
        n_best = result.n_best or [()] * len(checked)
        found = zip(result.tokens, lengths.tolist(), result.truncated, n_best, strict=True)
        return [self.transcript(*each) for each in found]

    def _check_search(self, duration_s: float, name: str) -> None:
        """Raise AudioError for what an encoder that streams could hear, and a search that does not cannot."""
        if self.network.encoder.streaming and not self.streaming and duration_s > self.longest_whole_s:
            raise AudioError(
                f"{name}: search.synchronous=alignment: expected at most {self.longest_whole_s:.0f} s, which "
                f"are heard whole, found {duration_s:.0f} s; use search.synchronous=time"
            )

    def _one_by_one(
        self,
        recordings: Sequence[Samples],
        names: Sequence[str],
        hotwords: Sequence[Sequence[str]] | None,
    ) -> list[Transcript]:
        """Recordings that are too long together: each whole if it can be, so that it is heard alike."""
        found = []
        for samples, name, phrases in zip(recordings, names, hotwords or [()] * len(names), strict=True):
            windows = self.windows_for(len(samples) / self.sample_rate)
            recognizer = self if windows is None else self.with_windows(windows)
            found += recognizer.transcribe_batch([samples], [name], hotwords=[phrases])
        return found

    @torch.inference_mode()
    def encode(self, samples: npt.NDArray[Any], name: str = "array") -> Tensor:
        """Encoder frames (T', E) of samples (N,), float in -1..1 or int16, at the model's rate.

        Those that `transcribe` searches: long recordings go through a streaming model in blocks, through
        others in windows (`windows_for`). Raises AudioError, which names the recording, for samples that are
        not finite.
        """
        if self.finals is not None:
            return self.finals.encode(samples, name)
        heard = torch.from_numpy(as_float(samples, name))[None].to(self.device)
        duration_s = heard.shape[1] / self.sample_rate
        if (windows := self.windows_for(duration_s)) is not None:
            return self.with_windows(windows).encode(samples, name)
        streaming = self.network.encoder.streaming
        if not (streaming and duration_s > min(WHOLE_S, self.network.encoder.longest_whole_s)):
            lengths = torch.tensor([heard.shape[1]], device=self.device)
            return _valid(self.network.encode(*self.fbank(heard, lengths)[:2]))
        encoder, parts = self.network.encoder.initial_state(1, self.device), list[Tensor]()
        for features, lengths in self.features_in_blocks(heard):
            encoded = self.network.encode(features, lengths, encoder)
            encoder = encoded.state
            parts.append(_valid(encoded))
        return torch.cat([*parts, _valid(self.network.encoder.flush(encoder))])

    def stream(
        self,
        sample_rate: int | None = None,
        *,
        endpoint: EndpointConfig | None = None,
        voice: VoiceActivity | None = None,
        hotwords: Sequence[str] = (),
    ) -> Session:
        """Begin a live stream of samples at `sample_rate`; raises StreamingError if the model cannot.

        endpoint: rules by which utterances end; None makes the stream one utterance.
        voice: tells speech from silence (asr.vad), for one stream.
        hotwords: see `listen`.
        """
        return Session(
            self, sample_rate or self.sample_rate, endpoint=endpoint, voice=voice, hotwords=hotwords
        )

    def _blocks(self, source: Path | str | Samples, sample_rate: int) -> Iterator[Samples]:
        """A file, or samples at `sample_rate`, in blocks at the model's rate."""
        if isinstance(source, str | Path):
            yield from audio_blocks(source, self.sample_rate, BLOCK_S)
            return
        resampler, size = Resampler(sample_rate, self.sample_rate), seconds_to_samples(BLOCK_S, sample_rate)
        for start in range(0, len(source), size):
            yield resampler.feed(source[start : start + size])
        yield resampler.flush()


def _valid(encoded: EncoderOutput) -> Tensor:
    """(T', E) what is valid of the only signal in a batch."""
    return encoded.y[0, : int(encoded.y_lengths[0])]
