"""Conformer encoder: attention and convolution in every layer, at any latency (Gulati et al. 2020).

    x = x + 1/2 FFN(x)      x = x + MHSA(x)      x = x + Conv(x)      y = LayerNorm(x + 1/2 FFN(x))

Conv: pointwise, GLU, depthwise, norm, SiLU, pointwise. Departures from the paper: layer normalisation instead
of batch normalisation in the convolution module (batch statistics drift from training to use, and more so in
streams), positions by rotation unless asked otherwise, and a convolution that is causal or keeps to its
chunk.

FastConformer (Rekesh et al. 2023) is this with `subsampling` separable by 8 and `kernel` 9.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.chunked import ChunkedEncoder, ChunkedEncoderConfig, Layer, Seen
from asr.layers.attention import AttentionState, SelfAttention
from asr.layers.convolution import DepthwiseConvolution
from asr.layers.dropout import Dropout
from asr.layers.feedforward import FeedForward
from asr.layers.residual import Branch


class ConformerEncoderConfig(ChunkedEncoderConfig):
    """A Conformer."""

    kind: Literal["conformer"] = "conformer"
    kernel: int = Field(15, ge=1)
    """Frames that the depthwise convolution sees; odd."""
    convolution: Literal["chunk", "causal"] = "chunk"
    """Symmetric as far as the chunk reaches, or looking back only."""

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd kernel: {value + 1} would do")
        return value


class ConformerEncoder(ChunkedEncoder):
    """See the module docstring."""

    def __init__(self, config: ConformerEncoderConfig, input_dim: int, frame_shift_s: float) -> None:
        super().__init__(config, input_dim, frame_shift_s, lambda: ConformerLayer(config))


class ConformerLayer(Layer):
    """See the module docstring; its state is that of attention and the convolution's last frames."""

    def __init__(self, config: ConformerEncoderConfig) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.first = FeedForward(dim, config.expansion, dropout)
        self.attention = SelfAttention(dim, config.heads, config.positions, dropout)
        self.convolution = ConvolutionModule(dim, config.kernel, config.convolution, dropout)
        self.second = FeedForward(dim, config.expansion, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, seen: Seen, state: tuple[AttentionState, Tensor] | None
    ) -> tuple[Tensor, tuple[AttentionState, Tensor] | None]:
        """See Layer.forward."""
        x = x + 0.5 * self.first(x)
        y, attention = self.attention(x, seen.mask, seen.where, None if state is None else state[0])
        x = x + y
        y, convolution = self.convolution(x, seen, None if state is None else state[1])
        x = x + y
        x = self.norm(x + 0.5 * self.second(x))
        return x, None if state is None else (attention, convolution)

    def initial_state(
        self, batch: int, history: int, device: torch.device | None, dtype: torch.dtype
    ) -> tuple[AttentionState, Tensor]:
        """See Layer.initial_state."""
        before = torch.zeros(
            batch, self.convolution.depthwise.left, self.norm.weight.numel(), device=device, dtype=dtype
        )
        return self.attention.initial_state(batch, history, device, dtype), before


class ConvolutionModule(Branch):
    """(B, T, dim) -> (B, T, dim), without the residual."""

    def __init__(self, dim: int, kernel: int, kind: Literal["chunk", "causal"], dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = DepthwiseConvolution(dim, kernel, kind)
        self.inner_norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, seen: Seen, state: Tensor | None) -> tuple[Tensor, Any]:
        """Whole signals, or the next chunk behind the state (B, left, dim); and the new state."""
        x = functional.glu(self.gate(self.norm(x)), dim=-1)
        # The end of a signal is silence to the convolution, whatever the padding holds.
        x = torch.where(seen.valid[..., None], x, 0.0)
        if state is None:
            x = self.depthwise(x, seen.chunk)
        else:
            x, state = self.depthwise.step(x, state)
        y: Tensor = self.dropout(self.out(functional.silu(self.inner_norm(x))))
        return y, state
