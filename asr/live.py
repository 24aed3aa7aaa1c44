"""Recordings as live audio: what a user at a microphone would have seen, and when.

A recording is fed in chunks to a `Session`. Every update carries the audio time at which it appeared
(seconds of the recording fed so far) and the computing it took, so that delays and the real-time factor
are measured on the very path that live use takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from asr.audio import audio_blocks, probe
from asr.endpoint import EndpointConfig
from asr.recognizer import Event, Recognizer, Transcript
from asr.score.latency import StreamStats
from asr.vad import VoiceActivity


@dataclass(frozen=True)
class Response:
    """How soon an utterance was answered, in seconds of audio; computing comes on top."""

    first_token_s: float
    """From the end of the first token to where it was shown."""
    final_s: float
    """From the end of the last token to the final result."""
    real_time_factor: float
    """Computing time per audio time of the utterance."""

    def __str__(self) -> str:
        return (
            f"first token {1000 * self.first_token_s:.0f} ms, final {1000 * self.final_s:.0f} ms, "
            f"real-time factor {self.real_time_factor:.3f}"
        )


@dataclass(frozen=True)
class Update:
    """What a user has seen and waited for, so far."""

    transcript: Transcript
    heard_s: float
    """Seconds of audio fed so far."""
    stats: StreamStats
    """Computing so far."""
    final: bool
    """Whether the utterance has ended."""
    utterance: int = 0
    """Which utterance of the stream, from 0 on."""
    response: Response | None = None
    """Of a final result with words."""


def feed_file(
    recognizer: Recognizer,
    path: Path,
    chunk_s: float,
    *,
    realtime: bool = False,
    endpoint: EndpointConfig | None = None,
    voice: VoiceActivity | None = None,
) -> Iterator[Update]:
    """Feed a file at its own sample rate in chunks of `chunk_s`; `realtime` waits as a microphone would."""
    rate = probe(path).sample_rate
    chunks = audio_blocks(path, rate, chunk_s)
    return feed(recognizer, chunks, rate, realtime=realtime, endpoint=endpoint, voice=voice)


def feed(
    recognizer: Recognizer,
    chunks: Iterable[npt.NDArray[Any]],
    sample_rate: int,
    *,
    realtime: bool = False,
    endpoint: EndpointConfig | None = None,
    voice: VoiceActivity | None = None,
) -> Iterator[Update]:
    """Feed chunks of samples; an update for whatever changed a transcript, the last one final."""
    session = recognizer.stream(sample_rate, endpoint=endpoint, voice=voice)
    stats = StreamStats(state_bytes=session.state_bytes)
    watch = _Watch()
    start, fed = time.perf_counter(), 0
    for chunk in chunks:
        fed += len(chunk)
        heard_s = fed / sample_rate
        if realtime:
            time.sleep(max(0.0, start + heard_s - time.perf_counter()))
        begun = time.perf_counter()
        events = session.feed(chunk)
        stats = stats.chunk(len(chunk) / sample_rate, time.perf_counter() - begun)
        for event in events:
            yield watch.update(event, heard_s, stats)
    begun = time.perf_counter()
    events = session.finish()
    stats = stats.chunk(0.0, time.perf_counter() - begun)
    for event in events:
        yield watch.update(event, fed / sample_rate, stats)


class _Watch:
    """When the first token of the utterance was shown, and what was computed before the utterance."""

    def __init__(self) -> None:
        self._shown_s: float | None = None
        self._before = StreamStats()

    def update(self, event: Event, heard_s: float, stats: StreamStats) -> Update:
        """What the event means to a user who has heard so much."""
        tokens = event.transcript.tokens
        if tokens and self._shown_s is None:
            self._shown_s = heard_s
        response = None
        if event.kind == "final":
            if tokens and self._shown_s is not None:
                audio_s = max(stats.audio_s - self._before.audio_s, 1e-9)
                response = Response(
                    self._shown_s - tokens[0].end_s,
                    heard_s - tokens[-1].end_s,
                    (stats.compute_s - self._before.compute_s) / audio_s,
                )
            self._shown_s, self._before = None, stats
        return Update(event.transcript, heard_s, stats, event.kind == "final", event.utterance, response)


def word_appearances(updates: Sequence[Update]) -> list[float]:
    """Audio time in seconds at which each word of a finished stream was first shown whole."""
    appeared = []
    for i, word in enumerate(updates[-1].transcript.words):
        shown = (u.heard_s for u in updates if [w.text for w in u.transcript.words[i : i + 1]] == [word.text])
        appeared.append(next(shown))
    return appeared
