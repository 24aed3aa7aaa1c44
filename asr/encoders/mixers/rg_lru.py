"""RG-LRU, the real-gated linear recurrent unit, in the recurrent block of Griffin.

    u = conv(W_u x)      r_t = sigmoid(W_r u_t)      i_t = sigmoid(W_i u_t)
    a_t = a^{c r_t}      h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)      y_t = W_o (GeLU(W_g x_t) * h_t)

De et al. 2024, "Griffin: Mixing gated linear recurrences with local attention". conv is causal, of every
channel by itself; a = sigmoid(-Lambda), so log a_t = -c softplus(Lambda) r_t, c = 8, from which both a_t and
1 - a_t^2 are computed, for differences of numbers near one have no digits left. a^c begins between 0.9 and
0.999. Departures: W_r and W_i are full matrices, where the authors' large models have blocks on the diagonal;
below 1e-6, a memory of a million frames, 1 - a_t^2 counts a thousandfold in place of its root, whose slope
has no bound. The attention of Griffin is a mixer of its own, local_attention.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.convolution import CausalDepthwise
from asr.layers.heads import state_width
from asr.state import wide
from asr_kernels import linear_scan

SHARPNESS = 8.0  # c
RING = 0.9, 0.999
LEAST = 1e-6


class RgLruConfig(MixerConfig):
    """A recurrent block with an RG-LRU."""

    kind: Literal["rg_lru"] = "rg_lru"
    expansion: float = Field(4 / 3, gt=0, le=8)
    """Width of the block and of the state, in multiples of the frames'."""
    kernel: int = Field(4, ge=2, le=64)
    """Frames, its own the last, that the convolution hears."""

    def build(self, dim: int) -> RgLru:
        """See MixerConfig.build."""
        return RgLru(dim, state_width(dim, self.expansion), self.kernel)


class RgLru(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int, kernel: int) -> None:
        super().__init__()
        self.width = width
        self.branches = nn.Linear(dim, 2 * width)  # W_g and W_u
        self.convolution = CausalDepthwise(width, kernel)
        self.gates = nn.Linear(width, 2 * width)  # W_r and W_i
        least, largest = RING
        slowness = -(least**2 + torch.rand(width) * (largest**2 - least**2)).log() / (2 * SHARPNESS)
        self.decay = nn.Parameter(slowness.expm1().log())  # Lambda
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: tuple[Tensor, Tensor]) -> MixerOutput:
        """See Mixer.forward; the state is what conv hears (B, kernel - 1, width), and h (B, width)."""
        heard, before = state
        beside, u = self.branches(x).chunk(2, dim=-1)
        u, after = self.convolution(u, lengths, heard)
        recurrence, admitted = torch.sigmoid(self.gates(u).to(before.dtype)).chunk(2, dim=-1)
        log_a = -SHARPNESS * functional.softplus(self.decay.to(before.dtype)) * recurrence
        admits = torch.expm1(2.0 * log_a).neg()
        scale = torch.where(admits > LEAST, admits.clamp(min=LEAST).sqrt(), admits / LEAST**0.5)
        h, last = linear_scan(log_a.exp(), scale * admitted * u, before, lengths=lengths)
        y = self.out(functional.gelu(beside) * h.to(x.dtype))
        return MixerOutput(y, (after, last))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See Mixer.initial_state."""
        h = torch.zeros(batch, self.width, device=device, dtype=wide(dtype))
        return self.convolution.initial_state(batch, device, dtype), h


CONFIG = RgLruConfig
