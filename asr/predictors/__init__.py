"""Predictors: the label side of a transducer, through one contract (`base.py`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asr.predictors.base import Predictor, PredictorOutput
from asr.predictors.lstm import LstmPredictor, LstmPredictorConfig
from asr.predictors.stateless import StatelessPredictor, StatelessPredictorConfig
from asr.predictors.transformer import TransformerPredictor, TransformerPredictorConfig

PredictorConfig = Annotated[
    StatelessPredictorConfig | LstmPredictorConfig | TransformerPredictorConfig, Field(discriminator="kind")
]
"""Every predictor's configuration; `kind` tells them apart."""


def build_predictor(
    config: StatelessPredictorConfig | LstmPredictorConfig | TransformerPredictorConfig,
    vocab_size: int,
    blank: int,
) -> Predictor:
    """The predictor that `config` describes, over labels 0 .. vocab_size - 1."""
    if isinstance(config, StatelessPredictorConfig):
        return StatelessPredictor(config, vocab_size, blank)
    if isinstance(config, TransformerPredictorConfig):
        return TransformerPredictor(config, vocab_size, blank)
    return LstmPredictor(config, vocab_size, blank)


__all__ = [
    "LstmPredictor",
    "LstmPredictorConfig",
    "Predictor",
    "PredictorConfig",
    "PredictorOutput",
    "StatelessPredictor",
    "StatelessPredictorConfig",
    "TransformerPredictor",
    "TransformerPredictorConfig",
    "build_predictor",
]
