"""Language models over the labels of a recogniser, and what else scores a hypothesis."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asr.lms.base import Scorer
from asr.lms.neural import NeuralLm
from asr.lms.ngram import NgramModel
from asr.lms.recurrent import AwdLstm, AwdLstmConfig
from asr.lms.tokens import TokenNgram
from asr.lms.transformer import TransformerLm, TransformerLmConfig
from asr.lms.words import WordNgram, WordNgramConfig

NeuralLmConfig = Annotated[AwdLstmConfig | TransformerLmConfig, Field(discriminator="kind")]
"""Every neural language model's configuration; `kind` tells them apart."""


def build_neural_lm(config: AwdLstmConfig | TransformerLmConfig, vocab_size: int) -> NeuralLm:
    """The untrained language model that `config` describes, over labels 0 .. vocab_size - 1."""
    if isinstance(config, TransformerLmConfig):
        return TransformerLm(config, vocab_size)
    return AwdLstm(config, vocab_size)


__all__ = [
    "AwdLstm",
    "AwdLstmConfig",
    "NeuralLm",
    "NeuralLmConfig",
    "NgramModel",
    "Scorer",
    "TokenNgram",
    "TransformerLm",
    "TransformerLmConfig",
    "WordNgram",
    "WordNgramConfig",
    "build_neural_lm",
]
