"""Feed a session in pieces of many sizes, and what its events say."""

from __future__ import annotations

import random

import numpy as np

import asr
from asr.recognizer import Event, Transcript


def fed(session: asr.Session, samples: np.ndarray, sizes: list[int], seed: int = 0) -> list[Event]:
    rng, events, position = random.Random(seed), [], 0
    while position < len(samples):
        size = rng.choice(sizes)
        events += session.feed(samples[position : position + size])
        position += size
    return events + session.finish()


def utterances(events: list[Event]) -> list[tuple]:
    """What the finals say."""
    finals = [event for event in events if event.kind == "final"]
    return [(e.utterance, e.rule, times(e.transcript)) for e in finals]


def times(transcript: Transcript) -> list[tuple[str, float, float]]:
    return [(t.piece, round(t.start_s, 6), round(t.end_s, 6)) for t in transcript.tokens]
