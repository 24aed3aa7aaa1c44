"""GateLoop: a linear recurrence in which the data control how fast a state fades and how far it turns.

    a_t = sigmoid(W_a x_t) exp(i W_b x_t)      h_t = a_t h_{t-1} + k_t v_t      y_t = Re(q_t h_t)
    out_t = W_o (SiLU(W_g x_t) * norm(y_t))      q_t, k_t, v_t = W x_t

Katsch 2023, "GateLoop: Fully data-controlled linear recurrence for sequence modeling", with as many heads as
channels, which is what the author trained: every product is of numbers. q, k and v are real, so y is
attention with the weights q_t k_s Re(a_{s+1} .. a_t). Departures: the norm is over all channels, for a head
has but one; and the bias of W_a begins such that channels remember ten to a thousand frames, as an LRU's.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.complex_scan import complex_scan
from asr.layers.heads import state_width
from asr.state import wide

RING = 0.9, 0.999


class GateLoopConfig(MixerConfig):
    """A GateLoop."""

    kind: Literal["gateloop"] = "gateloop"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state (complex numbers), in multiples of the frames'."""

    def build(self, dim: int) -> GateLoop:
        """See MixerConfig.build."""
        return GateLoop(dim, state_width(dim, self.expansion))


class GateLoop(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(dim, 4 * width)  # q, k, v and the gate
        self.transition = nn.Linear(dim, 2 * width)  # W_a and W_b
        with torch.no_grad():
            fading, turning = self.transition.bias.chunk(2)
            fading.uniform_(*(math.log(radius / (1.0 - radius)) for radius in RING))
            turning.zero_()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is h (B, 2 * width), the real parts first."""
        query, key, value, gate = self.project(x).chunk(4, dim=-1)
        fading, angle = self.transition(x).to(state.dtype).chunk(2, dim=-1)
        driven = key.to(state.dtype) * value
        a, b = torch.polar(torch.sigmoid(fading), angle), torch.complex(driven, torch.zeros_like(driven))
        h, state = complex_scan(a, b, state, lengths)
        y = self.norm((query * h.real).to(x.dtype))
        return MixerOutput(self.out(functional.silu(gate) * y), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        return torch.zeros(batch, 2 * self.width, device=device, dtype=wide(dtype))


CONFIG = GateLoopConfig
