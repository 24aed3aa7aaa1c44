"""AWD-LSTM: a stack of LSTM layers, each thing in it dropped in a way that leaves time alone.

    x = locked(E'[labels])    x = LSTM_i(x) with recurrent weights dropped(U_i), locked in between    h = x

- embedding dropout: E' is the embedding with whole rows zeroed, so that a label is missing wherever it is in
  the batch, and the others scaled up;
- variational (locked) dropout (Gal and Ghahramani 2016): one mask for a sentence, the same in every position;
- weight drop (DropConnect, Wan et al. 2013): the recurrent weights are dropped once for the whole batch, so
  the recurrence itself runs undisturbed and in the fast kernels;
- the last layer is as wide as the embedding, which is also the output layer (asr.lms.neural).

Source: Merity, Keskar and Socher 2018, "Regularizing and optimizing LSTM language models"; NT-ASGD, their
optimiser, is asr.train.asgd. Departure: sentences are modelled one by one, as a recogniser asks for them, and
not as one running text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.config import Config
from asr.layers.dropout import Dropout, LockedDropout
from asr.layers.recurrence import CellOutput, RecurrentCell
from asr.lms.neural import Extended, NeuralLm
from asr_kernels import Cell, CellState


class AwdLstmConfig(Config):
    """A recurrent language model; the dropouts are the shares that are zeroed."""

    kind: Literal["awd-lstm"] = "awd-lstm"
    dim: int = Field(256, ge=1, le=4096)
    """Width of the embedding, of the last layer and of the output layer's input."""
    hidden: int = Field(512, ge=1, le=8192)
    """Width of the layers before the last one."""
    layers: int = Field(3, ge=1, le=8)
    tied: bool = True
    """Whether the output layer has the embedding's weights."""
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    """Of labels, wherever they occur in a batch."""
    input_dropout: float = Field(0.2, ge=0, lt=1)
    hidden_dropout: float = Field(0.2, ge=0, lt=1)
    """Between the layers."""
    output_dropout: float = Field(0.2, ge=0, lt=1)
    weight_drop: float = Field(0.3, ge=0, lt=1)
    """Of the recurrent weights."""
    ar: float = Field(0.0, ge=0)
    """Activation regularisation; the paper has 2."""
    tar: float = Field(0.0, ge=0)
    """Temporal activation regularisation; the paper has 1."""


@dataclass(frozen=True)
class RecurrentState:
    """What a hypothesis remembers."""

    layers: tuple[CellState, ...]
    """h and c, each (N, 1, width) float32."""


class DroppedCell(RecurrentCell):
    """An LSTM cell whose recurrent weights are dropped, once in each forward of training."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__(Cell("lstm"), 1, width)
        self.dropout = Dropout(drop)

    def weights(self) -> dict[str, Any]:
        """See RecurrentCell.weights."""
        weights = super().weights()
        return {**weights, "weight": self.dropout(weights["weight"])}


class AwdLayer(nn.Module):
    """(B, U, before) -> (B, U, width): locked dropout, the input's projection, the cell."""

    def __init__(self, before: int, width: int, dropout: float, drop: float) -> None:
        super().__init__()
        self.locked = LockedDropout(dropout)
        self.cell = DroppedCell(width, drop)
        self.projection = nn.Linear(before, self.cell.preactivations)

    def forward(self, x: Tensor, state: CellState) -> CellOutput:
        """The next labels of every hypothesis."""
        return self.cell.behind(self.projection, self.locked(x), None, state)


class AwdLstm(NeuralLm):
    """See the module docstring."""

    def __init__(self, config: AwdLstmConfig, vocab_size: int) -> None:
        super().__init__(vocab_size, config.dim, config.tied)
        self.config, self.ar, self.tar = config, config.ar, config.tar
        self.embedding = nn.Embedding(vocab_size, config.dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.label_dropout = Dropout(config.embedding_dropout)
        widths = [config.dim, *[config.hidden] * (config.layers - 1), config.dim]
        between = [config.input_dropout, *[config.hidden_dropout] * (config.layers - 1)]
        self.layers = nn.ModuleList(
            AwdLayer(before, width, dropout, config.weight_drop)
            for before, width, dropout in zip(widths, widths[1:], between, strict=False)
        )
        self.output_dropout = LockedDropout(config.output_dropout)

    def extend(self, labels: Tensor, state: RecurrentState) -> Extended:
        """See NeuralLm.extend."""
        x, after = self._embed(labels), []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, new = layer(x, before)
            after.append(new)
        return Extended(x, RecurrentState(tuple(after)))

    def nothing(self, batch: int) -> RecurrentState:
        """See NeuralLm.nothing."""
        cells = (layer.cell for layer in self.layers if isinstance(layer, AwdLayer))
        like = self.bias
        return RecurrentState(tuple(cell.initial_state(batch, like.device, like.dtype) for cell in cells))

    def logits(self, h: Tensor) -> Tensor:
        """See NeuralLm.logits."""
        return functional.linear(h, self.embedding.weight if self.output is None else self.output, self.bias)

    def dropped(self, h: Tensor) -> Tensor:
        """See NeuralLm.dropped."""
        y: Tensor = self.output_dropout(h)
        return y

    def _embed(self, labels: Tensor) -> Tensor:
        weight = self.embedding.weight
        if self.training:
            weight = weight * self.label_dropout(torch.ones_like(weight[:, :1]))
        return functional.embedding(labels, weight)
