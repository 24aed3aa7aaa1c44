"""A small causal Transformer as language model.

    x = embed(labels)    x = x + MHSA(x), label u attending to the labels u - history .. u    x = x + FFN(x)

The stack is the Transformer predictor's (asr.predictors.transformer): every layer keeps the keys and values
of `history` labels, so the state of a hypothesis is bounded however long it grows, and `layers` times as many
labels count. The output layer has the embedding's weights, divided by sqrt(dim) because what it reads is
normalised (Vaswani et al. 2017 multiply the embedding by sqrt(dim) instead, to the same end).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.lms.neural import BOUNDARY, Extended, NeuralLm
from asr.predictors.transformer import (
    TransformerPredictor,
    TransformerPredictorConfig,
    TransformerPredictorState,
)


class TransformerLmConfig(TransformerPredictorConfig):
    """A Transformer language model."""

    layers: int = Field(4, ge=1, le=24)
    history: int = Field(64, ge=0, le=4096)
    """Labels before the last one that every layer attends to."""
    tied: bool = True
    """Whether the output layer has the embedding's weights."""


class TransformerLm(NeuralLm):
    """See the module docstring."""

    def __init__(self, config: TransformerLmConfig, vocab_size: int) -> None:
        super().__init__(vocab_size, config.dim, config.tied)
        self.config = config
        self.stack = TransformerPredictor(config, vocab_size, BOUNDARY)
        if config.tied:
            # An embedding is likest itself: at the usual size the untrained model would repeat every label.
            nn.init.constant_(self.stack.norm.weight, config.dim**-0.5)

    @property
    def embedding(self) -> nn.Embedding:
        """Of the labels."""
        return self.stack.embedding

    def extend(self, labels: Tensor, state: TransformerPredictorState) -> Extended:
        """See NeuralLm.extend."""
        return Extended(*self.stack(labels, state))

    def nothing(self, batch: int) -> TransformerPredictorState:
        """See NeuralLm.nothing."""
        return self.stack.initial_state(batch)

    def logits(self, h: Tensor) -> Tensor:
        """See NeuralLm.logits."""
        if self.output is not None:
            return functional.linear(h, self.output, self.bias)
        return functional.linear(h / self.dim**0.5, self.embedding.weight, self.bias)
