"""Retention: linear attention that forgets at a fixed rate per head, with rotated queries and keys.

    S_t = gamma S_{t-1} + (k_t e^{i t theta}) v_t^T      o_t = S_t^T (q_t e^{i t theta})
    y_t = W_o (silu(W_g x_t) * norm(o_t))                q, k, v = W_q x, W_k x / sqrt(K), W_v x

Sun et al. 2023, "Retentive network: a successor to Transformer for large language models". What frame t reads
of frame s is gamma^(t-s) q_t . k_s, turned by (t - s) theta: xPos, with gamma for its decay. Departures:
gamma_h = 1 - 1 / m_h, memories of m frames spaced geometrically from `shortest` to `longest` (1 - 2^(-5-h) in
the paper, memories of 32, 64, 128, ...); the norm per head is an RMS norm; values are as wide as the frames
(`expansion`; twice in the paper); sums are not scaled to their sizes, which the norm takes out.

A stream may last for hours, so no frame has an absolute position here: the state is kept turned such that its
last frame is at 0, and a piece counts its own frames from there.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.attention import angles, turned
from asr.layers.heads import HeadNorm, by_head, head_width, initial_matrix
from asr_kernels import gated_linear_attention


class RetentionConfig(MixerConfig):
    """Multi-scale retention."""

    kind: Literal["retention"] = "retention"
    heads: int = Field(4, ge=1)
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the values, in multiples of the frames'."""
    shortest: float = Field(32, gt=1)
    """Frames that the first head remembers."""
    longest: float = Field(512, gt=1)
    """Frames that the last head remembers, if there are several."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.longest < self.shortest:
            raise ValueError(
                f"expected shortest <= longest, found {self.shortest:g} and {self.longest:g}: swap them"
            )
        return self

    def build(self, dim: int) -> Retention:
        """See MixerConfig.build."""
        keys = head_width(dim, self.heads, even=True)
        values = head_width(round(self.expansion * dim), self.heads)
        spaced = torch.linspace(0.0, 1.0, self.heads, dtype=torch.float64)
        memory = self.shortest * (self.longest / self.shortest) ** spaced
        return Retention(dim, keys, values, torch.log1p(-1.0 / memory))


class Retention(Mixer):
    """See the module docstring; log_decay (H,) is log(gamma)."""

    log_decay: Tensor

    def __init__(self, dim: int, keys: int, values: int, log_decay: Tensor) -> None:
        super().__init__()
        self.heads, self.keys, self.values = len(log_decay), keys, values
        self.widths = [self.heads * width for width in (keys, keys, values, values)]
        self.project = nn.Linear(dim, sum(self.widths), bias=False)  # q, k, v and the gate
        self.norm = HeadNorm(self.heads, values)
        self.out = nn.Linear(self.heads * values, dim)
        self.register_buffer("log_decay", log_decay.float(), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is S (B, H, K, V), its keys relative to the last frame."""
        B, T = x.shape[:2]
        q, k, v, gate = self.project(x).split(self.widths, dim=-1)
        q, k, v = (by_head(part, self.heads) for part in (q, k, v))
        angle = self._angles(torch.arange(1, T + 1, device=x.device))[:, None]
        q, k = (_by_angle(part.to(state.dtype), angle, dim=-1) for part in (q, k * self.keys**-0.5))
        decay = self.log_decay.to(state.dtype).expand(B, T, -1)
        o, state = gated_linear_attention(q, k, v, decay, state, lengths=lengths)
        heard = torch.full((B,), T, device=x.device) if lengths is None else lengths
        state = _by_angle(state, self._angles(-heard)[:, None, :, None], dim=-2)
        return MixerOutput(self.out(functional.silu(gate) * self.norm(o)), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        return initial_matrix(batch, self.heads, self.keys, self.values, device, dtype)

    def _angles(self, frames: Tensor) -> Tensor:
        """(n, K / 2) float64."""
        return angles(frames, self.keys // 2)


def _by_angle(x: Tensor, angle: Tensor, dim: int) -> Tensor:
    return turned(x, angle.cos().to(x.dtype), angle.sin().to(x.dtype), dim)


CONFIG = RetentionConfig
