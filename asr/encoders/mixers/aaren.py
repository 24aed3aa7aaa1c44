"""Aaren: softmax attention of a learnt query to the whole past, as a recurrence of three numbers.

    s_t = q k_t      m_t = max(m_{t-1}, s_t)      a_t = exp(m_{t-1} - m_t)      w_t = exp(s_t - m_t)
    num_t = a_t num_{t-1} + w_t v_t      den_t = a_t den_{t-1} + w_t      y_t = W_o (num_t / den_t)

Feng et al. 2024, "Attention as an RNN". m is a running maximum, num and den linear recurrences, so training
is a scan; no exponent is ever positive, and den is at least one. Each head has a query. Departure: the score
s_t = q W_k x_t is one row for each head and learnt as such, for only the product of q and W_k counts.

Nothing is forgotten: after an hour a frame has a weight of one in a hundred thousand. What a frame says of
the present is what the layers add beside the mixer.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.heads import head_width
from asr.lengths import padding_mask
from asr.state import wide
from asr_kernels import linear_scan


class AarenConfig(MixerConfig):
    """Attention of learnt queries to the whole past."""

    kind: Literal["aaren"] = "aaren"
    heads: int = Field(8, ge=1)

    def build(self, dim: int) -> Aaren:
        """See MixerConfig.build."""
        return Aaren(self.heads, head_width(dim, self.heads))


class Aaren(Mixer):
    """See the module docstring."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        dim = heads * width
        self.score = nn.Linear(dim, heads, bias=False)  # a softmax would not notice a bias
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: tuple[Tensor, Tensor]) -> MixerOutput:
        """See Mixer.forward; the state is num and den (B, heads, dim / heads + 1), and m (B, heads)."""
        sums, highest = state
        scores = self.score(x).to(sums.dtype)
        if lengths is not None:
            scores = scores.masked_fill(~padding_mask(lengths, x.shape[1])[:, :, None], _lowest(sums.dtype))
        # No gradient through m, which cancels in num / den.
        maxima = torch.cat((highest[:, None], scores.detach()), dim=1).cummax(dim=1).values
        before, now = maxima[:, :-1], maxima[:, 1:]
        values = self.value(x).to(sums.dtype).unflatten(-1, (self.heads, self.width))
        with_one = torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)
        weighted = torch.exp(scores - now)[..., None] * with_one
        h, sums = linear_scan(torch.exp(before - now)[..., None], weighted, sums, lengths=lengths)
        num, den = h[..., :-1], h[..., -1:]
        # 0 beyond the lengths. clamp(min=1) would have no gradient where den is one, as at the first frame.
        y = num / den.masked_fill(den == 0, 1.0)
        return MixerOutput(self.out(y.flatten(2).to(x.dtype)), (sums, maxima[:, -1].clone()))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See Mixer.initial_state."""
        sums = torch.zeros(batch, self.heads, self.width + 1, device=device, dtype=wide(dtype))
        return sums, torch.full((batch, self.heads), _lowest(wide(dtype)), device=device, dtype=wide(dtype))


def _lowest(dtype: torch.dtype) -> float:
    """Below every score, yet a number: the difference of two is one as well."""
    return torch.finfo(dtype).min


CONFIG = AarenConfig
