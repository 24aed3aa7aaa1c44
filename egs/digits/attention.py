"""Digit strings with encoders that attend: a Conformer for every latency, a Transformer transducer, funnels.

Every function returns a Recipe: `asr train egs/digits/attention.py:conformer --data DIR --exp DIR`.
Data, augmentation and criterion are those of the LSTM recipes.
"""

from __future__ import annotations

from typing import Any

from lstm import ctc, streaming

from asr.encoders import ConformerEncoderConfig, EncoderConfig, TransformerEncoderConfig
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.predictors import TransformerPredictorConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe

CONTEXTS = (
    ContextConfig(chunk=6, left_chunks=5),  # 240 ms of 40 ms frames, 1.2 s of history
    ContextConfig(chunk=2, left_chunks=14),  # 80 ms
    ContextConfig(chunk=14, left_chunks=2),  # 560 ms
    ContextConfig(chunk=28, left_chunks=1),  # 1120 ms
    ContextConfig(),
)


STACK: dict[str, Any] = {
    "dim": 144,
    "heads": 4,
    "layers": 6,
    "dropout": 0.1,
    "subsampling": SubsamplingConfig(channels=144),
}


def conformer() -> Recipe:
    """Trained with chunks of 80 to 1120 ms and full context; 240 ms unless another is chosen."""
    return _with(
        streaming(),
        "digits Conformer transducer, every latency",
        _conformer(contexts=CONTEXTS, context_warmup_steps=300),
    )


def transformer() -> Recipe:
    """Transformer Transducer: a lookahead of 240 ms in all, a label encoder that remembers 16 labels."""
    encoder = TransformerEncoderConfig(left=24, right=1, **STACK)
    base = _with(streaming(), "digits Transformer transducer, streaming", encoder)
    predictor = TransformerPredictorConfig(dim=128, heads=4, layers=2, history=16)
    return base.model_copy(update={"network": base.network.model_copy(update={"predictor": predictor})})


def funnel() -> Recipe:
    """Words instead of letters from the whole utterance, at 320 ms per frame; pool_after sets the rate."""
    return _words(_with(streaming(), "digits funnel Conformer transducer", _conformer(pool_after=(2, 3, 4))))


def funnel_ctc() -> Recipe:
    """The same with a CTC head alone."""
    return _words(_with(ctc(), "digits funnel Conformer CTC", _conformer(pool_after=(2, 3, 4))))


def _conformer(**options: Any) -> ConformerEncoderConfig:
    return ConformerEncoderConfig(kernel=9, **STACK, **options)


def _with(base: Recipe, name: str, encoder: EncoderConfig) -> Recipe:
    """The recipe with an encoder that attends: it wants more and smaller steps than an LSTM."""
    return base.model_copy(
        update={
            "name": name,
            "network": base.network.model_copy(update={"encoder": encoder}),
            "batches": base.batches.model_copy(update={"max_duration_s": 20}),
            "optimizer": OptimizerConfig(lr=6e-4, warmup_steps=200),
        }
    )


def _words(base: Recipe) -> Recipe:
    return base.model_copy(update={"tokenizer": TokenizerConfig(kind="word")})
