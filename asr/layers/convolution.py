"""Streaming convolution over time: the same numbers in any chunking.

y_i = b + sum_{j<k} W_j x_{i s + j - left}: `left` zero frames stand before the signal, and what the last
windows lack on the right is fed by the encoder's flush. The right context is therefore k - 1 - left
frames, and it is the only lookahead there is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from asr.layers.window import WindowState, initial_window_state, slide


class ConvolutionOutput(NamedTuple):
    """Frames after a streaming convolution."""

    y: Tensor
    """(B, T', D_out)."""
    y_lengths: Tensor
    """(B,) int64."""
    state: WindowState | None


class StreamingConvolution(nn.Module):
    """1-D convolution over time, batch-first (B, T, D_in) -> (B, T', D_out), with explicit state."""

    def __init__(self, input_dim: int, output_dim: int, size: int, stride: int = 1, left: int = 0) -> None:
        super().__init__()
        assert 0 <= left < size
        self.size, self.stride, self.left = size, stride, left
        self.input_dim = input_dim
        self.convolution = nn.Conv1d(input_dim, output_dim, size, stride)

    def forward(self, x: Tensor, x_lengths: Tensor, state: WindowState | None = None) -> ConvolutionOutput:
        """Whole signals with `state` None, else the next chunk of every stream."""
        windows = slide(x, x_lengths, state, size=self.size, stride=self.stride, left=self.left)
        y = self.convolution(windows.frames.transpose(1, 2)).transpose(1, 2)
        return ConvolutionOutput(y, windows.counts, windows.state)

    def initial_state(self, batch: int, device: torch.device | None, dtype: torch.dtype) -> WindowState:
        """State of `batch` streams that have heard nothing."""
        return initial_window_state(batch, self.size, self.input_dim, self.left, device, dtype)
