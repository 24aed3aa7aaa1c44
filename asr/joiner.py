"""The joiner: logits from one encoder frame and one predictor vector.

z_{t,u} = W tanh(A f_t + B g_u + c) + b  (Graves 2012, equations 15 to 18, with the joint layer of Graves
et al. 2013). The two projections are done once per frame and once per label; only the sum, the activation
and the output layer are done per lattice node.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.config import Config
from asr.losses.transducer import JoinerInputs


class JoinerConfig(Config):
    """The joint layer."""

    dim: int = Field(256, ge=1)
    activation: Literal["tanh", "relu"] = "tanh"


class Joiner(nn.Module):
    """Combine encoder and predictor outputs into logits over the vocabulary."""

    def __init__(self, config: JoinerConfig, encoder_dim: int, predictor_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(encoder_dim, config.dim)
        self.predictor = nn.Linear(predictor_dim, config.dim, bias=False)
        self.output = nn.Linear(config.dim, vocab_size)
        self.activation = torch.tanh if config.activation == "tanh" else torch.relu

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """The whole lattice: (B, T, E) and (B, U + 1, P) -> logits (B, T, U + 1, V)."""
        return self.combine(self.encoder(encoder)[:, :, None], self.predictor(predictor)[:, None])

    def projected(self, encoder: Tensor, predictor: Tensor) -> JoinerInputs:
        """What the losses take: (B, T, E) and (B, U + 1, P), projected, and the output layer."""
        return JoinerInputs(
            self.encoder(encoder),
            self.predictor(predictor),
            self.output.weight,
            self.output.bias,
            self.config.activation,
        )

    def combine(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Logits of already projected vectors of broadcastable shapes (..., dim) -> (..., V)."""
        logits: Tensor = self.output(self.activation(encoder + predictor))
        return logits
