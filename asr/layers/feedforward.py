"""The feed-forward module of Transformer and Conformer layers: y = W2 dropout(f(W1 norm(x))).

Pre-norm, f the swish (SiLU) of Gulati et al. 2020, "Conformer: convolution-augmented Transformer for
speech recognition", section 2.3, or the GELU of Hendrycks and Gimpel 2016.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from asr.layers.dropout import Dropout
from asr.layers.residual import Branch


class FeedForward(Branch):
    """(..., dim) -> (..., dim), without the residual."""

    def __init__(
        self, dim: int, expansion: int, dropout: float, activation: Literal["silu", "gelu"] = "silu"
    ) -> None:
        super().__init__()
        self.activation = functional.silu if activation == "silu" else functional.gelu
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expansion * dim)
        self.out = nn.Linear(expansion * dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """See the module docstring."""
        hidden = self.dropout(self.activation(self.up(self.norm(x))))
        y: Tensor = self.dropout(self.out(hidden))
        return y
