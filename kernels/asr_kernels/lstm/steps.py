"""The order in which frames are treated: by step of every stream, longest streams first.

Step s of stream b is its frame s, or its frame length_b - 1 - s in reverse. Streams are sorted by falling
length, so that the streams with frames left are the first rows of every step and nothing has to be masked.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Steps:
    """Lengths and direction of a batch, and the way there and back."""

    def __init__(self, lengths: list[int], frames: int, reverse: bool, device: torch.device) -> None:
        self.lengths, self.frames, self.reverse, self.device = lengths, frames, reverse, device
        self.count = max(lengths, default=0)
        self.even = min(lengths, default=0) == frames
        self.rows = [sum(length > s for length in lengths) for s in range(self.count)]
        """Streams with frames left, at each step."""
        self.ends = torch.tensor(lengths, dtype=torch.int64, device=device)
        self._order = torch.argsort(self.ends, descending=True, stable=True)
        self._rank = torch.argsort(self._order)

    def arrange(self, x: Tensor) -> Tensor:
        """(steps, B, ...) of x (B, T, ...), zero past the end of a stream, whatever stands there."""
        if self.even:
            return x.transpose(0, 1).flip(0) if self.reverse else x.transpose(0, 1)
        ends = self.ends[self._order]
        step = torch.arange(self.count, device=self.device)[:, None]
        frame = ends - 1 - step if self.reverse else step.expand(-1, len(ends))
        found = x[self._order, frame.clamp(min=0)]
        return torch.where(self._spread(step < ends, x), found, 0.0)

    def restore(self, x: Tensor) -> Tensor:
        """(B, T, ...) of x (steps, B, ...), zero past the end of a stream; contiguous, and never a view."""
        if self.even:
            turned = x.flip(0) if self.reverse else x
            return turned.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        frame = torch.arange(self.frames, device=self.device)
        ends = self.ends[:, None]
        step = ends - 1 - frame if self.reverse else frame.expand(len(ends), -1)
        if self.count == 0:
            return x.new_zeros(len(ends), self.frames, *x.shape[2:])
        found = x[step.clamp(0, self.count - 1), self._rank[:, None]]
        return torch.where(self._spread(frame < ends, x), found, 0.0)

    def sort(self, state: Tensor) -> Tensor:
        """(heads, B, D), longest stream first, of (B, heads, D)."""
        return (state if self.even else state[self._order]).transpose(0, 1)

    def unsort(self, state: Tensor) -> Tensor:
        """(B, heads, D) of (heads, B, D) with the longest stream first; memory of its own."""
        state = state.transpose(0, 1)
        return state.clone(memory_format=torch.contiguous_format) if self.even else state[self._rank]

    def last(self, history: Tensor) -> Tensor:
        """(B, heads, D): what stands after each stream's last step in history (steps + 1, heads, B, D)."""
        if self.even:
            return history[self.count].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        return history[self.ends, :, self._rank]

    @staticmethod
    def _spread(mask: Tensor, x: Tensor) -> Tensor:
        return mask.view(*mask.shape, *(1,) * (x.ndim - 2))
