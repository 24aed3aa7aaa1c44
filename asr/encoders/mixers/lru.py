"""LRU, the linear recurrent unit: a complex diagonal recurrence that does not change over time.

    h_t = lambda h_{t-1} + gamma B x_t      y_t = Re(C h_t) + D x_t
    lambda = exp(-exp(nu) + i exp(theta))   gamma = exp(log_gamma)

Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences": stable because |lambda| < 1
however nu is trained, a ring of eigenvalues at the start between `smallest` and `largest`, and gamma, learnt
from sqrt(1 - |lambda|^2) on, keeps the states as large as the input. Departure: y is gated,
out(silu(W_g x) * (Re(C h) + D x)), for the GLU behind the layer in the paper.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.complex_scan import as_pairs, complex_scan
from asr.layers.heads import state_width
from asr.state import wide


class LruConfig(MixerConfig):
    """A linear recurrent unit."""

    kind: Literal["lru"] = "lru"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state (complex numbers), in multiples of the frames'."""
    smallest: float = Field(0.9, gt=0, lt=1)
    """Least |lambda| at the start: 0.9 remembers ten frames."""
    largest: float = Field(0.999, gt=0, le=0.999999)

    @model_validator(mode="after")
    def _a_ring(self) -> Self:
        if self.largest <= self.smallest:
            raise ValueError(f"expected smallest < largest, found {self.smallest:g} and {self.largest:g}")
        return self

    def build(self, dim: int) -> Lru:
        """See MixerConfig.build."""
        return Lru(dim, state_width(dim, self.expansion), self.smallest, self.largest)


class Lru(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int, smallest: float, largest: float) -> None:
        super().__init__()
        self.width = width
        radius = (smallest**2 + torch.rand(width) * (largest**2 - smallest**2)).sqrt()
        self.nu = nn.Parameter((-radius.log()).log())
        self.log_gamma = nn.Parameter((1.0 - radius.square()).log() / 2)
        self.theta = nn.Parameter((2 * math.pi * (1e-3 + torch.rand(width)) / 1.001).log())
        self.input = nn.Linear(dim, 2 * width, bias=False)  # B, real and imaginary parts
        self.read = nn.Linear(2 * width, dim, bias=False)  # Re C and -Im C
        self.skip = nn.Parameter(torch.randn(dim))
        self.gate = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is h (B, 2 * width), the real parts first."""
        dtype = state.dtype
        decay = torch.exp(-self.nu.to(dtype).exp())
        gamma = self.log_gamma.to(dtype).exp()
        real, imaginary = self.input(x).to(dtype).unflatten(-1, (2, self.width)).unbind(-2)
        driven = torch.complex(real * gamma, imaginary * gamma)
        h, state = complex_scan(torch.polar(decay, self.theta.to(dtype).exp()), driven, state, lengths)
        read = self.read(as_pairs(h).to(x.dtype)) + self.skip * x
        y = self.out(functional.silu(self.gate(x)) * read)
        return MixerOutput(y, state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        return torch.zeros(batch, 2 * self.width, device=device, dtype=wide(dtype))


CONFIG = LruConfig
