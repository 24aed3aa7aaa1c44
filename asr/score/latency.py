"""Delay and speed of live recognition, from numbers to numbers.

All times are seconds from the start of the recording. A word "appears" at the moment of audio time at which
it was first shown whole: the amount of audio that had been fed when the event came, computing not included.

    first-token delay   first appearance - end of the first word in truth
    final-token delay   last appearance  - end of the speech (of the last word in truth)
    word delay          appearance of the i-th word - its end in truth, only where the counts agree
    real-time factor    computing time / audio time; below 1 a stream keeps up

The final-token delay is the partial-recognition latency of Yu et al., "FastEmit" (ICASSP 2021). Delays are
negative where a word was recognised before its end. They measure the model and its chunking; what a user
waits in addition is the computing time of a chunk, in `StreamStats`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asr.errors import DataError


@dataclass(frozen=True)
class Delays:
    """Distribution of a delay in seconds; all values NaN if there was nothing to measure."""

    count: int
    mean_s: float
    median_s: float
    p90_s: float
    worst_s: float

    def __str__(self) -> str:
        if not self.count:
            return "not measured"
        return (
            f"mean {1000 * self.mean_s:.0f} ms, median {1000 * self.median_s:.0f} ms, "
            f"p90 {1000 * self.p90_s:.0f} ms, worst {1000 * self.worst_s:.0f} ms ({self.count})"
        )


@dataclass(frozen=True)
class UtteranceTiming:
    """Truth and live observation of one utterance, in seconds."""

    word_ends_s: Sequence[float]
    """End of each word in truth, in order."""
    appeared_s: Sequence[float]
    """Audio time at which each recognised word first appeared, in order; empty if none did."""
    id: str = ""


@dataclass(frozen=True)
class LatencyReport:
    """Delays over a test set."""

    first_token: Delays
    final_token: Delays
    words: Delays
    silent: int
    """Utterances with words in which nothing was recognised; they are in no delay."""

    def lines(self) -> list[str]:
        """Return the report for the terminal."""
        skipped = [f"nothing recognised in {self.silent} utterances"] if self.silent else []
        return [
            f"first-token delay  {self.first_token}",
            f"final-token delay  {self.final_token}",
            f"word delay         {self.words}",
            *skipped,
        ]


@dataclass(frozen=True)
class StreamStats:
    """Cost of one or more streams; they add up with `+`."""

    audio_s: float = 0.0
    compute_s: float = 0.0
    chunks: int = 0
    worst_chunk_s: float = 0.0
    """Longest computing time of one chunk: what a user waits for at worst in addition to the delays."""
    state_bytes: int = 0
    """Memory of one stream's state (the largest of those added)."""

    @property
    def real_time_factor(self) -> float:
        """Computing time per audio time; NaN without audio."""
        return self.compute_s / self.audio_s if self.audio_s else math.nan

    @property
    def mean_chunk_s(self) -> float:
        """Mean computing time of a chunk; NaN without chunks."""
        return self.compute_s / self.chunks if self.chunks else math.nan

    def chunk(self, audio_s: float, compute_s: float) -> StreamStats:
        """Return these statistics with one more chunk."""
        return self + StreamStats(audio_s, compute_s, 1, compute_s, self.state_bytes)

    def __add__(self, other: StreamStats) -> StreamStats:
        return StreamStats(
            self.audio_s + other.audio_s,
            self.compute_s + other.compute_s,
            self.chunks + other.chunks,
            max(self.worst_chunk_s, other.worst_chunk_s),
            max(self.state_bytes, other.state_bytes),
        )

    def __str__(self) -> str:
        factor = f"real-time factor {self.real_time_factor:.3f} " if self.audio_s else ""
        return (
            f"{factor}({self.compute_s:.2f} s for {self.audio_s:.1f} s of audio, {self.chunks} chunks, "
            f"worst {1000 * self.worst_chunk_s:.0f} ms), {self.state_bytes} bytes of state"
        )


def summarize(delays_s: Iterable[float]) -> Delays:
    """Return mean, median, 90th percentile (linear interpolation) and maximum of delays in seconds."""
    values = np.array([*delays_s], dtype=np.float64)
    if not len(values):
        return Delays(0, math.nan, math.nan, math.nan, math.nan)
    p90 = float(np.quantile(values, 0.9))
    return Delays(len(values), float(values.mean()), float(np.median(values)), p90, float(values.max()))


def measure_latency(utterances: Iterable[UtteranceTiming]) -> LatencyReport:
    """Return the delays of live recognition over utterances.

    Utterances without words are left out. Raises DataError naming the utterance if times are not finite or
    not in order.
    """
    first: list[float] = []
    final: list[float] = []
    words: list[float] = []
    silent = 0
    for utterance in utterances:
        _check(utterance)
        if not utterance.word_ends_s:
            continue
        if not utterance.appeared_s:
            silent += 1
            continue
        first.append(utterance.appeared_s[0] - utterance.word_ends_s[0])
        final.append(utterance.appeared_s[-1] - utterance.word_ends_s[-1])
        if len(utterance.appeared_s) == len(utterance.word_ends_s):
            words += [a - e for a, e in zip(utterance.appeared_s, utterance.word_ends_s, strict=True)]
    return LatencyReport(summarize(first), summarize(final), summarize(words), silent)


def _check(utterance: UtteranceTiming) -> None:
    for name, times in (("word ends", utterance.word_ends_s), ("appearances", utterance.appeared_s)):
        values = np.asarray(times, dtype=np.float64)
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise DataError(
                f"utterance {utterance.id or '(unnamed)'}: expected finite, increasing {name} in seconds, "
                f"found {', '.join(f'{value:g}' for value in values[:8])}"
            )
