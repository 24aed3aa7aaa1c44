"""HGRN2: a gated linear recurrence whose gate is also its key, which makes its state a matrix.

    f_t = b + (1 - b) sigmoid(W_f x_t)        S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T
    y_t = W_o norm(S_t^T silu(W_q x_t))       v_t = W_v x_t

Qin et al. 2024, "HGRN2: gated linear RNNs with state expansion". In each head, every channel of the gate f
keeps a copy of all values, forgotten at its own rate: what is let go, 1 - f, is what is written. q is the
output gate of the paper. Departures: the lower bound b of the gate is a number that is the same for all
channels and not learnt (the paper's rises from layer to layer, and a mixer does not know its layer); the norm
is one per head.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.heads import HeadNorm, head_width, initial_matrix
from asr_kernels import gated_linear_attention


class Hgrn2Config(MixerConfig):
    """An HGRN2."""

    kind: Literal["hgrn2"] = "hgrn2"
    heads: int = Field(4, ge=1)
    """Each expands the state dim / heads times."""
    lower_bound: float = Field(0.5, ge=0, lt=1)
    """Share of the state that stays from frame to frame at least."""

    def build(self, dim: int) -> Hgrn2:
        """See MixerConfig.build."""
        return Hgrn2(self.heads, head_width(dim, self.heads), self.lower_bound)


class Hgrn2(Mixer):
    """See the module docstring."""

    def __init__(self, heads: int, width: int, lower_bound: float) -> None:
        super().__init__()
        self.heads, self.width, self.lower_bound = heads, width, lower_bound
        dim = heads * width
        self.project = nn.Linear(dim, 3 * dim, bias=False)  # q, f and v
        self.norm = HeadNorm(heads, width)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: Tensor) -> MixerOutput:
        """See Mixer.forward; the state is S (B, H, K, V)."""
        q, gate, v = self.project(x).unflatten(-1, (3, self.heads, self.width)).unbind(2)
        log_forget, k = self._gates(gate.to(state.dtype))
        o, state = gated_linear_attention(functional.silu(q), k, v, log_forget, state, lengths=lengths)
        return MixerOutput(self.out(self.norm(o)), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See Mixer.initial_state."""
        return initial_matrix(batch, self.heads, self.width, self.width, device, dtype)

    def _gates(self, gate: Tensor) -> tuple[Tensor, Tensor]:
        """log(f) and 1 - f, with all their digits near f = 0 and f = 1: f = sigmoid(z) + b sigmoid(-z)."""
        log_bound = math.log(self.lower_bound) if self.lower_bound else -math.inf
        forget = torch.logaddexp(functional.logsigmoid(gate), functional.logsigmoid(-gate) + log_bound)
        return forget, (1.0 - self.lower_bound) * torch.sigmoid(-gate)


CONFIG = Hgrn2Config
