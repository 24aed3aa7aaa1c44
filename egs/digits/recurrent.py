"""Digit strings with recurrent encoders: any sequence mixer, at about 3 million parameters.

`asr train egs/digits/recurrent.py:recurrent --data DIR --exp DIR --set network.encoder.mixer.kind=NAME`.
Data, augmentation and criterion are those of the LSTM recipes; mixers.sh trains and measures all mixers.
"""

from __future__ import annotations

from lstm import streaming

from asr.encoders import RecurrentEncoderConfig
from asr.encoders.mixers.local_attention import LocalAttentionConfig
from asr.encoders.mixers.min_lstm import MinLstmConfig
from asr.encoders.mixers.rg_lru import RgLruConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig


def recurrent() -> Recipe:
    """A streaming stack of six layers; algorithmic latency 207.5 ms, as the streaming LSTM."""
    base = streaming()
    encoder = RecurrentEncoderConfig(
        mixer=MinLstmConfig(),
        dim=192,
        layers=6,
        lookahead=4,
        dropout=0.1,
        subsampling=SubsamplingConfig(channels=144),
    )
    return base.model_copy(
        update={
            "name": "digits recurrent transducer, streaming",
            "network": base.network.model_copy(update={"encoder": encoder}),
            "batches": base.batches.model_copy(update={"max_duration_s": 20}),
            "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=200),
            "training": TrainingConfig(epochs=24, keep_best=5),
        }
    )


def griffin() -> Recipe:
    """Two layers of RG-LRU, then one of attention to the last 2.6 s (De et al. 2024)."""
    base = recurrent()
    mixers = {"mixer": RgLruConfig(), "others": (RgLruConfig(), LocalAttentionConfig()), "dim": 176}
    encoder = base.network.encoder.model_copy(update=mixers)
    return base.model_copy(
        update={
            "name": "digits Griffin transducer, streaming",
            "network": base.network.model_copy(update={"encoder": encoder}),
        }
    )
