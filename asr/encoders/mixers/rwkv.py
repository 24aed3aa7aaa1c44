"""RWKV-6 "Finch", its time mixing: linear attention that forgets every channel at a rate of the moment.

    x^_t = x_t + mu_x d_t                 d_t = x_{t-1} - x_t
    x^c_t = x_t + (lambda_c + tanh(x^_t A_c) B_c) d_t                for each c of r, k, v, g, w
    w_t = exp(-exp(lambda + tanh(x^w_t A) B))                        r, k, v, g = W_c x^c
    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t                        S_t = diag(w_t) S_{t-1} + k_t v_t^T
    y_t = W_o (silu(g_t) * norm(o_t))

Peng et al. 2024, "Eagle and Finch: RWKV with matrix-valued states and dynamic recurrence", section 4.2.
The frame before is mixed in by a share that depends on both frames (low rank, `rank`), the decay w depends on
the frame (low rank, `decay_rank`), and the present frame counts by a bonus u. The norm per head is a layer
norm. Departures: weights begin alike in every layer (the released code spreads them by the layer's number),
and -log(w) is at most e^4, far beyond what leaves a trace.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.heads import HeadNorm, by_head, head_width, initial_matrix
from asr.layers.window import gather_from
from asr_kernels import gated_linear_attention

# What the mixed frames are for: r, k, v, g, w.
USES = 5


class RwkvConfig(MixerConfig):
    """The time mixing of RWKV-6."""

    kind: Literal["rwkv"] = "rwkv"
    heads: int = Field(4, ge=1)
    rank: int = Field(16, ge=1)
    """Of the shares of the frame before."""
    decay_rank: int = Field(32, ge=1)

    def build(self, dim: int) -> Rwkv:
        """See MixerConfig.build."""
        return Rwkv(self.heads, head_width(dim, self.heads), self.rank, self.decay_rank)


class Rwkv(Mixer):
    """See the module docstring."""

    def __init__(self, heads: int, width: int, rank: int, decay_rank: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        dim = heads * width
        spread = torch.linspace(0.0, 1.0, dim)  # from channels of the moment to those that look back
        self.share = nn.Parameter(spread.clone())  # mu_x
        self.shares = nn.Parameter(spread.repeat(USES))  # lambda_c, one after the other
        self.share_down = nn.Linear(dim, USES * rank, bias=False)
        self.share_up = nn.Parameter(0.01 * torch.randn(USES, rank, dim))
        self.receptance, self.key, self.value, self.gate = (
            nn.Linear(dim, dim, bias=False) for _ in range(USES - 1)
        )
        self.decay = nn.Parameter(5.0 * spread - 6.0)  # memories of 400 frames down to 3
        self.decay_down = nn.Linear(dim, decay_rank, bias=False)
        self.decay_up = nn.Parameter(0.01 * torch.randn(decay_rank, dim))
        self.bonus = nn.Parameter(torch.full((dim,), 0.5))  # u
        self.norm = HeadNorm(heads, width, centred=True)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: tuple[Tensor, Tensor]) -> MixerOutput:
        """See Mixer.forward; the state is the last frame (B, dim) and S (B, H, K, V)."""
        last, matrix = state
        frames = torch.cat((last[:, None].to(x.dtype), x), dim=1)
        end = frames[:, -1].clone() if lengths is None else gather_from(frames, lengths, 1)[:, 0]
        for_r, for_k, for_v, for_g, for_w = self._mixed(x, frames[:, :-1])
        parts = self.receptance(for_r), self.key(for_k), self.value(for_v), self._rate(for_w, matrix.dtype)
        r, k, v, rate = (by_head(part, self.heads) for part in parts)
        bonus = by_head(self.bonus, self.heads)
        o, matrix = gated_linear_attention(r, k, v, -rate, matrix, bonus=bonus, lengths=lengths)
        y = self.out(functional.silu(self.gate(for_g)) * self.norm(o))
        return MixerOutput(y, (end.to(last.dtype), matrix))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See Mixer.initial_state."""
        last = torch.zeros(batch, self.heads * self.width, device=device, dtype=dtype)
        return last, initial_matrix(batch, self.heads, self.width, self.width, device, dtype)

    def _mixed(self, x: Tensor, before: Tensor) -> Tensor:
        """(5, B, T, dim): x with its shares of the frame before."""
        change = before - x
        low = by_head(torch.tanh(self.share_down(x + self.share * change)), USES)
        moved = torch.einsum("btcr,crd->cbtd", low, self.share_up)
        shares = by_head(self.shares, USES)[:, None, None] + moved
        return x + shares * change

    def _rate(self, mixed: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, T, dim): -log(w)."""
        low = torch.tanh(self.decay_down(mixed)) @ self.decay_up
        return torch.exp((self.decay + low.to(dtype)).clamp(max=4.0))


CONFIG = RwkvConfig
