"""Hypotheses within a frame of beam search: rows in an arena, pointers to them, and the best of them.

What a label changes (predictor, scorers) is computed once per extension and lies in the arena as a row. What
a frame changes (log-probability, frames left to consume) are small tensors that point to rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr import state as states

NOTHING = -torch.inf
"""The log-probability of a hypothesis that is not there."""
HASH_BASE = 0x5851F42D4C957F2D
"""Multiplier of the polynomial, modulo 2^64, that tells label sequences apart (Knuth's MMIX generator)."""
SKIP_BASE, HELD_BASE = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51
"""Odd multipliers of what else tells hypotheses apart."""


@dataclass(frozen=True)
class Rows:
    """What does not change while a hypothesis says nothing: one row per hypothesis."""

    predictor: Any
    projected: Tensor
    """(N, J) predictor output after the last label, projected for the joiner."""
    scorer: Any
    next: Tensor
    """(N, V) what the scorers add to each label if it comes next."""
    hash: Tensor
    """(N,) int64 of all labels."""


class Arena:
    """Rows that hypotheses of a frame point to, and their nodes."""

    def __init__(self, rows: Rows, nodes: Tensor) -> None:
        self.blocks, self.nodes = [rows], [nodes]

    def add(self, rows: Rows, nodes: Tensor) -> Tensor:
        """Pointers (B, K) to further rows."""
        size = nodes.numel()
        begin = len(self.blocks) * size
        self.blocks.append(rows)
        self.nodes.append(nodes)
        return torch.arange(begin, begin + size, device=nodes.device).view_as(nodes)

    def gather(self, pointers: Tensor) -> tuple[Rows, Tensor]:
        """The rows and nodes that are pointed to."""
        flat = pointers.flatten()
        nodes = torch.cat([block.flatten() for block in self.nodes])[flat].view_as(pointers)
        rows = self.blocks[0] if len(self.blocks) == 1 else states.stack(self.blocks)
        return states.select(rows, flat), nodes


class Active(NamedTuple):
    """Hypotheses that are extended in a round."""

    log_prob: Tensor  # (B, K)
    fused: Tensor
    held: Tensor
    rows: Rows
    pointers: Tensor
    nodes: Tensor


class Waiting(NamedTuple):
    """Hypotheses for which the frame is over: (B, N)."""

    log_prob: Tensor
    fused: Tensor
    hash: Tensor
    skip: Tensor
    held: Tensor
    pointers: Tensor
    stopped: Tensor  # bool: the bound kept it from a further label

    @property
    def total(self) -> Tensor:
        """(B, N) what hypotheses are ranked by."""
        return self.log_prob + self.fused


def best(parts: Sequence[Waiting], width: int, margin: float) -> Waiting:
    """The `width` best of several, best first, none of them `margin` below the best.

    Equal ones become one, their probabilities added.
    """
    every = Waiting(*(torch.cat(column, dim=1) for column in zip(*parts, strict=True)))
    total = every.total
    key = every.hash + every.skip * SKIP_BASE + every.held * HELD_BASE
    there = every.log_prob > NOTHING
    equal = (key[:, :, None] == key[:, None]) & there[:, None] & there[:, :, None]
    place = torch.arange(total.shape[1], device=total.device)
    better = (total[:, None] > total[:, :, None]) | (
        (total[:, None] == total[:, :, None]) & (place < place[:, None])
    )
    log_prob = every.log_prob[:, None].masked_fill(~equal, NOTHING).logsumexp(dim=2)
    log_prob = log_prob.masked_fill((equal & better).any(dim=2), NOTHING)
    every = every._replace(log_prob=log_prob)
    ranked, order = every.total.topk(width, dim=1)
    chosen = Waiting(*(column.gather(1, order) for column in every))
    lost = ranked < ranked[:, :1] - margin
    return chosen._replace(log_prob=chosen.log_prob.masked_fill(lost, NOTHING))
