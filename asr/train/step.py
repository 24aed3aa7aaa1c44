"""Forward and backward of one batch, in two halves: the heads with their losses, then the encoder.

The encoder's output is cut out of the graph, the losses are differentiated down to it, and that gradient
is handed to the encoder. The result is the same as one backward, but the memory of the lattice is free
before the encoder's backward begins, and the two can be timed apart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from asr.data.batches import Batch
from asr.train.metrics import Stopwatch
from asr.transducer import Transducer


class BatchResult(NamedTuple):
    """What a batch gave."""

    loss: float
    """Sum of the finite losses, in nats."""
    labels: int
    """Labels of the utterances that counted."""
    non_finite: tuple[str, ...]
    """Ids of the utterances whose loss was not finite; they gave no gradient."""


def train_batch(
    network: Transducer,
    batch: Batch,
    *,
    share: float,
    precision: str,
    clock: Stopwatch,
    step: int | None = None,
) -> BatchResult:
    """Add the gradients of the mean loss per label of `batch`, times `share`, to the network's.

    `step` is the optimiser step, for what warms up.
    """
    device = next(network.parameters()).device
    features, lengths, targets, target_lengths = (
        tensor.to(device, non_blocking=True)
        for tensor in (batch.features, batch.feature_lengths, batch.targets, batch.target_lengths)
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with clock("encoder"), autocast:
        encoded = network.encode(features, lengths, step=step)
    boundary = encoded.y.detach().requires_grad_()
    with clock("loss"):
        with autocast:
            losses = network.losses(boundary, encoded.y_lengths, targets, target_lengths, step).total
        finite = torch.isfinite(losses.detach())
        labels = int(target_lengths[finite].sum())
        total = torch.where(finite, losses, torch.zeros_like(losses)).sum()
        if bool(finite.any()):
            (total * (share / max(labels, 1))).backward()  # type: ignore[no-untyped-call]
    with clock("encoder"):
        if boundary.grad is not None:
            encoded.y.backward(boundary.grad)  # type: ignore[no-untyped-call]
    lost = tuple(id for id, good in zip(batch.ids, finite.tolist(), strict=True) if not good)
    return BatchResult(float(total.detach()), labels, lost)
