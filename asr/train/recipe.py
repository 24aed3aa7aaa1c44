"""A recipe: everything that decides a training run, as one typed value.

Recipes are Python functions that return a `Recipe`; a variant edits a base in a few lines with
`model_copy(update=...)` or builds its own. The run's directory keeps it as recipe.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from asr.config import Config
from asr.data.augment import AugmentConfig
from asr.data.batches import BatchesConfig
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.layers.context import ContextConfig
from asr.search import SearchConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.optim import OptimizerConfig
from asr.transducer import TransducerConfig


class TrainingConfig(Config):
    """The loop itself."""

    epochs: int = Field(30, ge=1)
    accumulate: int = Field(1, ge=1)
    """Batches per optimiser step, of each process."""
    clip_norm: float = Field(5.0, gt=0)
    """Gradients are scaled down to this norm."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the network under autocast; losses stay in float32."""
    non_finite: Literal["skip", "stop"] = "skip"
    """What to do with an utterance whose loss is not finite: leave it out and say so, or stop."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations on dev (also checkpoints)."""
    keep_best: int = Field(5, ge=1)
    """Checkpoints kept, by dev WER (perplexity of a language model); the final weights are their average
    unless the best has a lower loss."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of a running average of the weights, e.g. 0.999, which is validated and kept in place of them
    (asr.train.ema); 0 is without."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Longest time between checkpoints within an epoch."""
    seed: int = 0
    sharding: Literal["none", "fsdp2"] = "none"
    """What each of several processes holds: the whole network, or a part of it (asr.train.sharding)."""
    threads: int = Field(0, ge=0)
    """CPU threads of the network; 0 leaves torch's choice."""


def check_averaging(optimizer: OptimizerConfig, training: TrainingConfig) -> None:
    """Raise ValueError if two averages of the weights would be kept, or parts of one."""
    if optimizer.kind == "nt-asgd" and (training.ema or training.sharding != "none"):
        raise ValueError(
            "optimizer.kind=nt-asgd keeps an average of the weights itself: leave training.ema at 0 and "
            "training.sharding at none"
        )


class Recipe(Config):
    """A training run."""

    name: str = "model"
    features: FbankConfig = FbankConfig()
    specaugment: SpecAugmentConfig = SpecAugmentConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    augment: AugmentConfig = AugmentConfig()
    batches: BatchesConfig = BatchesConfig()
    network: TransducerConfig = TransducerConfig()
    search: SearchConfig = SearchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _search_has_its_head(self) -> Recipe:
        if self.search.head == "ctc" and self.network.loss.ctc.weight == 0:
            raise ValueError("search.head=ctc needs a CTC head: set network.loss.ctc.weight above 0")
        if self.search.head == "transducer" and self.network.loss.transducer.weight == 0:
            raise ValueError("search.head=transducer needs network.loss.transducer.weight above 0")
        return self

    @model_validator(mode="after")
    def _final_results_are_trained(self) -> Recipe:
        contexts = getattr(self.network.encoder, "contexts", ())
        if self.search.finals == "whole" and ContextConfig() not in contexts:
            raise ValueError(
                "search.finals=whole needs a network that is trained to hear utterances whole: add {} to "
                "network.encoder.contexts, or set search.finals=live"
            )
        return self

    @model_validator(mode="after")
    def _one_average(self) -> Recipe:
        check_averaging(self.optimizer, self.training)
        return self

    @model_validator(mode="after")
    def _views_differ(self) -> Recipe:
        if self.network.loss.ctc.consistency and not self.specaugment.active:
            raise ValueError(
                "network.loss.ctc.consistency compares two ways to mask an utterance, and nothing is masked: "
                "set specaugment.probability above 0, and time_masks or freq_masks"
            )
        return self

    @model_validator(mode="after")
    def _search_finds_whole_weights(self) -> Recipe:
        if self.network.loss.mwer.weight and self.training.sharding != "none":
            raise ValueError(
                "network.loss.mwer searches with the network that learns: expected training.sharding=none, "
                f"found {self.training.sharding}; set it to none, or network.loss.mwer.weight to 0"
            )
        return self
