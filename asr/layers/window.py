"""Sliding windows over ragged streams: the one streaming primitive under every convolution.

A window operation with `size` k and `stride` s turns frames x_0 .. x_{n-1} into one output per complete
window [i s, i s + k). Fed in chunks it must remember the frames that later windows still need: at most
k - 1 of them, a different number for every stream of a batch, because streams feed different amounts.
The state keeps them right-aligned; `slide` lines them up with the new frames, left-aligned, so that an
ordinary convolution over the result gives exactly the outputs that the whole signal would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class WindowState:
    """What a stream remembers between chunks."""

    frames: Tensor
    """(B, size - 1, D) last frames, right-aligned."""
    pending: Tensor
    """(B,) int64, how many of them still belong to a future window."""


class Windows(NamedTuple):
    """Frames ready for a window operation."""

    frames: Tensor
    """(B, L, D) left-aligned, L >= size; only windows before `counts` are made of valid frames."""
    counts: Tensor
    """(B,) int64, complete windows of each stream."""
    state: WindowState | None


def initial_window_state(
    batch: int, size: int, width: int, left: int, device: torch.device | None, dtype: torch.dtype
) -> WindowState:
    """A stream that starts with `left` frames of zeros, as padding on the left would give."""
    assert 0 <= left < size
    frames = torch.zeros(batch, size - 1, width, device=device, dtype=dtype)
    pending = torch.full((batch,), left, dtype=torch.int64, device=device)
    return WindowState(frames, pending)


def slide(
    x: Tensor, x_lengths: Tensor, state: WindowState | None, *, size: int, stride: int, left: int
) -> Windows:
    """Line up frames for windows of `size` every `stride`.

    x: (B, T, D); x_lengths: (B,) valid frames. With `state` None, x is the whole signal: `left` zero
    frames go before it and no state comes back. With a state, x is the next chunk.
    """
    assert stride <= size, "with gaps between windows a stream would have to count skipped frames"
    if state is None:
        frames = functional.pad(x, (0, 0, left, max(0, size - left - x.shape[1])))
        return Windows(frames, _window_count(x_lengths + left, size, stride), None)
    kept = size - 1
    missing = max(0, 1 - x.shape[1])  # a window of one frame keeps nothing, and a chunk may be empty
    frames = torch.cat([state.frames, functional.pad(x, (0, 0, 0, missing))], dim=1)
    lengths = state.pending + x_lengths
    aligned = gather_from(frames, kept - state.pending, max(size, frames.shape[1]))
    counts = _window_count(lengths, size, stride)
    pending = lengths - counts * stride
    # The last size - 1 of [kept frames | new valid frames]: they start x_lengths into the concatenation.
    tail = gather_from(frames, x_lengths, kept)
    return Windows(aligned, counts, WindowState(tail, pending))


def joined(a: Tensor, a_lengths: Tensor, b: Tensor, b_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Stream by stream, the valid frames of a (B, N, D), then those of b (B, M, D); and their number."""
    if a.shape[1] == 0 or not bool(a_lengths.any()):
        return b, b_lengths
    place = torch.arange(a.shape[1] + b.shape[1], device=a.device)[None]
    behind = place - a_lengths[:, None]
    index = torch.where(behind < 0, place, a.shape[1] + behind).clamp(max=a.shape[1] + b.shape[1] - 1)
    frames = torch.cat((a, b), dim=1).gather(1, index[:, :, None].expand(-1, -1, a.shape[2]))
    return frames, a_lengths + b_lengths


def _window_count(lengths: Tensor, size: int, stride: int) -> Tensor:
    return torch.where(lengths >= size, (lengths - size) // stride + 1, torch.zeros_like(lengths))


def gather_from(frames: Tensor, start: Tensor, length: int) -> Tensor:
    """(B, length, D) frames of each stream from its own `start` (B,); past the end, anything finite."""
    if length == 0 or frames.shape[1] == 0:
        return frames.new_zeros(len(frames), length, frames.shape[2])
    index = start[:, None] + torch.arange(length, device=frames.device)[None, :]
    index = index.clamp(max=frames.shape[1] - 1)
    return frames.gather(1, index[:, :, None].expand(-1, -1, frames.shape[2]))
