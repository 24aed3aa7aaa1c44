"""LSTM predictor: the whole label history in a recurrent state (Graves 2012, section 2.4).

Labels are embedded, with blank as the start symbol; each layer is an LSTM, the last one layer-normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.config import Config
from asr.layers.dropout import Dropout
from asr.predictors.base import Predictor, PredictorOutput


class LstmPredictorConfig(Config):
    """A predictor with unbounded label history."""

    kind: Literal["lstm"] = "lstm"
    dim: int = Field(256, ge=1)
    """Width of the embedding, of the cells and of the output."""
    layers: int = Field(1, ge=1, le=4)
    dropout: float = Field(0.1, ge=0, lt=1)


@dataclass(frozen=True)
class LstmPredictorState:
    """What a hypothesis remembers."""

    hidden: Tensor
    """(B, layers, dim)."""
    cell: Tensor
    """(B, layers, dim)."""


class LstmPredictor(Predictor):
    """See the module docstring."""

    def __init__(self, config: LstmPredictorConfig, vocab_size: int, blank: int) -> None:
        super().__init__()
        self.output_dim, self.blank, self.layers = config.dim, blank, config.layers
        self.embedding = nn.Embedding(vocab_size, config.dim)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=between)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, labels: Tensor, state: LstmPredictorState) -> PredictorOutput:
        """See Predictor.forward."""
        start = (state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous())
        y, (hidden, cell) = self.lstm(self.dropout(self.embedding(labels)), start)
        new = LstmPredictorState(hidden.transpose(0, 1), cell.transpose(0, 1))
        return PredictorOutput(self.dropout(self.norm(y)), new)

    def initial_state(self, batch: int, device: torch.device | None = None) -> LstmPredictorState:
        """No label has been emitted."""
        zeros = self.norm.weight.new_zeros(batch, self.layers, self.output_dim)
        return LstmPredictorState(zeros, zeros)
