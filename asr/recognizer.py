"""Audio to text: files, arrays, batches and live streams, all through one path.

A stream is fbank -> encoder -> search, each with explicit state. A whole recording is the same path fed
once and flushed; for models that cannot stream (bidirectional) the whole recording is encoded at once.

    >>> recognizer = asr.load("exp/digits")
    >>> recognizer.transcribe("seven.wav").text
    >>> session = recognizer.stream(sample_rate=16000)
    >>> for samples in microphone:
    ...     for event in session.feed(samples): print(event.text)
    >>> session.finish()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asr import state as states
from asr.audio import Resampler, audio_blocks, check_samples, probe
from asr.encoders import EncoderOutput
from asr.errors import AudioError, StreamingError
from asr.features.fbank import Fbank, FbankState
from asr.lengths import samples_to_seconds, seconds_to_samples
from asr.model_directory import LoadedModel, load_model
from asr.search import SearchConfig, Token, build_search, search_whole

Samples = npt.NDArray[np.float32]

BLOCK_S = 30.0
"""Long recordings go through a streaming model in blocks of this length."""
MAX_WHOLE_S = 1800.0
"""Longest recording that a model without streaming encodes at once."""


class TimedToken(NamedTuple):
    """A token as it was emitted."""

    piece: str
    start_s: float
    end_s: float
    confidence: float
    """Probability in 0..1."""


class Word(NamedTuple):
    """A recognised word. Times are those of its tokens' emission."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """Geometric mean of its tokens' probabilities, in 0..1."""


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording, or so far in a stream."""

    text: str
    words: tuple[Word, ...]
    tokens: tuple[TimedToken, ...]
    duration_s: float
    """Seconds of audio that were heard."""
    truncated_frames: int = 0
    """Frames where the bound on symbols per frame stopped the search; above 0 something is wrong."""


@dataclass(frozen=True)
class Event:
    """News from a live stream: the transcript has changed, or is final."""

    kind: Literal["partial", "final"]
    make: Callable[[], Transcript]
    """Makes the transcript; called once, and only if somebody looks."""

    @cached_property
    def transcript(self) -> Transcript:
        """All that was recognised since the stream began, with times."""
        return self.make()

    @property
    def text(self) -> str:
        """All that was recognised since the stream began."""
        return self.transcript.text


@dataclass(frozen=True)
class StreamState:
    """All that a stream remembers, batch-first: sessions can be stacked and split (asr.state)."""

    features: FbankState
    encoder: Any
    search: Any


class Step(NamedTuple):
    """What one step of a batch of streams brought."""

    tokens: list[list[Token]]
    truncated: list[int]
    state: StreamState
    encoded: tuple[EncoderOutput, ...]
    """Encoder frames of the step, in parts."""


class Flushed(NamedTuple):
    """What the end of a batch of streams brought."""

    tokens: list[list[Token]]
    truncated: list[int]
    encoded: tuple[EncoderOutput, ...]


class Latency(NamedTuple):
    """When a network that was trained for several latencies answers."""

    chunk_s: float | None
    """Seconds that are heard together; None waits for the end."""
    left_s: float | None = None
    """Seconds of history; None is what it was trained with."""


def load(
    directory: Path | str,
    device: str = "cpu",
    search: SearchConfig | None = None,
    *,
    latency: Latency | None = None,
    head: Literal["transducer", "ctc"] | None = None,
) -> Recognizer:
    """Read a model directory, optionally with other search settings, latency or head than it was saved with.

    Raises ModelError naming the file, ConfigError for a latency or head that the network does not have.
    """
    model = load_model(directory, device)
    if head is not None:
        search = (search or model.config.search).model_copy(update={"head": head})
    recognizer = Recognizer(model, search)
    return recognizer if latency is None else recognizer.with_latency(latency)


