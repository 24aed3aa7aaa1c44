"""Mamba-2: a selective state space with one decay per head, as linear attention.

    z, (u, B, C), r = W_z x, silu(conv(W_c x)), W_r x          dt_t = softplus(r_t + bias)
    S_t = exp(-dt_t A) S_{t-1} + B_t (dt_t u_t)^T              o_t = S_t^T C_t + D u_t
    y_t = W_o norm(o_t * silu(z_t))

Dao and Gu 2024, "Transformers are SSMs: generalized models and efficient algorithms through structured state
space duality". B and C are shared by the heads; A > 0, dt and D are one number per head, and begin as there
(asr/layers/heads.py). The convolution is causal and depthwise, over `kernel` frames. The norm is over all
heads, one group in the words of the paper. Departure: W_o has a bias, as every mixer's.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.convolution import CausalDepthwise
from asr.layers.heads import HeadNorm, StepDecay, by_head, head_width, initial_matrix
from asr_kernels import gated_linear_attention


class Mamba2Config(MixerConfig):
    """A Mamba-2 block."""

    kind: Literal["mamba2"] = "mamba2"
    heads: int = Field(8, ge=1)
    expansion: float = Field(2.0, gt=0, le=8)
    """Width of all heads together, in multiples of the frames'."""
    states: int = Field(64, ge=1)
    """Rows of the state of a head (N in the paper)."""
    kernel: int = Field(4, ge=1, le=64)
    """Frames, its own the last, that the convolution hears."""
    dt_min: float = Field(0.001, gt=0)
    """Least time step of a frame at the start; the state then remembers 1 / (A dt) frames."""
    dt_max: float = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.dt_max < self.dt_min:
            raise ValueError(
                f"expected dt_min <= dt_max, found {self.dt_min:g} and {self.dt_max:g}: swap them"
            )
        return self

    def build(self, dim: int) -> Mamba2:
        """See MixerConfig.build."""
        width = head_width(round(self.expansion * dim), self.heads)
        return Mamba2(dim, self.heads, width, self.states, self.kernel, (self.dt_min, self.dt_max))


class Mamba2(Mixer):
    """See the module docstring."""

    def __init__(
        self, dim: int, heads: int, width: int, states: int, kernel: int, dt: tuple[float, float]
    ) -> None:
        super().__init__()
        self.heads, self.width, self.states = heads, width, states
        inner = heads * width
        self.project = nn.Linear(dim, 2 * inner + 2 * states + heads, bias=False)  # z; u, B, C; r
        self.convolution = CausalDepthwise(inner + 2 * states, kernel)
        self.step = StepDecay(heads, *dt)
        self.skip = nn.Parameter(torch.ones(heads))  # D
        self.norm = HeadNorm(1, inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: tuple[Tensor, Tensor]) -> MixerOutput:
        """See Mixer.forward; the state is the last frames of the convolution and S (B, H, N, V)."""
        before, matrix = state
        inner = self.heads * self.width
        z, heard, r = self.project(x).split((inner, inner + 2 * self.states, self.heads), dim=-1)
        heard, end = self.convolution(heard, lengths, before)
        u, B, C = torch.split(functional.silu(heard), [inner, self.states, self.states], dim=-1)
        u = by_head(u, self.heads)
        k, q = (part[:, :, None].expand(-1, -1, self.heads, -1) for part in (B, C))
        dt, decay = self.step(r, matrix.dtype)
        o, matrix = gated_linear_attention(q, k, dt[..., None] * u, decay, matrix, lengths=lengths)
        o = (o + self.skip[:, None] * u).flatten(2) * functional.silu(z)
        return MixerOutput(self.out(self.norm(o[..., None, :]).to(x.dtype)), (end, matrix))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See Mixer.initial_state."""
        before = self.convolution.initial_state(batch, device, dtype)
        return before, initial_matrix(batch, self.heads, self.states, self.width, device, dtype)


CONFIG = Mamba2Config
