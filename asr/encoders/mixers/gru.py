"""GRU (Cho et al. 2014), with the reset behind the recurrent product, as cuDNN and torch.nn.GRU have it.

    r, z = sigmoid(W x_t + R h_{t-1})      n = tanh(W_n x_t + r (R_n h_{t-1} + b_n))
    h_t = (1 - z) n + z h_{t-1}      y_t = W_o h_t

Departures: heads that do not see each other, if there are several; y is projected from h.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.encoders.mixers.base import MixerConfig
from asr.encoders.mixers.lstm import CellMixer
from asr.layers.heads import head_width, state_width
from asr_kernels import Cell


class GruConfig(MixerConfig):
    """A GRU."""

    kind: Literal["gru"] = "gru"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state, in multiples of the frames'."""
    heads: int = Field(1, ge=1)
    """Parts of the state that do not see each other."""

    def build(self, dim: int) -> CellMixer:
        """See MixerConfig.build."""
        width = head_width(state_width(dim, self.expansion), self.heads)
        return CellMixer(dim, Cell("gru"), self.heads, width)


CONFIG = GruConfig
