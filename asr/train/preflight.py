"""Before the first step: is every utterance long enough, and what will training cost?

The statistics of the features are measured on the way, over the first batches of training; a run that
begins with a model keeps the model's, to which its weights belong.
"""

from __future__ import annotations

import heapq
import resource
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from torch import Tensor

from asr.data.batch import Batch
from asr.errors import TokenError, TrainingError
from asr.features.fbank import FbankConfig, feature_count
from asr.lengths import seconds_to_samples, subsampled
from asr.text.tokenizer import Tokenizer
from asr.train.metrics import Stopwatch
from asr.train.setup import RunSetup, Utterance
from asr.train.step import train_batch
from asr.train.task import Cost
from asr.transducer import Transducer

SHOWN_IDS = 5
NORM_BATCHES = 50
"""Batches from which the feature statistics are measured: enough for means to three digits."""
TRIAL_BATCHES = 3


def preflight(setup: RunSetup) -> Cost:
    """Check lengths, measure the feature statistics into the network, and the cost of the largest batches.

    Raises TrainingError naming utterances that are too short for their text, TokenError naming one that the
    tokenizer cannot write.
    """
    initial = setup.info.initial
    try:
        refuse_too_short(setup.utterances(), setup.recipe.features, setup.tokenizer, setup.network)
    except TokenError as error:
        raise error if initial is None else initial.explain(error) from None
    largest: list[tuple[int, int, Batch]] = []
    corrupt: list[str] = []

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(islice(setup.unmasked(), NORM_BATCHES)):
            corrupt.extend(batch.corrupt)
            if batch.empty:
                continue
            nodes = batch.features.shape[0] * batch.features.shape[1] * (batch.targets.shape[1] + 1)
            heapq.heappush(largest, (nodes, number, batch))
            if len(largest) > TRIAL_BATCHES:
                heapq.heappop(largest)
            yield batch.features, batch.feature_lengths
        if not largest:
            raise TrainingError(f"no recording of the first batches can be read, the first is {corrupt[0]}")

    if initial is None:
        setup.network.norm.measure(features())
    else:
        deque(features(), maxlen=0)  # for the largest batches alone
    batches = [batch for _, _, batch in largest]
    network, precision = setup.network.train(), setup.recipe.training.precision
    return measure_cost(batches, network, precision, setup.tokenizer)


def refuse_too_short(
    utterances: Iterable[Utterance], features: FbankConfig, tokenizer: Tokenizer, network: Transducer
) -> None:
    """Raise TrainingError naming the utterances with fewer encoder frames than their labels need."""
    bad: list[str] = []
    for utterance in utterances:
        samples = seconds_to_samples(utterance.duration_s, features.sample_rate)
        frames = subsampled(feature_count(samples, features), network.encoder.subsampling)
        needed = network.frames_needed(tokenizer.encode(utterance.text, utterance.id))
        if frames < needed:
            bad.append(f"{utterance.id} ({frames} of {needed})")
    if bad:
        more = f" and {len(bad) - SHOWN_IDS} more" if len(bad) > SHOWN_IDS else ""
        raise TrainingError(
            f"{len(bad)} utterances have fewer encoder frames than their labels need: "
            f"{', '.join(bad[:SHOWN_IDS])}{more}; remove them, or lower the subsampling factor"
        )


def measure_cost(batches: Sequence[Batch], network: Transducer, precision: str, tokenizer: Tokenizer) -> Cost:
    """Run forward and backward of trial batches and discard the gradients."""
    start = time.perf_counter()
    for batch in batches:
        train_batch(network, batch, precision=precision, clock=Stopwatch(), tokenizer=tokenizer)
    elapsed = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    frames = sum(int(batch.feature_lengths.sum()) for batch in batches)
    parameters = sum(p.numel() for p in network.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(parameters, frames / max(elapsed, 1e-9), peak)
