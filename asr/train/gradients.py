"""From the gradients of every process's batches to those of the optimiser step.

Backward adds up sums of losses, not means. Here the sums of all processes are added and divided by the
labels of all of them: the gradient is that of the mean loss per label over the whole step, whoever went
through which of its batches. N processes make the step that one makes of the same batches.

Not DistributedDataParallel: it averages over processes (some have fewer labels than others, or no batch at
all at the end of an epoch), wants every process to use the same parameters in every step (layers that join
later, utterances left out), and wraps `forward`, where training calls `encode` and `losses` and goes
backward in two halves. What it would give, communication during the backward pass, is bought back by
accumulation: gradients travel once per step, packed into buckets that are summed while the next one is
packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from asr.train.distributed import World

BUCKET_BYTES = 25_000_000
"""Gradients that travel together: enough to be worth the trip, few enough that several overlap."""


def sum_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Make every gradient the sum over processes; a parameter that no process has used keeps none."""
    if world.size == 1:
        return
    used = _used_somewhere(parameters, world)
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    under_way = []
    for bucket in _buckets([p.grad for p in used if p.grad is not None]):
        packed = torch.cat([gradient.flatten() for gradient in bucket])
        under_way.append((world.sum(packed), packed, bucket))
    for wait, packed, bucket in under_way:
        wait()
        for gradient, part in zip(bucket, torch.split(packed, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def divide_gradients(parameters: Sequence[nn.Parameter], count: float) -> None:
    """Divide every gradient by `count`, if there are any."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, 1 / count)


def _used_somewhere(parameters: Sequence[nn.Parameter], world: World) -> list[nn.Parameter]:
    """The parameters that have a gradient on any process."""
    having = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    world.sum(having)()
    return [p for p, processes in zip(parameters, having.tolist(), strict=True) if processes]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype and of at least BUCKET_BYTES in all, but for the last of them."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() * g.element_size() for g in bucket) >= BUCKET_BYTES
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
