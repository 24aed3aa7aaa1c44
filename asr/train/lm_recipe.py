"""The recipe of a language model: everything that decides its training, as one typed value.

A function of a recipe file returns one, as it returns a `Recipe` of a recogniser; `asr train` takes both.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from asr.config import Config
from asr.data.texts import TextBatchesConfig
from asr.lms import AwdLstmConfig, NeuralLmConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import TrainingConfig, check_averaging


class LmRecipe(Config):
    """A training run of a language model."""

    kind: Literal["lm"] = "lm"
    """In recipe.yaml this tells it from a recogniser's recipe."""
    name: str = "language model"
    recogniser: str = ""
    """Model directory of the recogniser whose labels it speaks; empty: the English one in the package."""
    dev: tuple[str, ...] = ()
    """Text files for dev; without one, batches.dev_every of the training text is held out."""
    network: NeuralLmConfig = AwdLstmConfig()
    batches: TextBatchesConfig = TextBatchesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _fits(self) -> LmRecipe:
        check_averaging(self.optimizer, self.training)
        if self.training.sharding != "none":
            raise ValueError("training.sharding is for recognisers: expected none for a language model")
        return self
