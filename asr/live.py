"""Recordings as live audio: what a user at a microphone would have seen, and when.

A recording is fed in chunks to a `Session`. Every update carries the audio time at which it appeared
(seconds of the recording fed so far) and the computing it took, so that delays and the real-time factor
are measured on the very path that live use takes. Whatever ends the audio, its own end, an interrupt or an
error of its source, what was heard before is finished first.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy.typing as npt
from rapidfuzz.distance import LCSseq

from asr.audio import Samples, audio_blocks, probe
from asr.endpoint import EndpointConfig
from asr.errors import AsrError
from asr.interrupt import Interrupt
from asr.recognizer import Event, Recognizer, Transcript
from asr.score.latency import StreamStats
from asr.score.stability import Stability, compare
from asr.text.tokenizer import Tokenizer
from asr.vad import VoiceActivity

SHOWN_TOKENS = 400
"""Of an open utterance as many settled tokens are shown, and what is behind them."""


@dataclass(frozen=True)
class Response:
    """How soon an utterance was answered, in seconds of audio; computing comes on top."""

    first_token_s: float
    """From the end of the first token to where it was shown."""
    final_s: float
    """From the end of the last token to the final result."""
    compute_s: float
    """Seconds of computing when that came, for the chunk that ended the utterance or the end of the audio."""
    real_time_factor: float
    """Computing time per audio time of the utterance; NaN if it ended with what another one had fed."""

    def __str__(self) -> str:
        delays = (
            f"first token {1000 * self.first_token_s:.0f} ms, final {1000 * self.final_s:.0f} ms and "
            f"{1000 * self.compute_s:.0f} ms of computing"
        )
        if math.isnan(self.real_time_factor):
            return delays
        return f"{delays}, real-time factor {self.real_time_factor:.3f}"


@dataclass(frozen=True)
class Update:
    """What a user has seen and waited for, so far."""

    event: Event
    heard_s: float
    """Seconds of audio fed so far."""
    stats: StreamStats
    """Computing so far."""
    response: Response | None = None
    """Of a final result with words."""

    @property
    def transcript(self) -> Transcript:
        """Of the utterance so far; made when it is looked at."""
        return self.event.transcript

    @property
    def final(self) -> bool:
        """Whether the utterance has ended."""
        return self.event.kind == "final"


def feed_file(
    recognizer: Recognizer,
    path: Path,
    chunk_s: float,
    *,
    realtime: bool = False,
    endpoint: EndpointConfig | None = None,
    voice: VoiceActivity | None = None,
    interrupt: Interrupt | None = None,
) -> Iterator[Update]:
    """Feed a file at its own sample rate in chunks of `chunk_s`; `realtime` waits as a microphone would."""
    rate = probe(path).sample_rate
    chunks = audio_blocks(path, rate, chunk_s)
    if realtime:
        chunks = _paced(chunks, rate)
    return feed(recognizer, chunks, rate, endpoint=endpoint, voice=voice, interrupt=interrupt)


def feed(
    recognizer: Recognizer,
    chunks: Iterable[npt.NDArray[Any]],
    sample_rate: int,
    *,
    endpoint: EndpointConfig | None = None,
    voice: VoiceActivity | None = None,
    hotwords: Sequence[str] = (),
    interrupt: Interrupt | None = None,
) -> Iterator[Update]:
    """Feed chunks of samples; an update for whatever changed a transcript, the last one final.

    A request of `interrupt` ends the audio. An AsrError of the chunks is raised behind the last update.
    """
    session = recognizer.stream(sample_rate, endpoint=endpoint, voice=voice, hotwords=hotwords)
    stats = StreamStats(state_bytes=session.state_bytes)
    watch, fed, failure = _Watch(), 0, None
    try:
        for chunk in chunks if interrupt is None else interrupt.until(chunks):
            begun = time.perf_counter()
            events = session.feed(chunk)
            fed += len(chunk)
            spent_s = time.perf_counter() - begun
            stats = stats.chunk(len(chunk) / sample_rate, spent_s)
            for event in events:
                yield watch.update(event, fed / sample_rate, stats, spent_s)
    except AsrError as error:
        failure = error
    begun = time.perf_counter()
    events = session.finish()
    spent_s = time.perf_counter() - begun
    stats = stats.chunk(0.0, spent_s)
    for event in events:
        yield watch.update(event, fed / sample_rate, stats, spent_s)
    if failure is not None:
        raise failure


def _paced(chunks: Iterable[Samples], sample_rate: int) -> Iterator[Samples]:
    """Each chunk when its last sample would have been spoken."""
    start, fed = time.perf_counter(), 0
    for chunk in chunks:
        fed += len(chunk)
        time.sleep(max(0.0, start + fed / sample_rate - time.perf_counter()))
        yield chunk


class _Watch:
    """When the first token of the utterance was shown, and what was computed before the utterance."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        """Where the first token ended, and the seconds of audio with which it was shown."""
        self._before = StreamStats()

    def update(self, event: Event, heard_s: float, stats: StreamStats, spent_s: float) -> Update:
        """What the event means to a user who has heard so much and waited `spent_s` for the last chunk."""
        first_end_s, last_end_s = event.first_end_s, event.last_end_s
        if self._first is None and first_end_s is not None:
            self._first = first_end_s, heard_s
        if event.kind == "partial":
            return Update(event, heard_s, stats)
        response = None
        if last_end_s is not None and self._first is not None:
            audio_s, compute_s = (
                stats.audio_s - self._before.audio_s,
                stats.compute_s - self._before.compute_s,
            )
            factor = compute_s / audio_s if audio_s else math.nan
            response = Response(self._first[1] - self._first[0], heard_s - last_end_s, spent_s, factor)
        self._first, self._before = None, stats
        return Update(event, heard_s, stats, response)


def shown_text(event: Event, tokenizer: Tokenizer) -> str:
    """What an utterance says so far, for a line on a terminal: of a long one what was said last, in words.

    Over hours, making and showing all of the text again with every update would take longer than hearing.
    """
    begin = max(0, event.settled - SHOWN_TOKENS)
    labels = event.labels(begin)
    if begin == 0:
        return tokenizer.decode(labels)
    whole = tokenizer.words(labels)[1:]  # the first one may have begun before
    return f"… {tokenizer.decode(labels[whole[0].start :])}" if whole else "…"


class ShownWords:
    """Watches the words of a stream change, event by event (asr.score.stability).

    Only what follows the last word that begins in settled labels is made into words again, but where an
    utterance was heard again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.stability = Stability()
        """Of the utterances so far; the open one has no final words yet."""
        self._tokenizer = tokenizer
        self._begin()

    def _begin(self) -> None:
        self._from, self._words, self._settled, self._changed = 0, list[str](), list[str](), False

    def see(self, event: Event) -> None:
        """The next event."""
        if event.heard_again:
            self._from, self._words, self._settled = 0, self._settled + self._words, []
        spans = self._tokenizer.words(event.labels(self._from))
        words = [span.text for span in spans]
        change = compare(self._words, words)
        self._changed = self._changed or change.changed > 0
        self.stability += Stability(changed=change.changed, grown=change.grown)
        if event.kind == "final":
            final = len(self._settled) + len(words)
            self.stability += Stability(final=final, utterances=1, unstable=int(self._changed))
            self._begin()
            return
        begun = sum(span.start < event.settled - self._from for span in spans)
        complete = max(0, begun - 1)
        self._words = words[complete:]
        self._settled += words[:complete]
        self._from += spans[complete].start if complete else 0


def word_appearances(updates: Sequence[Update]) -> list[float]:
    """Audio time in seconds from which on each word of a finished stream of one utterance was shown whole.

    Only the ends of tokens are compared: over hours, making the text of every update would take too long.
    What is thought again later counts from then on; of an utterance that was heard again, what was not among
    the words shown last counts from the end on.
    """
    if not updates[-1].event.heard_again:
        return _appearances(updates)
    shown = updates[:-1]
    before = [word.text for word in shown[-1].transcript.words] if shown else []
    after = [word.text for word in updates[-1].transcript.words]
    appeared, found = _appearances(shown) if shown else [], [updates[-1].heard_s] * len(after)
    for block in LCSseq.opcodes(before, after):
        if block.tag == "equal":
            found[block.dest_start : block.dest_end] = appeared[block.src_start : block.src_end]
    return found


def _appearances(updates: Sequence[Update]) -> list[float]:
    """The same for the words of the last update."""
    shown = [(u.event.last_end_s, u.heard_s) for u in updates if u.event.last_end_s is not None]
    ends_s = list(accumulate(reversed([end_s for end_s, _ in shown]), min))[::-1]
    return [shown[bisect_left(ends_s, word.end_s)][1] for word in updates[-1].transcript.words]