class Recognizer:
    """A loaded model with its features, search and tokenizer. Thread-compatible; streams are independent."""

    def __init__(self, model: LoadedModel, search: SearchConfig | None = None) -> None:
        self.config, self.network, self.tokenizer = model
        self.device = next(self.network.parameters()).device
        # Dither is for training: the same recording must give the same words.
        self.fbank = Fbank(self.config.features.model_copy(update={"dither": 0.0})).to(self.device)
        self._search_config = search or self.config.search
        self.search = build_search(self._search_config, self.network)

    def with_latency(self, latency: Latency) -> Recognizer:
        """The same model, its weights shared, answering sooner or later. Raises ConfigError."""
        encoder = self.network.encoder.with_latency(*latency)
        network = self.network.with_encoder(encoder)
        return Recognizer(LoadedModel(self.config, network, self.tokenizer), self._search_config)

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model hears; everything else is resampled to it."""
        return self.config.features.sample_rate

    @property
    def streaming(self) -> bool:
        """Whether live audio can be fed."""
        return self.network.encoder.streaming

    @property
    def algorithmic_latency_s(self) -> float:
        """Seconds from the start of an encoder frame until all the audio that it needs has been heard."""
        return self.network.encoder.algorithmic_latency_s + self.fbank.lookahead_s

    def transcribe(self, source: Path | str | npt.NDArray[Any], sample_rate: int | None = None) -> Transcript:
        """Transcribe a file, or an array of samples (N,) float in -1..1 or int16 at `sample_rate`.

        Files of any length are read in blocks. Raises AudioError naming the file.
        """
        name = str(source) if isinstance(source, str | Path) else "array"
        blocks = self._blocks(source, sample_rate or self.sample_rate)
        if self.streaming:
            session = Session(self, self.sample_rate, name)
            for block in blocks:
                session.feed(block)
            return session.finish()[-1].transcript
        if isinstance(source, str | Path):
            self._check_whole(probe(source).duration_s, name)
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
        return self.transcribe_batch([samples], [name])[0]

    def transcribe_batch(
        self, recordings: Sequence[npt.NDArray[Any]], names: Sequence[str] | None = None
    ) -> list[Transcript]:
        """Transcribe several recordings (N,), float in -1..1 or int16, at the model's rate at once.

        `names` go into error messages. Raises AudioError for samples that are not finite, or too many.
        """
        names = names or [f"recording {i}" for i in range(len(recordings))]
        checked = [as_float(samples, name) for samples, name in zip(recordings, names, strict=True)]
        if not checked:
            return []
        lengths = torch.tensor([len(samples) for samples in checked])
        padded = torch.zeros(len(checked), int(lengths.max()))
        for row, samples, name in zip(padded, checked, names, strict=True):
            self._check_whole(len(samples) / self.sample_rate, name)
            row[: len(samples)] = torch.from_numpy(samples)
        with torch.inference_mode():
            features, feature_lengths, _ = self.fbank(padded.to(self.device), lengths.to(self.device))
            encoded = self.network.encode(features, feature_lengths)
        step = search_whole(self.search, encoded)
        found = zip(step.tokens, step.truncated, lengths.tolist(), strict=True)
        return [self.transcript(tokens, length, truncated) for tokens, truncated, length in found]

    @torch.inference_mode()
    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Log-mel features (T, M) of samples (N,) at the model's rate, as the network hears them."""
        lengths = torch.tensor([len(samples)], device=self.device)
        found = self.fbank(torch.from_numpy(samples)[None].to(self.device), lengths).features[0]
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    def stream(self, sample_rate: int | None = None) -> Session:
        """Begin a live stream of samples at `sample_rate`; raises StreamingError if the model cannot."""
        return Session(self, sample_rate or self.sample_rate)

    def initial_state(self, batch: int = 1) -> StreamState:
        """State of `batch` streams that have heard nothing."""
        return StreamState(
            self.fbank.initial_state(batch, self.device),
            self.network.encoder.initial_state(batch, self.device),
            self.search.initial_state(batch, self.device),
        )

    @torch.inference_mode()
    def step(self, samples: Tensor, sample_lengths: Tensor, state: StreamState) -> Step:
        """Advance streams by samples (B, N), sample_lengths (B,) of them valid in each."""
        features, lengths, fbank = self.fbank(samples, sample_lengths, state.features)
        if features.shape[1] == 0:
            batch, after = features.shape[0], StreamState(fbank, state.encoder, state.search)
            return Step([[] for _ in range(batch)], [0] * batch, after, ())
        encoded = self.network.encode(features, lengths, state.encoder)
        tokens, search, truncated = self.search(encoded.y, encoded.y_lengths, state.search)
        return Step(tokens, truncated, StreamState(fbank, encoded.state, search), (encoded,))

    @torch.inference_mode()
    def flush(self, state: StreamState) -> Flushed:
        """End streams: what the features, the encoder and the search still held back."""
        features, lengths, _ = self.fbank.flush(state.features)
        encoder, search, encoded = state.encoder, state.search, list[EncoderOutput]()
        if features.shape[1]:
            encoded.append(self.network.encode(features, lengths, encoder))
            encoder = encoded[-1].state
        encoded.append(self.network.encoder.flush(encoder))
        found = []
        for y, y_lengths, _ in encoded:
            found.append(self.search(y, y_lengths, search))
            search = found[-1].state
        last = self.search.flush(search)
        tokens = [[token for part in found for token in part.tokens[i]] + last[i] for i in range(len(last))]
        truncated = [sum(part.truncated[i] for part in found) for i in range(len(last))]
        return Flushed(tokens, truncated, tuple(encoded))

    def transcript(self, tokens: Sequence[Token], samples: int, truncated: int = 0) -> Transcript:
        """Tokens with their frames to text with times and confidences."""
        ids = [token.id for token in tokens]
        frame_s = 1.0 / self.network.encoder.frame_rate
        timed = tuple(
            TimedToken(piece, token.frame * frame_s, token.end_frame * frame_s, math.exp(token.log_prob))
            for piece, token in zip(self.tokenizer.pieces(ids), tokens, strict=True)
        )
        words = tuple(
            _word(span.text, tokens[span.start : span.stop], frame_s) for span in self.tokenizer.words(ids)
        )
        duration_s = samples_to_seconds(samples, self.sample_rate)
        return Transcript(self.tokenizer.decode(ids), words, timed, duration_s, truncated)

    def _blocks(self, source: Path | str | npt.NDArray[Any], sample_rate: int) -> Iterator[Samples]:
        """A file, or an array at `sample_rate`, in blocks at the model's rate."""
        if isinstance(source, str | Path):
            yield from audio_blocks(source, self.sample_rate, BLOCK_S)
            return
        samples, size = as_float(source, "array"), seconds_to_samples(BLOCK_S, sample_rate)
        resampler = Resampler(sample_rate, self.sample_rate)
        for start in range(0, len(samples), size):
            yield resampler.feed(samples[start : start + size])
        yield resampler.flush()

    def _check_whole(self, duration_s: float, name: str) -> None:
        if duration_s > MAX_WHOLE_S:
            raise AudioError(
                f"{name}: expected at most {MAX_WHOLE_S:.0f} s to transcribe in one piece, found "
                f"{duration_s:.0f} s; give the file to a streaming model, which reads it in blocks"
            )


