"""A live stream: samples in as they come, events out.

With an `EndpointConfig` the stream is cut into utterances. Each begins with an empty history of labels, while
features and encoder go on, so nothing between two utterances is lost. The rules are asked after every step of
the encoder, at the same places whatever pieces were fed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from asr import state as states
from asr.audio import Resampler, as_float
from asr.endpoint import EndpointConfig, Rule
from asr.errors import StreamingError
from asr.lengths import samples_to_seconds, seconds_to_samples
from asr.search import Token
from asr.transcript import Transcript, make_transcript
from asr.vad import VoiceActivity

if TYPE_CHECKING:
    from asr.recognizer import Recognizer, StreamState

Samples = npt.NDArray[np.float32]


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
        recognizer: Recognizer,
        sample_rate: int,
        name: str = "stream",
        *,
        endpoint: EndpointConfig | None = None,
        voice: VoiceActivity | None = None,
    ) -> None:
        encoder = recognizer.network.encoder
        encoder.require_streaming()
        self._recognizer, self._name, self._endpoint, self._voice = recognizer, name, endpoint, voice
        self._resampler = Resampler(sample_rate, recognizer.sample_rate)
        self._state: StreamState | None = recognizer.initial_state()
        self._waiting: list[Samples] = []
        self._waiting_samples = 0
        self._heard = 0
        self._step = seconds_to_samples(encoder.chunk_frames * encoder.frame_shift_s, recognizer.sample_rate)
        self._frame_s = 1.0 / encoder.frame_rate
        self._utterance = 0
        self._begin(0)

    @property
    def state_bytes(self) -> int:
        """Memory that the stream's state takes; constant however long it runs."""
        return 0 if self._state is None else states.bytes_per_stream(self._state)

    def feed(self, samples: npt.NDArray[Any]) -> list[Event]:
        """The next samples, (N,) float in -1..1 or int16, any N.

        Returns a partial event if the text grew, and a final one for every utterance that ended. Raises
        AudioError on NaN or infinite samples, StreamingError after `finish`.
        """
        self._require_open()
        return self._advance(self._resampler.feed(as_float(samples, self._name)), last=False)

    def finish(self) -> list[Event]:
        """End the stream: events of what was waiting, the last of them final."""
        self._require_open()
        events = [e for e in self._advance(self._resampler.flush(), last=True) if e.kind == "final"]
        assert self._state is not None
        result = self._recognizer.flush(self._state)
        self._tokens += result.tokens[0]
        self._truncated += result.truncated[0]
        self._state = None
        return [*events, self._event("final")]

    def transcript(self) -> Transcript:
        """All that was recognised of the utterance so far."""
        return self._event("partial").transcript

    def _require_open(self) -> None:
        if self._state is None:
            raise StreamingError(f"{self._name}: this stream has been finished; begin another with .stream()")

    def _begin(self, frame: int) -> None:
        """A new utterance, from this encoder frame on."""
        self._tokens: list[Token] = []
        self._truncated, self._first_frame = 0, frame

    def _advance(self, samples: Samples, last: bool) -> list[Event]:
        self._waiting.append(samples)
        self._waiting_samples += len(samples)
        # A step costs about the same for 1 ms of audio as for what the encoder hears at once: wait for that.
        if self._waiting_samples == 0 or (self._waiting_samples < self._step and not last):
            return []
        waiting = np.concatenate(self._waiting)
        self._waiting, self._waiting_samples = [], 0
        if self._endpoint is None:
            return self._hear(waiting)
        events, rest = list[Event](), len(waiting) if last else len(waiting) // self._step * self._step
        for start in range(0, rest, self._step):
            events += self._hear(waiting[start : min(start + self._step, rest)])
        self._waiting, self._waiting_samples = [waiting[rest:]], len(waiting) - rest
        return events

    def _hear(self, samples: Samples) -> list[Event]:
        """One step of the model, and the events that it brings."""
        assert self._state is not None
        self._heard += len(samples)
        if self._voice is not None:
            self._voice.feed(samples)
        chunk = torch.from_numpy(samples)[None].to(self._recognizer.device)
        lengths = torch.tensor([chunk.shape[1]], device=chunk.device)
        step = self._recognizer.step(chunk, lengths, self._state)
        self._state = step.state
        self._tokens += step.tokens[0]
        self._truncated += step.truncated[0]
        events = [self._event("partial")] if step.tokens[0] else []
        return events + self._ended()

    def _ended(self) -> list[Event]:
        """The final event, if the utterance has ended; another one begins."""
        assert self._state is not None
        if self._endpoint is None:
            return []
        frame = int(self._recognizer.search.frames(self._state.search)[0])
        rule = self._endpoint.rule((frame - self._first_frame) * self._frame_s, self._silence_s(frame))
        if rule is None:
            return []
        search = self._recognizer.search
        waiting = search.flush(self._state.search)[0]
        self._tokens += waiting
        events = [self._event("final", rule)] if self._tokens else []
        self._state = replace(self._state, search=search.restart(self._state.search))
        self._utterance += bool(self._tokens)
        self._begin(frame)
        return events

    def _silence_s(self, frame: int) -> float | None:
        """Silence behind the last word; None if there was none."""
        if not self._tokens:
            return None
        silence_s = (frame - self._tokens[-1].end_frame) * self._frame_s
        if self._voice is None:
            return silence_s
        return min(silence_s, self._voice.silence_s)

    def _event(self, kind: Literal["partial", "final"], rule: Rule | None = None) -> Event:
        """The utterance as it is. Over hours, making the text at every step would cost more than hearing."""
        tokens, count, truncated = self._tokens, len(self._tokens), self._truncated
        duration_s = samples_to_seconds(self._heard, self._recognizer.sample_rate)

        def make() -> Transcript:
            return make_transcript(
                tokens[:count], self._recognizer.tokenizer, self._frame_s, duration_s, truncated
            )

        return Event(kind, make, self._utterance, rule)
