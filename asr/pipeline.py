"""Samples to labels, for any batch of streams: features, encoder and search, each with explicit state.

A recording that is heard whole goes the same way: at once, or in blocks as a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asr.audio import Samples
from asr.encoders import EncoderOutput, Latency, WindowedEncoder, windows_suiting
from asr.errors import ConfigError
from asr.features.fbank import Fbank, FbankState
from asr.lengths import samples_to_seconds, seconds_to_samples
from asr.lms import Scorer
from asr.model_directory import LoadedModel
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
from asr.transcript import Transcript, make_transcript

BLOCK_S = 30.0
"""Long recordings go through in blocks of this length."""


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


class Pipeline:
    """A loaded model with its features, search and tokenizer. Thread-compatible; streams are independent."""

    finals: Pipeline | None
    """The same model for final results, hearing whole utterances; None: they are what was said live."""

    def __init__(
        self, model: LoadedModel, search: SearchConfig | None = None, scorer: Scorer | None = None
    ) -> None:
        """`scorer` takes part in the search in place of what search.fusion says."""
        self.config, self.network, self.tokenizer = model
        self.device = next(self.network.parameters()).device
        # Dither is for training: the same recording must give the same words.
        self.fbank = Fbank(self.config.features.model_copy(update={"dither": 0.0})).to(self.device)
        self.search_config = search or self.config.search
        beam = self.search_config.method == "beam"
        self.scorer = scorer or build_scorer(
            self.search_config.fusion, self.network, self.tokenizer, streams=beam
        )
        self.search = build_search(self.search_config, self.network, self.scorer)
        self.second_pass = build_second_pass(self.search_config, self.network, self.tokenizer)
        """What is done with the hypotheses that are left when a stream ends, if anything."""
        self.finals = self._hearing_whole()

    def _hearing_whole(self) -> Self | None:
        """See `finals`; raises ConfigError for a network that was not trained for it."""
        encoder = self.network.encoder
        live = self.search_config.finals == "live" or not encoder.streaming
        if live or isinstance(encoder, WindowedEncoder):
            return None
        if Latency(None) not in encoder.latencies:
            trained = ", ".join(latency.name for latency in encoder.latencies) or "one latency alone"
            raise ConfigError(
                "search.finals=whole: expected a network that was trained to hear utterances whole, too (a "
                f"context without chunks), found one trained for {trained}; leave it out"
            )
        encoder = encoder.with_latency(Latency(None))
        windowed = WindowedEncoder(encoder, windows_suiting(encoder))
        model = LoadedModel(self.config, self.network.with_encoder(windowed), self.tokenizer)
        return type(self)(model, self.search_config.model_copy(update={"finals": "live"}), self.scorer)

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model hears; everything else is resampled to it."""
        return self.config.features.sample_rate

    @property
    def streaming(self) -> bool:
        """Whether live audio can be fed."""
        return self.network.encoder.streaming and self.search_config.synchronous == "time"

    @property
    def algorithmic_latency_s(self) -> float:
        """Seconds from the start of an encoder frame until all the audio that it needs has been heard."""
        return self.network.encoder.algorithmic_latency_s + self.fbank.lookahead_s

    @torch.inference_mode()
    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Log-mel features (T, M) of samples (N,) at the model's rate, as the network hears them."""
        lengths = torch.tensor([len(samples)], device=self.device)
        found = self.fbank(torch.from_numpy(samples)[None].to(self.device), lengths).features[0]
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    def listen(self, hotwords: Sequence[str], name: str = "hotwords") -> PhraseList | None:
        """Phrases that streams are expected to hold, for `initial_state`; None if there are none.

        hotwords: each as a line of a file is written (asr.text.hotwords), "kathleen" or "new delhi<TAB>6.5".
            They come to those of search.fusion.biasing, whose boost is that of phrases without one.

        `name` goes into errors. Raises HotwordsError or TokenError naming the phrase, ConfigError if the
        search cannot listen.
        """
        return listen(self.search, self.search_config.fusion.biasing, hotwords, name)

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
        told, confidence = n_best[: self.search_config.nbest], self.search_config.confidence
        return make_transcript(tokens, self.tokenizer, frame_s, duration_s, truncated, told, confidence)

    @torch.inference_mode()
    def at_once(self, samples: Tensor, lengths: Tensor, phrases: Sequence[PhraseList | None]) -> SearchResult:
        """What is found in samples (B, N) that are encoded whole."""
        features, feature_lengths, _ = self.fbank(samples.to(self.device), lengths.to(self.device))
        encoded = self.network.encode(features, feature_lengths)
        state = begin(self.search, len(samples), phrases, self.device)
        return search_whole(self.search, encoded, self.second_pass, state)

    def in_blocks(
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

    def features_in_blocks(self, samples: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
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
