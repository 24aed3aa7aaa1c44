"""minLSTM: an LSTM whose gates do not see the state (Feng et al. 2024, "Were RNNs all we needed?").

    f_t = sigmoid(W_f x_t)      i_t = sigmoid(W_i x_t)      h~_t = W_h x_t
    h_t = f_t / (f_t + i_t) h_{t-1} + i_t / (f_t + i_t) h~_t      y_t = W_o h_t

The weights sum to one, so h stays as large as h~; a minGRU has one gate for both. Departures: those of
min_gru.py, and the quotient is sigmoid(log f - log i), which is right where f and i are too small for
numbers.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.heads import state_width
from asr.state import wide
from asr_kernels import linear_scan


class MinLstmConfig(MixerConfig):
    """A minLSTM."""

    kind: Literal["min_lstm"] = "min_lstm"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state, in multiples of the frames'."""

    def build(self, dim: int) -> MinLstm:
        """See MixerConfig.build."""
        return MinLstm(dim, state_width(dim, self.expansion))


class MinLstm(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(dim, 3 * width)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is h (B, width)."""
        forget, update, candidate = self.project(x).to(state.dtype).chunk(3, dim=-1)
        # log sigmoid(f) - log sigmoid(i)
        odds = functional.softplus(-update) - functional.softplus(-forget)
        h, state = linear_scan(torch.sigmoid(odds), torch.sigmoid(-odds) * candidate, state, lengths=lengths)
        return MixerOutput(self.out(h.to(x.dtype)), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        # Beside bfloat16's 1, a gate of 0.001 is nothing.
        return torch.zeros(batch, self.width, device=device, dtype=wide(dtype))


CONFIG = MinLstmConfig
