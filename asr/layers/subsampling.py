"""Time reduction at the encoder's entrance: 10 ms frames to 20 or 40 ms.

`conv`: a stack of convolutions of 3 frames, stride 2, with one frame of left context each. Output frame i
of factor f sees the inputs f i - (f - 1) .. f i + f - 1, so its right context is the rest of its own block
and nothing more.
`stack`: f consecutive frames side by side, then one linear layer (Sak et al. 2015, section 3).

Both give ceil(T / f) frames once the tail of f - 1 frames has been flushed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.config import Config
from asr.layers.convolution import ConvolutionOutput, StreamingConvolution
from asr.layers.window import WindowState


class SubsamplingConfig(Config):
    """How feature frames become encoder frames."""

    kind: Literal["conv", "stack"] = "conv"
    """`conv`: convolutions of stride 2; `stack`: frame stacking."""
    factor: Literal[1, 2, 4, 8] = 4
    """Feature frames per encoder frame."""
    channels: int = Field(128, ge=1)
    """Width between the convolutions."""


class SubsamplingOutput(NamedTuple):
    """Frames after time reduction."""

    y: Tensor
    """(B, T', output_dim)."""
    y_lengths: Tensor
    """(B,) int64."""
    state: tuple[WindowState, ...] | None


class Subsampling(nn.Module):
    """(B, T, input_dim) -> (B, ceil(T / factor), output_dim), any chunking."""

    def __init__(self, config: SubsamplingConfig, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.factor = config.factor
        if config.kind == "stack" or config.factor == 1:
            layers = [StreamingConvolution(input_dim, output_dim, config.factor, config.factor)]
        else:
            count = config.factor.bit_length() - 1
            widths = [input_dim, *[config.channels] * (count - 1), output_dim]
            layers = [StreamingConvolution(widths[i], widths[i + 1], 3, 2, left=1) for i in range(count)]
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Tensor, x_lengths: Tensor, state: tuple[WindowState, ...] | None = None
    ) -> SubsamplingOutput:
        """Whole signals with `state` None, else the next chunk."""
        states: list[WindowState] = []
        for i, layer in enumerate(self.layers):
            out: ConvolutionOutput = layer(x, x_lengths, None if state is None else state[i])
            x, x_lengths = torch.relu(out.y), out.y_lengths
            if out.state is not None:
                states.append(out.state)
        return SubsamplingOutput(x, x_lengths, None if state is None else tuple(states))

    def initial_state(
        self, batch: int, device: torch.device | None, dtype: torch.dtype
    ) -> tuple[WindowState, ...]:
        """State of `batch` streams that have heard nothing."""
        layers = [layer for layer in self.layers if isinstance(layer, StreamingConvolution)]
        return tuple(layer.initial_state(batch, device, dtype) for layer in layers)
