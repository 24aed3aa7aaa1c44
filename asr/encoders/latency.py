"""Latencies in seconds, as they are chosen at use, and the contexts in frames that they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from asr.errors import ConfigError
from asr.layers.context import ContextConfig

LONGEST_CHUNK_S, LONGEST_HISTORY_S = 60.0, 300.0


class Latency(NamedTuple):
    """When a network that was trained for several latencies answers."""

    chunk_s: float | None
    """Seconds that are heard together; None waits for the end."""
    left_s: float | None = None
    """Seconds of history; None is what that chunk was trained with."""

    @property
    def name(self) -> str:
        """The chunk as users give it: milliseconds, or full."""
        return "full" if self.chunk_s is None else f"{1000 * self.chunk_s:g}"


def trained_latencies(contexts: Sequence[ContextConfig], frame_s: float) -> tuple[Latency, ...]:
    """The contexts, of frames of `frame_s` seconds, that can stream, in order; the whole utterance last."""
    found = []
    for context in contexts:
        if context.streaming:
            assert context.chunk is not None
            found.append(Latency(context.chunk * frame_s, context.history * frame_s))
    whole = [Latency(None)] if ContextConfig() in contexts else []
    return (*sorted(found), *whole)


def context_for(
    latency: Latency, contexts: Sequence[ContextConfig], frame_s: float, pooling: int
) -> ContextConfig:
    """The context of a network that was trained with `contexts` and pools its frames of `frame_s` seconds.

    Raises ConfigError for chunks that are no whole frames behind the pooling, for what is too long, and where
    a history was neither given nor trained.
    """
    if latency.chunk_s is None:
        return ContextConfig()
    chunk = pooling * whole_frames(latency.chunk_s, pooling * frame_s)
    if latency.left_s is None:
        history_s = _trained_history(chunk, contexts, frame_s)
    else:
        history_s = _checked_history(latency.left_s)
    return ContextConfig(chunk=chunk, left_chunks=math.ceil(history_s / (chunk * frame_s) - 1e-6))


def whole_frames(chunk_s: float, frame_s: float) -> int:
    """Frames of `frame_s` seconds in a chunk. Raises ConfigError unless they are whole and not too many."""
    if not 0 < chunk_s <= LONGEST_CHUNK_S:
        raise ConfigError(
            f"expected chunks of up to {LONGEST_CHUNK_S:g} s, found {1000 * chunk_s:g} ms: "
            f"{1000 * frame_s:g} ms is the shortest"
        )
    frames = round(chunk_s / frame_s)
    if frames < 1 or abs(frames * frame_s - chunk_s) > 1e-3 * frame_s:
        low = max(1, int(chunk_s / frame_s))
        raise ConfigError(
            f"expected chunks of whole frames of {1000 * frame_s:g} ms, found {1000 * chunk_s:g} ms: "
            f"{1000 * low * frame_s:g} or {1000 * (low + 1) * frame_s:g} would do"
        )
    return frames


def _trained_history(chunk: int, contexts: Sequence[ContextConfig], frame_s: float) -> float:
    """Seconds of history that these chunks were trained with; the longest of any if they were not."""
    trained = {c.chunk: c.history * frame_s for c in contexts if c.streaming}
    if not trained:
        raise ConfigError(
            "this network was not trained with a limited history, and no chunk has one: choose both, "
            f"e.g. --latency {1000 * chunk * frame_s:g}:2000, and measure what it costs"
        )
    return trained.get(chunk, max(trained.values()))


def _checked_history(left_s: float) -> float:
    """The seconds. Raises ConfigError if nothing can remember so much."""
    if not 0 <= left_s <= LONGEST_HISTORY_S:
        raise ConfigError(
            f"expected a history of 0 to {1000 * LONGEST_HISTORY_S:g} ms, found {1000 * left_s:g} ms"
        )
    return left_s
