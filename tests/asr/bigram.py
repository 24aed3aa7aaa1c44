"""A scorer that a test can add up by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LastLabel:
    """State of Bigram."""

    label: Tensor


class Bigram:
    """A scorer from a table: (V, V) scores, row 0 for the beginning, column 0 for the end."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.vocab_size = table, table.shape[0]

    def initial_state(self, batch: int, device: torch.device | None = None) -> LastLabel:
        return LastLabel(torch.zeros(batch, dtype=torch.int64, device=device))

    def score(self, state: LastLabel) -> Tensor:
        scores = self.table[state.label].clone()
        scores[:, 0] = 0
        return scores

    def advance(self, state: LastLabel, labels: Tensor) -> LastLabel:
        assert bool((labels > 0).all())
        return LastLabel(labels)

    def end(self, state: LastLabel) -> Tensor:
        return self.table[state.label, 0]

    def of(self, labels: tuple[int, ...]) -> float:
        pairs = zip((0, *labels), (*labels, 0), strict=True)
        return float(sum(self.table[pair] for pair in pairs))
