"""Language models over the letters of the English recogniser.

`asr train egs/english/lm_neural.py:awd --data DIR/text/lm.txt --exp DIR`, with DIR/text from prepare.py; for
the labels of another recogniser `--set recogniser=MODEL_DIR`.
"""

from __future__ import annotations

from asr.data.texts import TextBatchesConfig
from asr.lms import AwdLstmConfig, TransformerLmConfig
from asr.train.lm_recipe import LmRecipe
from asr.train.optim import OptimizerConfig
from asr.train.recipe import TrainingConfig


def awd() -> LmRecipe:
    """AWD-LSTM of 2 million parameters with Adam, which on a million letters is done before NT-ASGD is."""
    return LmRecipe(
        name="English letters, AWD-LSTM",
        network=AwdLstmConfig(
            dim=128,
            hidden=512,
            layers=2,
            embedding_dropout=0.0,  # of 28 letters none is rare
            input_dropout=0.1,
            hidden_dropout=0.2,
            output_dropout=0.1,
            weight_drop=0.3,
            ar=1.0,
            tar=0.5,
        ),
        batches=TextBatchesConfig(max_labels=4096),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=200, weight_decay=1e-3),
        training=TrainingConfig(epochs=12, keep_best=3, clip_norm=1.0),
    )


def awd_nt_asgd() -> LmRecipe:
    """The same, optimised as in the paper."""
    base = awd()
    return base.model_copy(
        update={
            "name": "English letters, AWD-LSTM, NT-ASGD",
            "optimizer": OptimizerConfig(
                kind="nt-asgd", lr=10.0, warmup_steps=100, final_lr=1.0, weight_decay=1e-6, patience=3
            ),
            "training": base.training.model_copy(update={"epochs": 30, "clip_norm": 0.25}),
        }
    )


def transformer() -> LmRecipe:
    """A Transformer of 3 million parameters, every layer of which sees the last 96 letters."""
    return LmRecipe(
        name="English letters, Transformer",
        network=TransformerLmConfig(dim=256, heads=4, layers=4, history=96, dropout=0.1),
        batches=TextBatchesConfig(max_labels=4096),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=300),
        training=TrainingConfig(epochs=12, keep_best=3, clip_norm=1.0),
    )


def small() -> LmRecipe:
    """AWD-LSTM of 0.6 million parameters that sees millions of letters once: nothing is dropped."""
    return LmRecipe(
        name="English letters, small LSTM",
        network=AwdLstmConfig(
            dim=128,
            hidden=256,
            layers=2,
            embedding_dropout=0.0,
            input_dropout=0.0,
            hidden_dropout=0.0,
            output_dropout=0.0,
            weight_drop=0.0,
        ),
        batches=TextBatchesConfig(max_labels=4096, dev_every=200),
        optimizer=OptimizerConfig(lr=4e-3, warmup_steps=200, weight_decay=1e-3),
        training=TrainingConfig(epochs=1, keep_best=3, clip_norm=1.0, threads=1),
    )
