"""Where features enter an encoder: subsampling, then an optional convolution that looks ahead.

The lookahead is one convolution over 1 + a encoder frames in front of the stack (a row convolution with full
channel mixing, cf. Amodei et al. 2016, "Deep Speech 2", section 3.7): its a frames are all the future that a
unidirectional stack behind it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asr.layers.convolution import StreamingConvolution
from asr.layers.subsampling import Subsampling, SubsamplingConfig
from asr.layers.window import WindowState


@dataclass(frozen=True)
class EntranceState:
    """What a stream remembers."""

    subsampling: tuple[WindowState, ...]
    lookahead: WindowState | None


class EntranceOutput(NamedTuple):
    """Frames that enter the stack."""

    x: Tensor
    """(B, T', output_dim)."""
    x_lengths: Tensor
    """(B,) int64."""
    state: Any
    """EntranceState, or what else the entrance remembers; None of whole signals."""


class Entrance(nn.Module):
    """(B, T, input_dim) -> (B, T', output_dim), `factor` times fewer frames, `lookahead` of them ahead."""

    def __init__(
        self, config: SubsamplingConfig, input_dim: int, output_dim: int, lookahead: int = 0
    ) -> None:
        super().__init__()
        self.factor = config.factor
        self.lookahead_frames = lookahead * config.factor
        """Feature frames that an output needs beyond its own block."""
        self.subsample = Subsampling(config, input_dim, output_dim)
        self.lookahead = StreamingConvolution(output_dim, output_dim, 1 + lookahead) if lookahead else None

    def forward(self, x: Tensor, x_lengths: Tensor, state: EntranceState | None = None) -> EntranceOutput:
        """Whole signals with `state` None, else the next chunk of every stream."""
        x, x_lengths, subsampling = self.subsample(x, x_lengths, None if state is None else state.subsampling)
        lookahead = None
        if self.lookahead is not None:
            y, x_lengths, lookahead = self.lookahead(x, x_lengths, None if state is None else state.lookahead)
            x = torch.relu(y)
        new = None if subsampling is None else EntranceState(subsampling, lookahead)
        return EntranceOutput(x, x_lengths, new)

    def initial_state(self, batch: int, device: torch.device | None, dtype: torch.dtype) -> EntranceState:
        """State of `batch` streams that have heard nothing."""
        lookahead = None if self.lookahead is None else self.lookahead.initial_state(batch, device, dtype)
        return EntranceState(self.subsample.initial_state(batch, device, dtype), lookahead)
