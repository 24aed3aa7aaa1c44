"""Utterances of a live stream heard again, whole, when they have ended: a second pass of the same network.

The first pass answers while somebody speaks, from little context; the second gives the final result, from all
of the utterance. After Sainath et al. (2019), *Two-pass end-to-end speech recognition*; as in Zhang et al.
(2020), *Unified streaming and non-streaming two-pass end-to-end model* (U2), both passes are one network that
was trained for both contexts, but here the second one searches anew instead of ranking what the first found.

Audio of the utterance goes through in windows that overlap (asr.encoders.windowed), so that it may be of any
length; what fits into one window is heard whole. Utterances are cut where the first pass ended them: in the
middle of the silence, so that a word which has begun is not torn, or at the word that opens the next one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from asr import state as states
from asr.audio import Samples
from asr.encoders import EncoderOutput
from asr.lengths import seconds_to_frames
from asr.pipeline import Pipeline
from asr.search import Token
from asr.search.biasing import PhraseList
from asr.search.second_pass import Ranked

KEPT_S = 2.0
"""The end of an utterance may be found so much later."""
BLOCK_S = 4.0
"""What is older goes to the encoder in blocks of this length."""


class HeardAgain(NamedTuple):
    """What an utterance says, heard whole."""

    tokens: list[Token]
    """Their frames are counted from the start of the stream."""
    truncated: int
    n_best: list[Ranked]
    """All hypotheses, the chosen one first, if something is done with them at the end."""


class SecondHearing:
    """The utterances of one stream, one after the other."""

    def __init__(self, pipeline: Pipeline, phrases: PhraseList | None = None) -> None:
        """`pipeline` hears in windows; `phrases` are listened for."""
        self._pipeline, self._phrases = pipeline, phrases
        encoder, fbank = pipeline.network.encoder, pipeline.fbank
        self._frame = encoder.subsampling * fbank.config.shift
        self._kept, self._block = (
            self._frame * seconds_to_frames(length_s, 1 / encoder.frame_rate)
            for length_s in (KEPT_S, BLOCK_S)
        )
        self._waiting = np.zeros(0, np.float32)
        self._first: int
        """Encoder frame of the stream in which the utterance begins."""
        self._next: int = 0
        """The same of what is waiting."""
        self._begin()

    @property
    def state_bytes(self) -> int:
        """Memory of the stream at most, however long it runs."""
        waiting = self._waiting.itemsize * (self._kept + self._block)
        return states.bytes_per_stream(self._state) + waiting

    def feed(self, samples: Samples) -> None:
        """The next samples (N,), at the model's rate."""
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) >= self._kept + self._block:
            self._hear(self._block)

    def end(self, frame: int | None = None) -> HeardAgain:
        """The utterance ends, in this frame of the encoder or with all that was fed; another begins."""
        self._hear(len(self._waiting) if frame is None else self._until(frame))
        last = self._pipeline.flush(self._state, [self._tokens], self._encoded)
        tokens = [
            token._replace(frame=token.frame + self._first, end_frame=token.end_frame + self._first)
            for token in [*self._tokens, *last.tokens[0]]
        ]
        truncated = self._truncated + last.truncated[0]
        self._begin()
        return HeardAgain(tokens, truncated, last.n_best[0] if last.n_best else [])

    def forget(self, frame: int) -> None:
        """An utterance without words has ended in this encoder frame of the stream; another begins."""
        self._take(self._until(frame))
        self._begin()

    def _begin(self) -> None:
        self._first = self._next
        self._state = self._pipeline.initial_state(1, [self._phrases])
        self._tokens, self._truncated, self._encoded = list[Token](), 0, list[EncoderOutput]()

    def _until(self, frame: int) -> int:
        """Samples that are waiting before this frame; those that are not have been heard."""
        return min(max(0, frame - self._next) * self._frame, len(self._waiting))

    def _take(self, count: int) -> Samples:
        """So many of the waiting samples, which wait no more."""
        samples, self._waiting = self._waiting[:count], self._waiting[count:]
        self._next += count // self._frame
        return samples

    def _hear(self, count: int) -> None:
        """So many of the waiting samples."""
        samples = self._take(count)
        if not count:
            return
        chunk = torch.from_numpy(samples)[None].to(self._pipeline.device)
        step = self._pipeline.step(chunk, torch.tensor([count], device=chunk.device), self._state)
        self._state = step.state
        self._tokens += step.tokens[0]
        self._truncated += step.truncated[0]
        if (second_pass := self._pipeline.second_pass) is not None and second_pass.rescores:
            self._encoded += step.encoded
