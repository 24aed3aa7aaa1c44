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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asr.audio import Resampler, Samples, as_float, audio_blocks, probe
from asr.config import override
from asr.encoders import EncoderOutput, Latency
from asr.endpoint import EndpointConfig
from asr.errors import AudioError
from asr.features.fbank import Fbank, FbankState
from asr.lengths import samples_to_seconds, seconds_to_samples
from asr.lms import Scorer
from asr.model_directory import LoadedModel, load_model
from asr.pretrained import pretrained
from asr.search import SearchConfig, SearchResult, Token, build_scorer, build_search, search_whole
from asr.session import Event, Session
from asr.transcript import TimedToken, Transcript, Word, make_transcript
from asr.vad import VoiceActivity

__all__ = [
    "EndpointConfig",
    "Event",
    "Flushed",
    "Latency",
    "Recognizer",
    "Session",
    "Step",
    "StreamState",
    "TimedToken",
    "Transcript",
    "Word",
    "load",
]

BLOCK_S = 30.0
"""Long recordings go through a streaming model in blocks of this length."""
WHOLE_S = 120.0
"""Longer ones go through in blocks in a batch too: masks of the whole grow with the square of its length."""


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


def load(
    directory: Path | str | None = None,
    device: str = "cpu",
    search: SearchConfig | None = None,
    *,
    latency: Latency | None = None,
    head: Literal["transducer", "ctc"] | None = None,
    settings: Sequence[str] = (),
) -> Recognizer:
    """Read a model directory, optionally with other search settings, latency or head than it was saved with.

    None is the English model that comes with the package. `settings` change single settings of the search, as
    in `method=beam`, `fusion.lm=english.arpa`. Raises ModelError naming the file, ConfigError for a latency,
    head or setting that the network does not have.
    """
    directory = Path(pretrained() if directory is None else directory)
    model = load_model(directory, device)
    search = override(search or model.config.search, settings, "--search")
    if head is not None:
        search = search.model_copy(update={"head": head})
    recognizer = Recognizer(model, _found(search, directory))
    return recognizer if latency is None else recognizer.with_latency(latency)


def _found(search: SearchConfig, directory: Path) -> SearchConfig:
    """A model's own language model lies beside it."""
    lm = search.fusion.lm
    if lm is None or not (directory / lm).is_file():
        return search
    fusion = search.fusion.model_copy(update={"lm": str(directory / lm)})
    return search.model_copy(update={"fusion": fusion})


