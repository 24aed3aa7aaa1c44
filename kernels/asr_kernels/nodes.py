"""Which nodes of a batch a reader visits: the lattices, or a band of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Nodes(NamedTuple):
    """Which nodes (B, T, W) of a batch are part of its lattices."""

    frames: list[int]
    labels: list[int]
    width: int
    first: Tensor | None = None
    """(B, T) int64: label count of the first of the W places of each frame; None for 0."""

    def valid(self, T: int, device: torch.device) -> Tensor:
        """(B, T, W) bool."""
        u = torch.arange(self.width, device=device)[None, None]
        if self.first is not None:
            u = u + self.first[:, :, None]
        T_b, U_b = (torch.tensor(x, device=device)[:, None, None] for x in (self.frames, self.labels))
        return (torch.arange(T, device=device)[None, :, None] < T_b) & (u <= U_b)

    def widths(self) -> list[int]:
        """Places to visit per frame of each utterance."""
        return [U + 1 if self.first is None else self.width for U in self.labels]
