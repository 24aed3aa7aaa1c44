"""DeltaProduct: linear attention that overwrites what it holds under a key, in several steps per frame.

    S <- a_t S_{t-1};    for n = 1..N:  S <- S - beta_tn k_tn (k_tn^T S - v_tn^T);    S_t = S
    a_t = exp(-A softplus(W_a x_t + bias))             beta_tn = c sigmoid(W_b x_t), c = 2 or 1
    q, k, v = silu(conv(W x)), q and k of length 1     y_t = W_o (silu(W_g x_t) * norm(S_t^T q_t))

Siems et al. 2025, "DeltaProduct: improving state-tracking in linear RNNs via Householder products"; with one
step, Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, "Gated delta networks"), and that without `decay`
DeltaNet (Yang et al. 2024, "Parallelizing linear Transformers with the delta rule over sequence length"). The
steps of a frame multiply the state by N matrices I - beta k k^T; with beta up to 2 they can be reflections
(Grazzi et al. 2024, "Unlocking state-tracking in linear RNNs through negative eigenvalues"), and two of those
make a rotation. Keys of length 1 keep the product from ever growing. The convolutions are causal and
depthwise, over `kernel` frames; A and the bias begin as in Mamba-2 (asr/layers/heads.py). Departure: keys and
values are both dim / heads wide.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.convolution import CausalDepthwise
from asr.layers.heads import HeadNorm, Step, StepDecay, by_head, head_width, initial_matrix
from asr_kernels import delta_rule

# Time steps at the start: a head remembers some 1 / (A dt) frames.
DT = 0.001, 0.1


class DeltaProductConfig(MixerConfig):
    """A (gated) DeltaProduct."""

    kind: Literal["delta_product"] = "delta_product"
    heads: int = Field(4, ge=1)
    steps: int = Field(2, ge=1, le=8)
    """Keys that a frame overwrites, one after the other; 1 is (Gated) DeltaNet."""
    negative_eigenvalues: bool = True
    """Let those of a step go down to -1 and not 0: beta up to 2 and not 1."""
    decay: bool = True
    """Forget, too, at a rate per head that depends on the frame."""
    kernel: int = Field(4, ge=0, le=64)
    """Frames, its own the last, that the convolutions of q, k and v hear; 0 leaves them out."""

    def build(self, dim: int) -> DeltaProduct:
        """See MixerConfig.build."""
        return DeltaProduct(self, head_width(dim, self.heads))


class DeltaProduct(Mixer):
    """See the module docstring."""

    def __init__(self, config: DeltaProductConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        heads, steps = config.heads, config.steps
        dim = heads * width
        self.heard = (1 + 2 * steps) * dim  # q, and all k and v
        self.project = nn.Linear(dim, self.heard + dim, bias=False)  # and the gate
        self.rates = nn.Linear(dim, steps * heads, bias=False)
        self.convolution = CausalDepthwise(self.heard, config.kernel) if config.kernel else None
        self.forget = nn.Linear(dim, heads, bias=False) if config.decay else None
        self.step = StepDecay(heads, *DT) if config.decay else None
        self.norm = HeadNorm(heads, width)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: tuple[Tensor | None, Tensor]) -> MixerOutput:
        """See Mixer.forward; the state is the last frames of the convolution and S (B, H, K, V)."""
        before, matrix = state
        heard, gate = self.project(x).split((self.heard, self.norm.weight.numel()), dim=-1)
        if self.convolution is not None:
            heard, before = self.convolution(heard, lengths, before)
        q, k, v = self._heads(functional.silu(heard))
        q, k = (_of_length_one(part.to(matrix.dtype)) for part in (q, k))
        o, matrix = delta_rule(q, k, v, self._beta(x), self._log_decay(x, matrix), matrix, lengths=lengths)
        return MixerOutput(self.out(functional.silu(gate) * self.norm(o)), (before, matrix))

    def initial_state(
        self, batch: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor]:
        """See Mixer.initial_state; without a convolution there is only S."""
        matrix = initial_matrix(batch, self.config.heads, self.width, self.width, device, dtype)
        if self.convolution is None:
            return None, matrix
        return self.convolution.initial_state(batch, device, dtype), matrix

    def _heads(self, heard: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, H, K), k (B, T, N, H, K), v (B, T, N, H, V)."""
        steps, heads = self.config.steps, self.config.heads
        parts = by_head(by_head(heard, 1 + 2 * steps), heads)
        return parts[:, :, 0], parts[:, :, 1 : 1 + steps], parts[:, :, 1 + steps :]

    def _beta(self, x: Tensor) -> Tensor:
        """(B, T, N, H)."""
        rates = by_head(torch.sigmoid(self.rates(x)), self.config.steps)
        return 2.0 * rates if self.config.negative_eigenvalues else rates

    def _log_decay(self, x: Tensor, matrix: Tensor) -> Tensor | None:
        """(B, T, H), if there is one."""
        if self.forget is None or self.step is None:
            return None
        step: Step = self.step(self.forget(x), matrix.dtype)
        return step.log_decay


def _of_length_one(x: Tensor) -> Tensor:
    """Never longer, and shorter only near zero, where the gradient of x / |x| would be without bound."""
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()


CONFIG = DeltaProductConfig
