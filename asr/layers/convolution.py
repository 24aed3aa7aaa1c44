"""Convolutions over time that give the same numbers in any chunking.

`StreamingConvolution`, for streams of any raggedness::

    y_i = b + sum_{j<k} W_j x_{i s + j - left}

`left` zero frames stand before the signal, and what the last windows lack on the right is fed by the
encoder's flush. The right context is therefore k - 1 - left frames, and it is the only lookahead there is.

`CausalConvolution`, a gated branch of recurrent layers that hears some frames back::

    y = W_o SiLU(depthwise(GLU(W_i norm(x))))

`DepthwiseConvolution`, of every channel by itself, for encoders that work in chunks: causal, or symmetric
within what the chunk can see, zeros standing for frames that come after it (Li et al. 2023, "Dynamic chunk
convolution for unified streaming and non-streaming Conformer ASR").
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.layers.depthwise import depthwise
from asr.layers.residual import Branch
from asr.layers.window import WindowState, gather_from, initial_window_state, slide


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


class DepthwiseConvolution(nn.Module):
    """(B, T, dim) -> (B, T, dim), with explicit state."""

    def __init__(self, dim: int, size: int, kind: Literal["causal", "chunk"]) -> None:
        super().__init__()
        assert size % 2 == 1
        self.size, self.right = size, 0 if kind == "causal" else size // 2
        self.left = size - 1 - self.right
        self.weight = nn.Parameter(torch.empty(dim, 1, size))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, chunk: int | None) -> Tensor:
        """Whole signals, zero beyond their ends, in chunks of so many frames (None: one of all)."""
        if self.right == 0 or chunk is None or chunk >= x.shape[1]:
            return self._convolve(functional.pad(x, (0, 0, self.left, self.right)))
        B, T, dim = x.shape
        chunks = -(-T // chunk)
        padded = functional.pad(x, (0, 0, self.left, chunks * chunk - T))
        windows = padded.unfold(1, self.left + chunk, chunk).transpose(2, 3)  # (B, chunks, left + chunk, dim)
        windows = functional.pad(windows.flatten(0, 1), (0, 0, 0, self.right))
        return self._convolve(windows).reshape(B, chunks * chunk, dim)[:, :T]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next chunk (B, C, dim) of every stream behind the state (B, left, dim), and the new state."""
        frames = torch.cat((state, x), dim=1)
        y = self._convolve(functional.pad(frames, (0, 0, 0, self.right)))
        return y, frames[:, frames.shape[1] - self.left :]

    def _convolve(self, frames: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L - size + 1, dim)."""
        return depthwise(frames, self.weight, self.bias)


class CausalConvolution(Branch):
    """(B, T, dim) -> (B, T, dim), without the residual; see the module docstring."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = CausalDepthwise(dim, size)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next piece of every stream, and its state; as CausalDepthwise."""
        y, state = self.depthwise(functional.glu(self.gate(self.norm(x)), dim=-1), lengths, state)
        return self.out(functional.silu(y)), state

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """State of `batch` streams that have heard nothing."""
        return self.depthwise.initial_state(batch, device, dtype)


class CausalDepthwise(nn.Module):
    """y_t = b + sum_j w_j x_{t - size + 1 + j} of every channel by itself, with explicit state."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.dim, self.size = dim, size
        self.convolution = nn.Conv1d(dim, dim, size, groups=dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next frames (B, T, dim), `lengths` (B,) of which are there (None: all), behind the last ones.

        Returns as many frames and the new state, (B, size - 1, dim).
        """
        frames, kept = torch.cat((state.to(x.dtype), x), dim=1), self.size - 1
        # A copy: a view would keep all of the piece.
        end = frames[:, x.shape[1] :].clone() if lengths is None else gather_from(frames, lengths, kept)
        end = end.to(state.dtype)
        if x.shape[1] == 0:
            return x, end
        assert self.convolution.bias is not None
        return depthwise(frames, self.convolution.weight, self.convolution.bias), end

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """State of `batch` streams that have heard nothing."""
        return torch.zeros(batch, self.size - 1, self.dim, device=device, dtype=dtype)
