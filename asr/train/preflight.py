"""Before the first step: is every utterance long enough, and what will training cost?"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asr.data.batches import Batch
from asr.errors import TrainingError
from asr.features.fbank import FbankConfig
from asr.lengths import frame_count, seconds_to_samples, subsampled
from asr.text.tokenizer import Tokenizer
from asr.train.metrics import Stopwatch
from asr.train.step import train_batch
from asr.transducer import Transducer

SHOWN_IDS = 5


class Utterance(NamedTuple):
    """What the length check needs to know of an utterance."""

    id: str
    duration_s: float
    """As it is trained on: joined with others, sped up."""
    text: str


class Cost(NamedTuple):
    """What some trial batches cost."""

    parameters: int
    frames_per_second: float
    """Feature frames trained per second, forward and backward."""
    peak_bytes: int
    """Largest memory of the process so far."""


def refuse_too_short(
    utterances: Iterable[Utterance], features: FbankConfig, tokenizer: Tokenizer, network: Transducer
) -> None:
    """Raise TrainingError naming the utterances with fewer encoder frames than their labels need."""
    window = seconds_to_samples(features.frame_length_ms / 1000, features.sample_rate)
    shift = seconds_to_samples(features.frame_shift_ms / 1000, features.sample_rate)
    bad: list[str] = []
    for utterance in utterances:
        samples = seconds_to_samples(utterance.duration_s, features.sample_rate)
        frames = frame_count(samples, window, shift, features.snip_edges)
        frames = subsampled(frames, network.encoder.subsampling)
        needed = network.frames_needed(tokenizer.encode(utterance.text, utterance.id))
        if frames < needed:
            bad.append(f"{utterance.id} ({frames} of {needed})")
    if bad:
        more = f" and {len(bad) - SHOWN_IDS} more" if len(bad) > SHOWN_IDS else ""
        raise TrainingError(
            f"{len(bad)} utterances have fewer encoder frames than their labels need: "
            f"{', '.join(bad[:SHOWN_IDS])}{more}; remove them, or lower the subsampling factor"
        )


def measure_cost(batches: Sequence[Batch], network: Transducer, precision: str) -> Cost:
    """Run forward and backward of trial batches and discard the gradients."""
    start = time.perf_counter()
    for batch in batches:
        train_batch(network, batch, share=1.0, precision=precision, clock=Stopwatch())
    elapsed = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    frames = sum(int(batch.feature_lengths.sum()) for batch in batches)
    parameters = sum(p.numel() for p in network.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(parameters, frames / max(elapsed, 1e-9), peak)
