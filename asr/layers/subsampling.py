"""Time reduction at the encoder's entrance: 10 ms frames to 20 or 40 ms.

`conv`: a stack of convolutions of 3 frames, stride 2, with one frame of left context each. Output frame i
of factor f sees the inputs f i - (f - 1) .. f i + f - 1, so its right context is the rest of its own block
and nothing more.
`stack`: f consecutive frames side by side, then one linear layer (Sak et al. 2015, section 3).
`conv2d`: convolutions of 3 frames and 3 bins, stride 2 in both, then one linear layer (Gulati et al. 2020).
`separable`: likewise, each but the first as a depthwise and a pointwise one (Rekesh et al. 2023, "Fast
Conformer with linearly scalable attention").

All give ceil(T / f) frames once the tail of f - 1 frames has been flushed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.config import Config
from asr.layers.convolution import ConvolutionOutput, StreamingConvolution
from asr.layers.window import WindowState, initial_window_state, slide


class SubsamplingConfig(Config):
    """How feature frames become encoder frames."""

    kind: Literal["conv", "stack", "conv2d", "separable"] = "conv"
    """`conv`: convolutions of stride 2; `stack`: frames side by side; the others: over time and bins."""
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
        count, layers = config.factor.bit_length() - 1, list[nn.Module]()
        self.out: nn.Linear | None = None
        if config.kind == "stack" or config.factor == 1:
            layers = [StreamingConvolution(input_dim, output_dim, config.factor, config.factor)]
        elif config.kind == "conv":
            widths = [input_dim, *[config.channels] * (count - 1), output_dim]
            layers = [StreamingConvolution(widths[i], widths[i + 1], 3, 2, left=1) for i in range(count)]
        else:
            bins = input_dim
            for i in range(count):
                channels = config.channels if i else 1
                separable = config.kind == "separable" and i > 0
                layers.append(PlaneConvolution(bins, channels, config.channels, separable))
                bins = -(-bins // 2)
            self.out = nn.Linear(bins * config.channels, output_dim)
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
        if self.out is not None:
            x = self.out(x)
        return SubsamplingOutput(x, x_lengths, None if state is None else tuple(states))

    def initial_state(
        self, batch: int, device: torch.device | None, dtype: torch.dtype
    ) -> tuple[WindowState, ...]:
        """State of `batch` streams that have heard nothing."""
        layers = (x for x in self.layers if isinstance(x, StreamingConvolution | PlaneConvolution))
        return tuple(layer.initial_state(batch, device, dtype) for layer in layers)


class PlaneConvolution(nn.Module):
    """Convolution over frames and bins, 3 by 3 and stride 2, with one frame and one bin of left context.

    (B, T, bins * channels) -> (B, T', ceil(bins / 2) * out_channels), channels innermost.
    """

    def __init__(self, bins: int, channels: int, out_channels: int, separable: bool) -> None:
        super().__init__()
        self.bins, self.channels = bins, channels
        groups = channels if separable else 1
        self.convolution = nn.Conv2d(
            channels, channels if separable else out_channels, 3, 2, padding=(0, 1), groups=groups
        )
        self.pointwise = nn.Conv2d(channels, out_channels, 1) if separable else nn.Identity()

    def forward(self, x: Tensor, x_lengths: Tensor, state: WindowState | None = None) -> ConvolutionOutput:
        """Whole signals with `state` None, else the next chunk of every stream."""
        windows = slide(x, x_lengths, state, size=3, stride=2, left=1)
        plane = windows.frames.view(*windows.frames.shape[:2], self.bins, self.channels)
        y = self.pointwise(self.convolution(plane.permute(0, 3, 1, 2)))
        return ConvolutionOutput(y.permute(0, 2, 3, 1).flatten(2), windows.counts, windows.state)

    def initial_state(self, batch: int, device: torch.device | None, dtype: torch.dtype) -> WindowState:
        """State of `batch` streams that have heard nothing."""
        return initial_window_state(batch, 3, self.bins * self.channels, 1, device, dtype)
