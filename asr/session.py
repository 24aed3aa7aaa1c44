"""A live stream: samples in as they come, events out.

The model is asked as soon as the samples that a new encoder frame needs are there, and not before: what a
frame waits for live is the model's algorithmic latency.

Where final results are those of a second hearing (asr.second_hearing), they take the place of what was shown
when the utterance has ended.

With an `EndpointConfig` the stream is cut into utterances. Each begins with an empty history of labels, while
features and encoder go on, so nothing between two utterances is lost. The rules are asked after every step of
the encoder, at the same places whatever pieces were fed. An utterance that has become too long ends before
its last word if that may go on; the next one begins with this word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from asr import state as states
from asr.audio import Resampler, as_float
from asr.encoders import EncoderOutput
from asr.endpoint import EndpointConfig, Rule
from asr.errors import ConfigError, StreamingError
from asr.pipeline import Pipeline, StreamState
from asr.search import Token
from asr.search.beam import WHOLE_ONLY
from asr.search.second_pass import LONGEST_RESCORED_S, Ranked
from asr.second_hearing import BLOCK_S, KEPT_S, SecondHearing
from asr.transcript import Transcript
from asr.vad import VoiceActivity

Samples = npt.NDArray[np.float32]
WORD_PAUSE_S = 0.5
"""A word behind which nothing came for so long is complete."""


@dataclass(frozen=True)
class Event:
    """News from a live stream: the transcript of the utterance has changed, or is final."""

    kind: Literal["partial", "final"]
    make: Callable[[], Transcript]
    """Makes the transcript; called once, and only if somebody looks."""
    utterance: int = 0
    """Which utterance of the stream, from 0 on."""
    rule: Rule | None = None
    """Why the utterance has ended; None if the stream did."""
    first_end_s: float | None = None
    """Where its first token ends, in seconds of the stream; None without any."""
    last_end_s: float | None = None
    """Where its last token ends."""
    settled: int = 0
    """Tokens at the beginning of the utterance that will not change any more before it ends."""
    labels: Callable[[int], list[int]] = lambda start: []
    """Labels of the utterance from the token of this number on, as they are shown."""
    heard_again: bool = False
    """Whether this final result is of a second hearing: labels that had settled may have changed, too."""

    @cached_property
    def transcript(self) -> Transcript:
        """All that was recognised since the utterance began, with times in the stream."""
        return self.make()

    @property
    def text(self) -> str:
        """All that was recognised since the utterance began."""
        return self.transcript.text


class Session:
    """Feed samples as they come; read events; finish once."""

    def __init__(
        self,
        pipeline: Pipeline,
        sample_rate: int,
        name: str = "stream",
        *,
        endpoint: EndpointConfig | None = None,
        voice: VoiceActivity | None = None,
        hotwords: Sequence[str] = (),
    ) -> None:
        """See `Recognizer.stream`."""
        encoder = pipeline.network.encoder
        encoder.require_streaming()
        if endpoint is not None and pipeline.second_pass is not None:
            _check_utterances(pipeline, endpoint)
        if not pipeline.streaming:
            raise StreamingError(WHOLE_ONLY)
        self._pipeline, self._name, self._endpoint, self._voice = pipeline, name, endpoint, voice
        self._resampler = Resampler(sample_rate, pipeline.sample_rate)
        self._phrases = pipeline.listen(hotwords, name)  # they are listened for as long as this object lives
        self._state: StreamState | None = pipeline.initial_state(1, [self._phrases])
        self._again = None if pipeline.finals is None else SecondHearing(pipeline.finals, self._phrases)
        self._heard_frames: list[EncoderOutput] = []
        """Of the whole stream, if they are scored again at its end."""
        self._waiting: list[Samples] = []
        self._waiting_samples = 0
        self._heard = 0
        # The encoder answers when it has heard `lookahead_frames` beyond a chunk.
        self._first_due = pipeline.fbank.samples_for(encoder.chunk_frames + encoder.lookahead_frames)
        self._step = encoder.chunk_frames * pipeline.fbank.config.shift
        self._frame_s = 1.0 / encoder.frame_rate
        self._utterance, self._truncated = 0, 0
        self._tokens: list[Token] = []
        self._pending: list[Token] = []
        self._begin(0)

    @property
    def state_bytes(self) -> int:
        """Memory that the stream's state takes; constant however long it runs."""
        if self._state is None:
            return 0
        return states.bytes_per_stream(self._state) + (0 if self._again is None else self._again.state_bytes)

    @property
    def frames(self) -> int:
        """Encoder frames that have been searched; raises StreamingError after `finish`."""
        self._require_open()
        assert self._state is not None
        return int(self._pipeline.search.frames(self._state.search)[0])

    def feed(self, samples: npt.NDArray[Any]) -> list[Event]:
        """The next samples, (N,) float in -1..1 or int16, any N.

        Returns a partial event if the text grew, and a final one for every utterance that ended. Raises
        AudioError on NaN or infinite samples and on more than can be rescored, StreamingError after `finish`.
        """
        self._require_open()
        new = self._resampler.feed(as_float(samples, self._name))
        if self._pipeline.second_pass is not None and self._endpoint is None:
            fed_s = (self._heard + self._waiting_samples + len(new)) / self._pipeline.sample_rate
            self._pipeline.second_pass.check_length(fed_s, self._name)
        return self._advance(new, last=False)

    def finish(self) -> list[Event]:
        """End the stream: events of what was waiting, the last of them final."""
        self._require_open()
        events = [e for e in self._advance(self._resampler.flush(), last=True) if e.kind == "final"]
        assert self._state is not None
        if self._again is None:
            result = self._pipeline.flush(self._state, [self._tokens], self._heard_frames)
            self._tokens += result.tokens[0]
            n_best = result.n_best[0] if result.n_best else []
            self._truncated += result.truncated[0]
        else:
            self._tokens, self._truncated, n_best = self._again.end()
        self._state = None
        self._pending, self._heard_frames = [], []
        return [*events, self._event("final", n_best=n_best)]

    def transcript(self) -> Transcript:
        """All that was recognised of the utterance so far."""
        return self._event("partial").transcript

    def _require_open(self) -> None:
        if self._state is None:
            raise StreamingError(f"{self._name}: this stream has been finished; begin another with .stream()")

    def _begin(self, frame: int, tokens: Sequence[Token] = ()) -> None:
        """A new utterance, from this encoder frame on, of which these tokens are known."""
        self._tokens = list(tokens)
        self._pending = []
        self._truncated, self._first_frame = 0, frame

    @property
    def _due(self) -> int:
        """Samples of the stream with which the encoder has its next frame."""
        steps = max(0, (self._heard - self._first_due) // self._step + 1)
        return self._first_due + steps * self._step

    def _advance(self, samples: Samples, last: bool) -> list[Event]:
        self._waiting.append(samples)
        self._waiting_samples += len(samples)
        if self._heard + self._waiting_samples < self._due and not last:
            return []
        waiting = np.concatenate(self._waiting)
        events = list[Event]()
        if self._endpoint is not None:
            while (size := self._due - self._heard) <= len(waiting):
                events += self._hear(waiting[:size])
                waiting = waiting[size:]
        if len(waiting) and (last or self._endpoint is None):
            events += self._hear(waiting)
            waiting = waiting[:0]
        self._waiting, self._waiting_samples = [waiting], len(waiting)
        return events

    def _hear(self, samples: Samples) -> list[Event]:
        """One step of the model, and the events that it brings."""
        assert self._state is not None
        second_pass = self._pipeline.second_pass
        self._heard += len(samples)
        if self._voice is not None:
            self._voice.feed(samples)
        chunk = torch.from_numpy(samples)[None].to(self._pipeline.device)
        lengths = torch.tensor([chunk.shape[1]], device=chunk.device)
        step = self._pipeline.step(chunk, lengths, self._state)
        self._state = step.state
        if self._again is not None:
            self._again.feed(samples)
        elif second_pass is not None and second_pass.rescores:
            self._heard_frames += step.encoded
        self._tokens += step.tokens[0]
        self._truncated += step.truncated[0]
        shown, self._pending = self._pending, self._pipeline.search.pending(step.state.search)[0]
        news = _labels([*step.tokens[0], *self._pending]) != _labels(shown)
        events = [self._event("partial")] if news else []
        return events + self._ended()

    def _ended(self) -> list[Event]:
        """The final event, if the utterance has ended; another one begins."""
        if self._endpoint is None:
            return []
        assert self._state is not None
        search, frame = self._pipeline.search, self.frames
        going_on = search.flush(self._state.search)[0]
        said = [*self._tokens, *going_on]
        length_s = (frame - (said[0].frame if said else self._first_frame)) * self._frame_s
        rule = self._endpoint.rule(length_s, self._silence_s(said, frame))
        if rule is None:
            return []
        settled = search.settle(self._state.search)
        self._tokens, self._pending = self._tokens + settled.tokens[0], []
        self._state = replace(self._state, search=settled.state)
        going_on = search.flush(settled.state)[0]
        if rule != "nothing" and not self._tokens:
            return []
        whole = len(self._tokens) if rule == "silence" else self._complete(frame, bool(going_on))
        rest, self._tokens = self._tokens[whole:], self._tokens[:whole]
        border = (self._said_until() + (rest[0].frame if rest else frame)) // 2
        events = list[Event]()
        if self._tokens:
            n_best: Sequence[Ranked] = ()
            if self._again is not None:
                self._tokens, self._truncated, n_best = self._again.end(border)
            events.append(self._event("final", rule, n_best))
        elif self._again is not None:
            self._again.forget(border)
        self._state = replace(
            self._state, search=search.restart(self._state.search, [[token.id for token in rest]])
        )
        self._utterance += len(events)
        self._begin(frame, rest)
        return events + ([self._event("partial")] if rest else [])

    def _said_until(self) -> int:
        """The encoder frame in which the last token ends; without any, in which the utterance began."""
        return self._tokens[-1].end_frame if self._tokens else self._first_frame

    def _complete(self, frame: int, going_on: bool) -> int:
        """How many of the tokens belong to complete words; all of them if there is but one word."""
        words = self._pipeline.tokenizer.words([token.id for token in self._tokens])
        if len(words) < 2 or words[-1].stop < len(self._tokens):
            return len(self._tokens)
        pause_s = (frame - self._tokens[-1].end_frame) * self._frame_s
        return len(self._tokens) if pause_s >= WORD_PAUSE_S and not going_on else words[-1].start

    def _silence_s(self, said: Sequence[Token], frame: int) -> float | None:
        """Silence behind what was said; None if that is nothing."""
        if not said:
            return None
        silence_s = (frame - said[-1].end_frame) * self._frame_s
        return silence_s if self._voice is None else min(silence_s, self._voice.silence_s)

    def _event(
        self, kind: Literal["partial", "final"], rule: Rule | None = None, n_best: Sequence[Ranked] = ()
    ) -> Event:
        """The utterance as it is. Over hours, making the text at every step would cost more than hearing."""
        tokens, count, pending, truncated = self._tokens, len(self._tokens), self._pending, self._truncated
        heard = self._heard

        def make() -> Transcript:
            return self._pipeline.transcript([*tokens[:count], *pending], heard, truncated, n_best)

        def labels(start: int) -> list[int]:
            return _labels([*tokens[start:count], *pending[max(0, start - count) :]])

        first, last = (tokens or pending)[:1], (pending or tokens)[-1:]
        first_end_s = first[0].end_frame * self._frame_s if first else None
        last_end_s = last[0].end_frame * self._frame_s if last else None
        again = kind == "final" and self._again is not None
        return Event(kind, make, self._utterance, rule, first_end_s, last_end_s, count, labels, again)


def _check_utterances(pipeline: Pipeline, endpoint: EndpointConfig) -> None:
    """Raise ConfigError where the utterances of a stream cannot have a second pass.

    The search that hears live cannot give it: what was heard before a border goes on behind it, and that is
    what the best hypothesis says.
    """
    if pipeline.finals is None:
        raise ConfigError(
            "search.rescore, search.mbr, search.nbest: expected a stream that is one utterance, or final "
            "results of a second hearing, found rules that end utterances (silence, longest length, nothing) "
            "and none; leave out the ones or the others, or use search.finals=whole"
        )
    assert pipeline.second_pass is not None
    # An utterance begins in the silence before it, of which the second hearing may have heard a block.
    longest_s = (endpoint.max_length_s or math.inf) + (endpoint.nothing_s or math.inf) + KEPT_S + BLOCK_S
    if pipeline.second_pass.rescores and longest_s > LONGEST_RESCORED_S:
        found = "no end" if math.isinf(longest_s) else f"{longest_s:.0f} s"
        raise ConfigError(
            f"search.rescore: expected utterances of at most {LONGEST_RESCORED_S:.0f} s, by the rules of "
            f"longest length and of nothing, and {KEPT_S + BLOCK_S:.0f} s, found {found}; set both, or leave "
            "search.rescore out"
        )


def _labels(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]
