"""Stateless predictor: the last few labels, embedded and mixed by a convolution.

y_u = relu(conv(embed(l_{u-c+1}), ..., embed(l_u))) with context c, and blank where the history is shorter
(Ghodsi et al. 2020; with a convolution over the context as in icefall). Nothing older than c labels can
influence it, so hypotheses with equal last labels share their predictor output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.config import Config
from asr.layers.dropout import Dropout
from asr.predictors.base import Predictor, PredictorOutput, Step

TABLE_ENTRIES = 1 << 15
"""Numbers up to which a table, which is made in every call of a search, takes less than it saves."""


class StatelessPredictorConfig(Config):
    """A predictor with a bounded label history."""

    kind: Literal["stateless"] = "stateless"
    dim: int = Field(256, ge=1)
    """Width of the embedding and of the output."""
    context: int = Field(2, ge=1, le=16)
    """Labels that it sees."""
    dropout: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True)
class StatelessState:
    """What a hypothesis remembers."""

    labels: Tensor
    """(B, context - 1) int64 last labels, blank where there were fewer."""


class StatelessPredictor(Predictor):
    """See the module docstring."""

    def __init__(self, config: StatelessPredictorConfig, vocab_size: int, blank: int) -> None:
        super().__init__()
        self.output_dim, self.blank, self.context = config.dim, blank, config.context
        self.embedding = nn.Embedding(vocab_size, config.dim)
        groups = config.dim // math.gcd(config.dim, 4)  # four channels mix, as far as the width divides
        self.mix = nn.Conv1d(config.dim, config.dim, config.context, groups=groups)
        self.dropout = Dropout(config.dropout)

    def forward(self, labels: Tensor, state: StatelessState) -> PredictorOutput:
        """See Predictor.forward."""
        history = torch.cat([state.labels, labels], dim=1)
        embedded = self.dropout(self.embedding(history))
        if labels.shape[1] == 1:
            y = torch.relu(self._mix_one(embedded))
        else:
            y = torch.relu(self.mix(embedded.transpose(1, 2)).transpose(1, 2))
        return PredictorOutput(y, StatelessState(history[:, history.shape[1] - (self.context - 1) :]))

    def _mix_one(self, embedded: Tensor) -> Tensor:
        """(B, 1, dim) from (B, context, dim): the convolution where it has one output.

        That is a matrix product for each group, which a search takes at every label: it costs a quarter.
        """
        B, context, dim = embedded.shape
        groups, width = self.mix.groups, dim // self.mix.groups
        heard = embedded.view(B, context, groups, width).permute(2, 3, 1, 0)
        weight = self.mix.weight.view(groups, width, width * context)
        y = torch.bmm(weight, heard.reshape(groups, width * context, B)).view(dim, B).t()
        assert self.mix.bias is not None
        return (y + self.mix.bias)[:, None]

    def stepper(self) -> Step:
        """See Predictor.stepper: but in training, what a label adds in each place is looked up.

        Making the table costs more than it saves where it is large.
        """
        table, bias = self.embedding.num_embeddings * self.context, self.mix.bias
        assert bias is not None
        if self.training or table * self.output_dim > TABLE_ENTRIES:
            return self
        added = self._added()
        first = torch.arange(0, table, self.embedding.num_embeddings, device=added.device)

        def step(labels: Tensor, state: StatelessState) -> PredictorOutput:
            history = torch.cat([state.labels, labels], dim=1)
            y = functional.embedding_bag(history + first, added, mode="sum").add_(bias).relu_()
            return PredictorOutput(y[:, None], StatelessState(history[:, 1:]))

        return step

    def _added(self) -> Tensor:
        """(context * V, dim): what every label in every place of the history adds to the convolution."""
        V, dim, groups = self.embedding.num_embeddings, self.output_dim, self.mix.groups
        width = dim // groups
        weight = self.mix.weight.view(groups, width, width, self.context).permute(0, 2, 3, 1)
        embedded = self.embedding.weight.view(V, groups, width).transpose(0, 1)
        added = torch.bmm(embedded, weight.reshape(groups, width, self.context * width))
        return added.view(groups, V, self.context, width).permute(2, 1, 0, 3).reshape(-1, dim)

    def initial_state(self, batch: int, device: torch.device | None = None) -> StatelessState:
        """No label has been emitted."""
        shape = (batch, self.context - 1)
        return StatelessState(torch.full(shape, self.blank, dtype=torch.int64, device=device))
