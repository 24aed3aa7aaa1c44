"""Digit strings with encoders that attend: one Conformer for every latency, and a Transformer transducer.

Every function returns a Recipe: `asr train egs/digits/conformer.py:conformer --data DIR --exp DIR`.
Data, augmentation and criterion are those of the LSTM recipe.
"""

from __future__ import annotations

from lstm import streaming

from asr.encoders import ConformerEncoderConfig
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe

CONTEXTS = (
    ContextConfig(chunk=6, left_chunks=5),  # 240 ms of 40 ms frames, 1.2 s of history
    ContextConfig(chunk=2, left_chunks=14),  # 80 ms
    ContextConfig(chunk=14, left_chunks=2),  # 560 ms
    ContextConfig(chunk=28, left_chunks=1),  # 1120 ms
    ContextConfig(),
)


def conformer() -> Recipe:
    """Trained with chunks of 80 to 1120 ms and full context; 240 ms unless another is chosen."""
    base = streaming()
    encoder = ConformerEncoderConfig(
        dim=96,
        heads=4,
        layers=6,
        kernel=9,
        dropout=0.1,
        contexts=CONTEXTS,
        subsampling=SubsamplingConfig(channels=96),
    )
    return base.model_copy(
        update={
            "name": "digits Conformer transducer, every latency",
            "network": base.network.model_copy(update={"encoder": encoder}),
            "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=200),
        }
    )
