"""minGRU: a GRU whose gate does not see the state (Feng et al. 2024, "Were RNNs all we needed?").

    z_t = sigmoid(W_z x_t)      h~_t = W_h x_t      h_t = (1 - z_t) h_{t-1} + z_t h~_t      y_t = W_o h_t

A linear recurrence, so training is one scan over time. Departures: the state may be wider than the frames
(`expansion`) and is projected back, and the scan runs in plain numbers, which it can because 1 - z_t is
never above one; the paper's log-space form, for which h~ has to be positive, is not needed.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.heads import state_width
from asr.state import wide
from asr_kernels import linear_scan


class MinGruConfig(MixerConfig):
    """A minGRU."""

    kind: Literal["min_gru"] = "min_gru"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state, in multiples of the frames'."""

    def build(self, dim: int) -> MinGru:
        """See MixerConfig.build."""
        return MinGru(dim, state_width(dim, self.expansion))


class MinGru(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(dim, 2 * width)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is h (B, width)."""
        # In half precision 1 - z would be one below z = 0.002, and what comes in would never be forgotten.
        gate, candidate = self.project(x).to(state.dtype).chunk(2, dim=-1)
        h, state = linear_scan(torch.sigmoid(-gate), torch.sigmoid(gate) * candidate, state, lengths=lengths)
        return MixerOutput(self.out(h.to(x.dtype)), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        return torch.zeros(batch, self.width, device=device, dtype=wide(dtype))


CONFIG = MinGruConfig