class Recognizer:
    """A loaded model with its features, search and tokenizer. Thread-compatible; streams are independent."""

    def __init__(
        self, model: LoadedModel, search: SearchConfig | None = None, scorer: Scorer | None = None
    ) -> None:
        """`scorer` takes part in the search in place of what search.fusion says."""
        self.config, self.network, self.tokenizer = model
        self.device = next(self.network.parameters()).device
        # Dither is for training: the same recording must give the same words.
        self.fbank = Fbank(self.config.features.model_copy(update={"dither": 0.0})).to(self.device)
        self._search_config = search or self.config.search
        self._scorer = scorer or build_scorer(self._search_config.fusion, self.network, self.tokenizer)
        self.search = build_search(self._search_config, self.network, self._scorer)

    def with_latency(self, latency: Latency) -> Recognizer:
        """The same model, its weights shared, answering sooner or later. Raises ConfigError."""
        encoder = self.network.encoder.with_latency(latency)
        network = self.network.with_encoder(encoder)
        model = LoadedModel(self.config, network, self.tokenizer)
        return Recognizer(model, self._search_config, self._scorer)

    @property
    def search_config(self) -> SearchConfig:
        """How it searches."""
        return self._search_config

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model hears; everything else is resampled to it."""
        return self.config.features.sample_rate

    @property
    def streaming(self) -> bool:
        """Whether live audio can be fed."""
        return self.network.encoder.streaming and self._search_config.synchronous == "time"

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

        `names` go into error messages. Raises AudioError for samples that are not finite, and for recordings
        that are too long for a model that has to hear them whole.
        """
        names = names or [f"recording {i}" for i in range(len(recordings))]
        checked = [as_float(samples, name) for samples, name in zip(recordings, names, strict=True)]
        if not checked:
            return []
        lengths = torch.tensor([len(samples) for samples in checked])
        padded = torch.zeros(len(checked), int(lengths.max()))
        for row, samples in zip(padded, checked, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        longest = int(lengths.argmax())
        longest_s = len(checked[longest]) / self.sample_rate
        if self.streaming and longest_s > WHOLE_S:
            result = self._in_blocks(padded, lengths)
        else:
            self._check_whole(longest_s, names[longest], len(checked))
            result = self._at_once(padded, lengths)
        found = zip(result.tokens, result.truncated, lengths.tolist(), strict=True)
        return [self.transcript(tokens, length, truncated) for tokens, truncated, length in found]

    @torch.inference_mode()
    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Log-mel features (T, M) of samples (N,) at the model's rate, as the network hears them."""
        lengths = torch.tensor([len(samples)], device=self.device)
        found = self.fbank(torch.from_numpy(samples)[None].to(self.device), lengths).features[0]
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    @torch.inference_mode()
    def encode(self, samples: npt.NDArray[Any], name: str = "array") -> Tensor:
        """Encoder frames (T', E) of samples (N,), float in -1..1 or int16, at the model's rate.

        Long recordings go through a streaming model in blocks. Raises AudioError, which names the recording,
        for samples that are not finite and for one that is too long to be heard whole by a model that has to.
        """
        heard = torch.from_numpy(as_float(samples, name))[None].to(self.device)
        duration_s = heard.shape[1] / self.sample_rate
        if not (self.streaming and duration_s > WHOLE_S):
            self._check_whole(duration_s, name)
            lengths = torch.tensor([heard.shape[1]], device=self.device)
            return _valid(self.network.encode(*self.fbank(heard, lengths)[:2]))
        encoder, parts = self.network.encoder.initial_state(1, self.device), list[Tensor]()
        for features, lengths in self._features_in_blocks(heard):
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
    ) -> Session:
        """Begin a live stream of samples at `sample_rate`; raises StreamingError if the model cannot.

        endpoint: rules by which utterances end; None makes the stream one utterance.
        voice: tells speech from silence (asr.vad), for one stream.
        """
        return Session(self, sample_rate or self.sample_rate, endpoint=endpoint, voice=voice)

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
        frame_s = 1.0 / self.network.encoder.frame_rate
        duration_s = samples_to_seconds(samples, self.sample_rate)
        return make_transcript(tokens, self.tokenizer, frame_s, duration_s, truncated)

    @torch.inference_mode()
    def _at_once(self, samples: Tensor, lengths: Tensor) -> SearchResult:
        """What is found in samples (B, N) that are encoded whole."""
        features, feature_lengths, _ = self.fbank(samples.to(self.device), lengths.to(self.device))
        return search_whole(self.search, self.network.encode(features, feature_lengths))

    def _in_blocks(self, samples: Tensor, lengths: Tensor) -> SearchResult:
        """The same in bounded memory, as streams."""
        state, size = self.initial_state(len(samples)), seconds_to_samples(BLOCK_S, self.sample_rate)
        parts = list[Step | Flushed]()
        for start in range(0, samples.shape[1], size):
            block = samples[:, start : start + size].to(self.device)
            step = self.step(block, (lengths - start).clamp(0, block.shape[1]).to(self.device), state)
            parts.append(step._replace(encoded=()))
            state = step.state
        parts.append(self.flush(state)._replace(encoded=()))
        tokens = [[token for part in parts for token in part.tokens[i]] for i in range(len(samples))]
        return SearchResult(tokens, [sum(part.truncated[i] for part in parts) for i in range(len(samples))])

    def _features_in_blocks(self, samples: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (1, T, M) and how many of them are valid, of samples (1, N)."""
        state, size = self.fbank.initial_state(1, self.device), seconds_to_samples(BLOCK_S, self.sample_rate)
        for start in range(0, samples.shape[1], size):
            block = samples[:, start : start + size]
            features, lengths, state = self.fbank(
                block, torch.tensor([block.shape[1]], device=self.device), state
            )
            yield features, lengths
        features, lengths, _ = self.fbank.flush(state)
        if features.shape[1]:
            yield features, lengths

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

    def _check_whole(self, duration_s: float, name: str, count: int = 1) -> None:
        longest_s = self.network.encoder.longest_whole_s / math.sqrt(count)
        if duration_s > longest_s:
            others = f" of {count} together" if count > 1 else ""
            raise AudioError(
                f"{name}: expected at most {longest_s:.0f} s to transcribe in one piece{others}, found "
                f"{duration_s:.0f} s; give the file to a streaming model, which reads it in blocks"
            )


def _valid(encoded: EncoderOutput) -> Tensor:
    """(T', E) what is valid of the only signal in a batch."""
    return encoded.y[0, : int(encoded.y_lengths[0])]
