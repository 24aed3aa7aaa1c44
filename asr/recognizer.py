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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asr.audio import Resampler, Samples, as_float, audio_blocks, probe
from asr.config import override
from asr.encoders import Encoder, EncoderOutput, Latency, WindowConfig, WindowedEncoder
from asr.endpoint import EndpointConfig
from asr.features.fbank import Fbank, FbankState
from asr.lengths import samples_to_seconds, seconds_to_samples
from asr.lms import Scorer
from asr.model_directory import LoadedModel, load_model
from asr.pretrained import pretrained
from asr.search import (
    BeamSearch,
    CtcBeamSearch,
    SearchConfig,
    SearchResult,
    Token,
    build_scorer,
    build_search,
    build_second_pass,
    search_whole,
)
from asr.search.biasing import PhraseList
from asr.search.second_pass import Ranked
from asr.search.streams import begin, listen
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
    "WindowConfig",
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
    n_best: list[list[Ranked]]
    """For each stream all hypotheses of the whole, the chosen one first, if there was a second pass."""


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
        beam = self._search_config.method == "beam"
        self._scorer = scorer or build_scorer(
            self._search_config.fusion, self.network, self.tokenizer, streams=beam
        )
        self.search = build_search(self._search_config, self.network, self._scorer)
        self.second_pass = build_second_pass(self._search_config, self.network, self.tokenizer)
        """What is done with the hypotheses that are left when a stream ends, if anything."""

    def with_latency(self, latency: Latency) -> Recognizer:
        """The same model, its weights shared, answering sooner or later. Raises ConfigError."""
        return self._with_encoder(self.network.encoder.with_latency(latency))

    def with_windows(self, windows: WindowConfig | None = None) -> Recognizer:
        """The same model, its weights shared, hearing windows that overlap: in bounded memory, live too.

        For models that otherwise hear whole recordings; its latency is that of a window. Raises ConfigError.
        """
        return self._with_encoder(WindowedEncoder(self.network.encoder, windows or WindowConfig()))

    def _with_encoder(self, encoder: Encoder) -> Recognizer:
        model = LoadedModel(self.config, self.network.with_encoder(encoder), self.tokenizer)
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
    def longest_whole_s(self) -> float:
        """Seconds of a recording that can be heard whole: memory and the encoder's positions decide."""
        return min(self.network.encoder.longest_whole_s, self.network.encoder.period_s)

    @property
    def algorithmic_latency_s(self) -> float:
        """Seconds from the start of an encoder frame until all the audio that it needs has been heard."""
        return self.network.encoder.algorithmic_latency_s + self.fbank.lookahead_s

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
        name = str(source) if isinstance(source, str | Path) else "array"
        rate = sample_rate or self.sample_rate
        if not self.streaming and self.windows_for(_duration_s(source, rate)) is not None:
            return self.with_windows().transcribe(source, sample_rate, hotwords=hotwords)
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
        too_long = not self.streaming and duration_s > self.longest_whole_s
        return WindowConfig() if too_long else None

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
        and for recordings that are too long to be rescored.
        """
        names = names or [f"recording {i}" for i in range(len(recordings))]
        checked = [as_float(samples, name) for samples, name in zip(recordings, names, strict=True)]
        if not checked:
            return []
        lengths = torch.tensor([len(samples) for samples in checked])
        longest = int(lengths.argmax())
        longest_s = len(checked[longest]) / self.sample_rate
        if self.second_pass is not None:
            self.second_pass.check_length(longest_s, names[longest])
        whole_s = self.network.encoder.longest_whole_s / math.sqrt(len(checked))
        if not self.streaming and (longest_s > whole_s or self.windows_for(longest_s) is not None):
            return self._one_by_one(checked, names, hotwords)
        padded = torch.zeros(len(checked), int(lengths.max()))
        for row, samples in zip(padded, checked, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        phrases = [self.listen(*each) for each in zip(hotwords or [()] * len(names), names, strict=True)]
        in_blocks = self.streaming and longest_s > min(WHOLE_S, whole_s)
        result = (self._in_blocks if in_blocks else self._at_once)(padded, lengths, phrases)
        n_best = result.n_best or [()] * len(checked)
        found = zip(result.tokens, lengths.tolist(), result.truncated, n_best, strict=True)
        return [self.transcript(*each) for each in found]

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
    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Log-mel features (T, M) of samples (N,) at the model's rate, as the network hears them."""
        lengths = torch.tensor([len(samples)], device=self.device)
        found = self.fbank(torch.from_numpy(samples)[None].to(self.device), lengths).features[0]
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    @torch.inference_mode()
    def encode(self, samples: npt.NDArray[Any], name: str = "array") -> Tensor:
        """Encoder frames (T', E) of samples (N,), float in -1..1 or int16, at the model's rate.

        Long recordings go through a streaming model in blocks, through others in windows (`windows_for`).
        Raises AudioError, which names the recording, for samples that are not finite.
        """
        heard = torch.from_numpy(as_float(samples, name))[None].to(self.device)
        duration_s = heard.shape[1] / self.sample_rate
        if (windows := self.windows_for(duration_s)) is not None:
            return self.with_windows(windows).encode(samples, name)
        if not (self.streaming and duration_s > min(WHOLE_S, self.network.encoder.longest_whole_s)):
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

    def listen(self, hotwords: Sequence[str], name: str = "hotwords") -> PhraseList | None:
        """Phrases that streams are expected to hold, for `initial_state`; None if there are none.

        hotwords: each as a line of a file is written (asr.text.hotwords), "kathleen" or "new delhi<TAB>6.5".
            They come to those of search.fusion.biasing, whose boost is that of phrases without one.

        `name` goes into errors. Raises HotwordsError or TokenError naming the phrase, ConfigError if the
        search cannot listen.
        """
        return listen(self.search, self._search_config.fusion.biasing, hotwords, name)

    def initial_state(self, batch: int = 1, phrases: Sequence[PhraseList | None] = ()) -> StreamState:
        """State of `batch` streams that have heard nothing; the phrases that each listens for, if any do."""
        return StreamState(
            self.fbank.initial_state(batch, self.device),
            self.network.encoder.initial_state(batch, self.device),
            begin(self.search, batch, phrases, self.device),
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
    def flush(
        self,
        state: StreamState,
        said: Sequence[Sequence[Token]] | None = None,
        heard: Sequence[EncoderOutput] = (),
    ) -> Flushed:
        """End streams: what the features, the encoder and the search still held back.

        said: tokens that each stream gave out before; without them there is no second pass.
        heard: all encoder frames before, where the second pass rescores.
        """
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
        tokens = [[token for part in found for token in part.tokens[i]] for i in range(len(found[0].tokens))]
        truncated = [sum(part.truncated[i] for part in found) for i in range(len(tokens))]
        if said is None or self.second_pass is None:
            last = self.search.flush(search)
            tokens = [before + rest for before, rest in zip(tokens, last, strict=True)]
            return Flushed(tokens, truncated, tuple(encoded), [])
        assert isinstance(self.search, BeamSearch | CtcBeamSearch)
        before = [[*first, *more] for first, more in zip(said, tokens, strict=True)]
        n_best = self.second_pass(before, self.search.n_best(search), [*heard, *encoded])
        tokens = [row[0].hypothesis.tokens[len(first) :] for row, first in zip(n_best, said, strict=True)]
        return Flushed(tokens, truncated, tuple(encoded), n_best)

    def transcript(
        self, tokens: Sequence[Token], samples: int, truncated: int = 0, n_best: Sequence[Ranked] = ()
    ) -> Transcript:
        """Tokens with their frames to text with times and confidences, and search.nbest of a list."""
        frame_s = 1.0 / self.network.encoder.frame_rate
        duration_s = samples_to_seconds(samples, self.sample_rate)
        told, confidence = n_best[: self._search_config.nbest], self._search_config.confidence
        return make_transcript(tokens, self.tokenizer, frame_s, duration_s, truncated, told, confidence)

    @torch.inference_mode()
    def _at_once(
        self, samples: Tensor, lengths: Tensor, phrases: Sequence[PhraseList | None]
    ) -> SearchResult:
        """What is found in samples (B, N) that are encoded whole."""
        features, feature_lengths, _ = self.fbank(samples.to(self.device), lengths.to(self.device))
        encoded = self.network.encode(features, feature_lengths)
        state = begin(self.search, len(samples), phrases, self.device)
        return search_whole(self.search, encoded, self.second_pass, state)

    def _in_blocks(
        self, samples: Tensor, lengths: Tensor, phrases: Sequence[PhraseList | None]
    ) -> SearchResult:
        """The same in bounded memory, as streams; such long ones are not rescored."""
        state, size = self.initial_state(len(samples), phrases), seconds_to_samples(BLOCK_S, self.sample_rate)
        parts = list[Step]()
        for start in range(0, samples.shape[1], size):
            block = samples[:, start : start + size].to(self.device)
            step = self.step(block, (lengths - start).clamp(0, block.shape[1]).to(self.device), state)
            parts.append(step._replace(encoded=()))
            state = step.state
        tokens = [[token for part in parts for token in part.tokens[i]] for i in range(len(samples))]
        last = self.flush(state, tokens)
        tokens = [before + rest for before, rest in zip(tokens, last.tokens, strict=True)]
        counts = [*(part.truncated for part in parts), last.truncated]
        truncated = [sum(count[i] for count in counts) for i in range(len(samples))]
        return SearchResult(tokens, truncated, last.n_best)

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


def _duration_s(source: Path | str | npt.NDArray[Any], sample_rate: int) -> float:
    """Of a file, by its header, or of samples at this rate."""
    if isinstance(source, str | Path):
        return probe(source).duration_s
    return samples_to_seconds(len(source), sample_rate)


def _valid(encoded: EncoderOutput) -> Tensor:
    """(T', E) what is valid of the only signal in a batch."""
    return encoded.y[0, : int(encoded.y_lengths[0])]
