"""HGRN, the hierarchically gated recurrent network: a forget gate with a lower bound, and states that turn.

    mu_t = sigmoid(W_f x_t)      lambda_t = gamma + (1 - gamma) mu_t
    c_t = SiLU(W_r x_t) + i SiLU(W_i x_t)      h_t = lambda_t exp(i theta) h_{t-1} + (1 - lambda_t) c_t
    y_t = W_o (sigmoid(W_g x_t) * norm([Re h_t, Im h_t]))

Qin, Yang and Zhong 2023, "Hierarchically gated recurrent neural network for sequence modeling". theta is
learnt and does not change over time. Departures: in the paper gamma rises from layer to layer, from 0 on, as
a running sum of a softmax, so that the upper layers forget slowly. A mixer does not know its layer: here
every channel learns a gamma of its own, and at the start they are spread evenly over the channels of each
layer. The norm stands before the gate.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.complex_scan import as_pairs, complex_scan
from asr.layers.heads import state_width
from asr.state import wide
from asr_kernels import linear_scan


class HgrnConfig(MixerConfig):
    """A hierarchically gated recurrent network."""

    kind: Literal["hgrn"] = "hgrn"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state, in multiples of the frames'."""
    complex_valued: bool = True
    """States are complex and turn by theta; else they are real, half as large."""
    lower_bound: bool = True
    """Learn a gamma for every channel; else the forget gate may close."""

    def build(self, dim: int) -> Hgrn:
        """See MixerConfig.build."""
        return Hgrn(dim, state_width(dim, self.expansion), self.complex_valued, self.lower_bound)


class Hgrn(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int, complex_valued: bool, lower_bound: bool) -> None:
        super().__init__()
        self.numbers = 2 * width if complex_valued else width
        self.forget = nn.Linear(dim, width)
        self.input = nn.Linear(dim, self.numbers)
        self.gate = nn.Linear(dim, self.numbers)
        self.norm = nn.LayerNorm(self.numbers)
        self.out = nn.Linear(self.numbers, dim)
        # From one radian a frame down, as the angles of rotary positions.
        angles = 10000.0 ** (-torch.arange(width) / width)
        self.theta = nn.Parameter(angles) if complex_valued else None
        spread = (torch.arange(width) + 0.5) / width
        self.gamma = nn.Parameter(torch.logit(spread)) if lower_bound else None

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is h, the real parts first: (B, 2 width), or (B, width) if real."""
        decay, share = self._gates(self.forget(x).to(state.dtype))
        candidate = functional.silu(self.input(x)).to(state.dtype)
        if self.theta is None:
            h, state = linear_scan(decay, share * candidate, state, lengths=lengths)
        else:
            theta = self.theta.to(state.dtype)
            turning = torch.complex(decay * theta.cos(), decay * theta.sin())
            real, imaginary = candidate.chunk(2, dim=-1)
            driven = torch.complex(share * real, share * imaginary)
            turned, state = complex_scan(turning, driven, state, lengths)
            h = as_pairs(turned)
        y = torch.sigmoid(self.gate(x)) * self.norm(h.to(x.dtype))
        return MixerOutput(self.out(y), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        return torch.zeros(batch, self.numbers, device=device, dtype=wide(dtype))

    def _gates(self, forget: Tensor) -> tuple[Tensor, Tensor]:
        """lambda and 1 - lambda; the difference itself would lose the digits of a lambda near one."""
        decay, share = torch.sigmoid(forget), torch.sigmoid(-forget)
        if self.gamma is None:
            return decay, share
        gamma = torch.sigmoid(self.gamma.to(forget.dtype))
        return gamma + (1.0 - gamma) * decay, (1.0 - gamma) * share


CONFIG = HgrnConfig