class Session:
    """A live stream. Feed samples as they come; read events; finish once."""

    def __init__(self, recognizer: Recognizer, sample_rate: int, name: str = "stream") -> None:
        recognizer.network.encoder.require_streaming()
        self._recognizer, self._name = recognizer, name
        self._resampler = Resampler(sample_rate, recognizer.sample_rate)
        self._state: StreamState | None = recognizer.initial_state()
        self._tokens: list[Token] = []
        self._truncated = 0
        self._waiting: list[Samples] = []
        self._waiting_samples = 0
        self._heard = 0
        encoder = recognizer.network.encoder
        self._step = seconds_to_samples(encoder.chunk_frames * encoder.frame_shift_s, recognizer.sample_rate)

    @property
    def state_bytes(self) -> int:
        """Memory that the stream's state takes; constant however long it runs."""
        return 0 if self._state is None else states.bytes_per_stream(self._state)

    def feed(self, samples: npt.NDArray[Any]) -> list[Event]:
        """The next samples, (N,) float in -1..1 or int16, any N. Returns a partial event if the text grew.

        Raises AudioError on NaN or infinite samples, StreamingError after `finish`.
        """
        self._require_open()
        return self._advance(self._resampler.feed(as_float(samples, self._name)), last=False)

    def finish(self) -> list[Event]:
        """End the stream: the last words, as one final event."""
        self._require_open()
        self._advance(self._resampler.flush(), last=True)
        assert self._state is not None
        result = self._recognizer.flush(self._state)
        self._tokens += result.tokens[0]
        self._truncated += result.truncated[0]
        self._state = None
        return [self._event("final")]

    def transcript(self) -> Transcript:
        """All that was recognised so far."""
        return self._recognizer.transcript(self._tokens, self._heard, self._truncated)

    def _require_open(self) -> None:
        if self._state is None:
            raise StreamingError(f"{self._name}: this stream has been finished; begin another with .stream()")

    def _advance(self, samples: Samples, last: bool) -> list[Event]:
        assert self._state is not None
        self._heard += len(samples)
        self._waiting.append(samples)
        self._waiting_samples += len(samples)
        # A step costs about the same for 1 ms of audio as for one encoder frame: wait for a frame's worth.
        if self._waiting_samples == 0 or (self._waiting_samples < self._step and not last):
            return []
        chunk = torch.from_numpy(np.concatenate(self._waiting))[None].to(self._recognizer.device)
        lengths = torch.tensor([chunk.shape[1]], device=chunk.device)
        step = self._recognizer.step(chunk, lengths, self._state)
        self._waiting, self._waiting_samples, self._state = [], 0, step.state
        self._tokens += step.tokens[0]
        self._truncated += step.truncated[0]
        return [self._event("partial")] if step.tokens[0] else []

    def _event(self, kind: Literal["partial", "final"]) -> Event:
        """The stream as it is now. Over hours, making the text at every step would cost more than hearing."""
        count, heard, truncated = len(self._tokens), self._heard, self._truncated
        return Event(kind, lambda: self._recognizer.transcript(self._tokens[:count], heard, truncated))


def as_float(samples: npt.NDArray[Any], name: str) -> Samples:
    """Mono samples as float32 in -1..1: floats as they are, int16 scaled; raises AudioError otherwise."""
    samples = np.asarray(samples)
    if samples.dtype == np.int16:
        scaled = samples.astype(np.float32) / np.float32(32768)
    else:
        scaled = samples.astype(np.float32) if np.issubdtype(samples.dtype, np.floating) else samples
    check_samples(scaled, name)
    return scaled


def _word(text: str, tokens: Sequence[Token], frame_s: float) -> Word:
    log_prob = sum(token.log_prob for token in tokens) / len(tokens)
    return Word(text, tokens[0].frame * frame_s, tokens[-1].end_frame * frame_s, math.exp(log_prob))
