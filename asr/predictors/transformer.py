"""Transformer predictor: attention over the last labels (Zhang et al. 2020, "Transformer Transducer").

    x = embed(labels)    x = x + MHSA(x), label u attending to the labels u - history .. u    x = x + FFN(x)

Each layer remembers the keys and values of `history` labels, so the state is bounded, and `layers` times as
many labels count. Positions are relative, so it does not matter how many labels came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asr.config import Config
from asr.layers.attention import AttentionState, PositionKind, SelfAttention, positions
from asr.layers.dropout import Dropout
from asr.layers.feedforward import FeedForward
from asr.layers.heads import head_width
from asr.layers.residual import begin_small
from asr.predictors.base import Predictor, PredictorOutput


class TransformerPredictorConfig(Config):
    """A predictor that attends to the last labels."""

    kind: Literal["transformer"] = "transformer"
    dim: int = Field(256, ge=2)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1, le=12)
    expansion: int = Field(4, ge=1)
    history: int = Field(16, ge=0)
    """Labels before the last one that every layer attends to."""
    positions: PositionKind = "rotary"
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        head_width(self.dim, self.heads, even=True)
        return self


@dataclass(frozen=True)
class TransformerPredictorState:
    """What a hypothesis remembers."""

    seen: Tensor
    """(B,) int64: labels that the caches really hold."""
    layers: tuple[AttentionState, ...]


class TransformerPredictor(Predictor):
    """See the module docstring."""

    def __init__(self, config: TransformerPredictorConfig, vocab_size: int, blank: int) -> None:
        super().__init__()
        self.config, self.output_dim, self.blank = config, config.dim, blank
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.attention = nn.ModuleList(
            SelfAttention(config.dim, config.heads, config.positions, config.dropout)
            for _ in range(config.layers)
        )
        self.feed_forward = nn.ModuleList(
            FeedForward(config.dim, config.expansion, config.dropout) for _ in range(config.layers)
        )
        begin_small(self)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, labels: Tensor, state: TransformerPredictorState) -> PredictorOutput:
        """See Predictor.forward."""
        config, U = self.config, labels.shape[1]
        x = self.dropout(self.embedding(labels))
        where = positions(config.positions, config.dim, config.heads, config.history, U, x)
        own = torch.arange(U, device=labels.device)[:, None]
        key = torch.arange(config.history + U, device=labels.device)[None]
        near = (key >= own) & (key <= own + config.history)
        mask = near & (key >= config.history - state.seen[:, None])[:, None]
        layers = []
        for attention, feed_forward, before in zip(
            self.attention, self.feed_forward, state.layers, strict=True
        ):
            y, after = attention(x, mask, where, before)
            x = x + y
            x = x + feed_forward(x)
            layers.append(after)
        seen = (state.seen + U).clamp(max=config.history)
        return PredictorOutput(self.norm(x), TransformerPredictorState(seen, tuple(layers)))

    def initial_state(self, batch: int, device: torch.device | None = None) -> TransformerPredictorState:
        """No label has been emitted."""
        weight = self.norm.weight
        layers = tuple(
            layer.initial_state(batch, self.config.history, weight.device, weight.dtype)
            for layer in self.attention
            if isinstance(layer, SelfAttention)
        )
        return TransformerPredictorState(torch.zeros(batch, dtype=torch.int64, device=weight.device), layers)
