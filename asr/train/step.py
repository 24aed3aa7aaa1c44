"""Forward and backward of one batch, in two halves: the heads with their losses, then the encoder.

The encoder's output is cut out of the graph, the losses are differentiated down to it, and that gradient
is handed to the encoder. The result is the same as one backward, but the memory of the lattice is free
before the encoder's backward begins, and the two can be timed apart. An utterance in several views is one
utterance, whose loss is the mean over them. Where word errors are trained (asr.losses.mwer), a search goes
before, for the hypotheses that they are expected over.

What is drawn on the way (dropout) depends on the batch's seed alone: not on the process that goes through
it, nor on what it went through before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr.data.batch import Batch
from asr.data.texts import TextBatch
from asr.errors import AsrError
from asr.lms import NeuralLm
from asr.losses import NBest
from asr.text.tokenizer import Tokenizer
from asr.train.metrics import Stopwatch
from asr.train.n_best import find_n_best
from asr.transducer import Transducer


class BatchResult(NamedTuple):
    """What a batch gave."""

    loss: float
    """Sum of the finite losses, in nats."""
    labels: int
    """Labels of the utterances that counted."""
    non_finite: tuple[str, ...]
    """Ids of the utterances whose loss was not finite; they gave no gradient."""
    duration_s: float
    """Seconds of speech."""
    utterances: int = 0
    """That were in the plan."""
    corrupt: tuple[str, ...] = ()
    """Utterances that were left out because they could not be read, and why; one line each."""


class Share(NamedTuple):
    """What one process adds to an optimiser step, for all to know."""

    results: tuple[BatchResult, ...] = ()
    """Of its batches; their gradients stay with its network."""
    error: AsrError | None = None
    """What kept it from going on."""
    stop: bool = False
    """Whether it was asked to stop after this step."""
    save: bool = False
    """Whether a checkpoint is due after this step."""


def in_order(shares: Sequence[Share]) -> list[BatchResult]:
    """The results of all processes in the order of the epoch's plan, whose batches are dealt in turn."""
    rounds = zip_longest(*(share.results for share in shares))
    return [result for dealt in rounds for result in dealt if result is not None]


def train_batch(
    network: Transducer,
    batch: Batch,
    *,
    precision: str,
    clock: Stopwatch,
    step: int | None = None,
    seed: int = 0,
    in_step: bool = False,
    tokenizer: Tokenizer | None = None,
) -> BatchResult:
    """Add the gradients of the sum of the losses of `batch` to the network's; nothing if it is borrowed or
    empty.

    `step` is the optimiser step, for what warms up; `seed` goes with the batch's own. With `in_step` the
    backward pass is made in any case, because other processes are waiting for it. `tokenizer` is that of the
    labels, for a network that is trained on word errors.
    """
    planned = len(batch.ids) + len(batch.corrupt)
    if batch.empty and not in_step:
        return BatchResult(0.0, 0, (), 0.0, planned, batch.corrupt)
    device = next(network.parameters()).device
    features, lengths, targets, target_lengths = (
        tensor.to(device, non_blocking=True)
        for tensor in (batch.features, batch.feature_lengths, batch.targets, batch.target_lengths)
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    n_best = None
    if _finds_hypotheses(network, batch, step):
        assert tokenizer is not None, "word errors are counted in texts"
        with clock("search"):
            n_best = _n_best(network, batch, features, lengths, tokenizer, autocast)
    _seed(device, seed, batch.seed)
    with clock("encoder"), autocast:
        encoded = network.encode_views(features, lengths, batch.views, step)
    boundary = encoded.y.detach().requires_grad_()
    with clock("loss"):
        with autocast:
            rows = targets.repeat(batch.views, 1), target_lengths.repeat(batch.views)
            of_views = network.losses(boundary, encoded.y_lengths, *rows, step, batch.views, n_best).total
        losses = of_views.view(batch.views, -1).mean(dim=0)
        finite = torch.isfinite(losses.detach()) & (not batch.borrowed and not batch.empty)
        labels = int(target_lengths[finite].sum())
        total = torch.where(finite, losses, torch.zeros_like(losses)).sum()
        if in_step or bool(finite.any()):
            total.backward()  # type: ignore[no-untyped-call]
    with clock("encoder"):
        if boundary.grad is not None:
            encoded.y.backward(boundary.grad)  # type: ignore[no-untyped-call]
    lost = tuple(id for id, good in zip(batch.ids, finite.tolist(), strict=False) if not good)
    return BatchResult(float(total.detach()), labels, lost, batch.duration_s, planned, batch.corrupt)


def _finds_hypotheses(network: Transducer, batch: Batch, step: int | None) -> bool:
    """Whether the network is trained on word errors at this step."""
    loss = network.config.loss
    own_step = loss.transducer.own_step(step)
    return loss.mwer.weight > 0 and not batch.empty and (own_step is None or own_step >= 0)


def _n_best(
    network: Transducer,
    batch: Batch,
    features: Tensor,
    lengths: Tensor,
    tokenizer: Tokenizer,
    autocast: torch.autocast,
) -> NBest:
    """The hypotheses of every row of features."""
    cut = zip(batch.targets.tolist(), batch.target_lengths.tolist(), strict=True)
    references = [row[:length] for row, length in cut] * batch.views
    return find_n_best(
        network, features, lengths, batch.texts * batch.views, references, tokenizer, autocast=autocast
    )


def train_texts(
    network: NeuralLm, batch: TextBatch, *, precision: str, clock: Stopwatch, seed: int = 0
) -> BatchResult:
    """The same for sentences and a language model: labels and the ends of sentences are counted, and the
    loss is that without the penalties, which are in the gradients.
    """
    device = next(network.parameters()).device
    _seed(device, seed, batch.seed)
    with clock("model"):
        labels, lengths = batch.labels.to(device), batch.lengths.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            losses = network.losses(labels, lengths)
        finite = torch.isfinite(losses.nats.detach() + losses.penalty.detach())
        zero = torch.zeros_like(losses.nats)
        if bool(finite.any()):
            total = torch.where(finite, losses.nats + losses.penalty, zero).sum()
            total.backward()  # type: ignore[no-untyped-call]
    nats = float(torch.where(finite, losses.nats.detach(), zero).sum())
    lost = tuple(id for id, good in zip(batch.ids, finite.tolist(), strict=True) if not good)
    return BatchResult(nats, int((lengths + 1)[finite].sum()), lost, 0.0, len(batch.ids))


def _seed(device: torch.device, *seeds: int) -> None:
    """Seed what the network draws from; torch.manual_seed takes a millisecond where CUDA is not in use."""
    seed = int(np.random.default_rng(seeds).integers(2**62))
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
