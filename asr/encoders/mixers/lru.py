"""LRU, the linear recurrent unit: a complex diagonal recurrence that does not change over time.

    h_t = lambda h_{t-1} + gamma B x_t      y_t = Re(C h_t) + D x_t
    lambda = exp(-exp(nu) + i exp(theta))   gamma = sqrt(1 - |lambda|^2)

Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences": stable because |lambda| < 1
however nu is trained, rings of eigenvalues at the start between `smallest` and `largest`, and gamma keeps
the states as large as the input. Departures: y is gated, out(silu(W_g x) * (Re(C h) + D x)), as the GLU
behind the layer in the paper; float32 states in half precision too.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr_kernels import linear_scan


class LruConfig(MixerConfig):
    """A linear recurrent unit."""

    kind: Literal["lru"] = "lru"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state (complex numbers), in multiples of the frames'."""
    smallest: float = Field(0.9, ge=0, lt=1)
    """Least |lambda| at the start: 0.9 remembers ten frames."""
    largest: float = Field(0.999, gt=0, lt=1)

    @model_validator(mode="after")
    def _a_ring(self) -> Self:
        if self.largest <= self.smallest:
            raise ValueError(f"expected smallest < largest, found {self.smallest:g} and {self.largest:g}")
        return self

    def build(self, dim: int) -> Lru:
        """See MixerConfig.build."""
        return Lru(dim, round(self.expansion * dim), self.smallest, self.largest)


class Lru(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, width: int, smallest: float, largest: float) -> None:
        super().__init__()
        self.width = width
        radius = (smallest**2 + torch.rand(width) * (largest**2 - smallest**2)).sqrt()
        self.nu = nn.Parameter((-radius.log()).log())
        self.theta = nn.Parameter((2 * math.pi * (1e-3 + torch.rand(width)) / 1.001).log())
        self.input = nn.Linear(dim, 2 * width, bias=False)  # B, real and imaginary parts
        self.read = nn.Linear(2 * width, dim, bias=False)  # Re C and -Im C
        self.skip = nn.Parameter(torch.randn(dim))
        self.gate = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is h (B, 2 * width), the real parts first."""
        wide = state.dtype
        decay = torch.exp(-self.nu.to(wide).exp())
        gamma = (1.0 - decay.square()).clamp(min=1e-12).sqrt()
        real, imaginary = self.input(x).to(wide).unflatten(-1, (2, self.width)).unbind(-2)
        driven = torch.complex(real * gamma, imaginary * gamma)
        start = torch.complex(*state.chunk(2, dim=-1))
        h, last = linear_scan(torch.polar(decay, self.theta.to(wide).exp()), driven, start, lengths=lengths)
        read = self.read(torch.cat((h.real, h.imag), dim=-1).to(x.dtype)) + self.skip * x
        y = self.out(functional.silu(self.gate(x)) * read)
        return MixerOutput(y, torch.cat((last.real, last.imag), dim=-1))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        wide = torch.promote_types(dtype, torch.float32)
        return torch.zeros(batch, 2 * self.width, device=device, dtype=wide)


CONFIG = LruConfig
