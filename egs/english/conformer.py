"""English with a streaming Conformer transducer of 5 million parameters that writes letters.

`asr train egs/english/conformer.py:streaming --data DIR --exp DIR`, with DIR from prepare.py.
"""

from __future__ import annotations

from asr.data.augment import AugmentConfig, NoiseConfig, SpeedConfig, VolumeConfig
from asr.data.batches import BatchesConfig
from asr.encoders import ConformerEncoderConfig
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.losses import CtcLossConfig, LossConfig
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.transducer import TransducerConfig

CONTEXTS = (
    ContextConfig(chunk=8, left_chunks=12),  # 320 ms of 40 ms frames, 3.8 s of history
    ContextConfig(chunk=16, left_chunks=6),  # 640 ms
    ContextConfig(),
)


def streaming() -> Recipe:
    """Frames of 40 ms in chunks of 320 ms (algorithmic latency 327.5 ms), or 640 ms, or whole recordings."""
    return Recipe(
        name="English Conformer transducer, streaming",
        features=FbankConfig(sample_rate=16000, num_mel_bins=80),
        specaugment=SpecAugmentConfig(
            freq_masks=2, max_freq_width=15, max_time_width=25, max_time_fraction=0.1
        ),
        tokenizer=TokenizerConfig(kind="char"),
        augment=AugmentConfig(
            speed=SpeedConfig(factors=(0.9, 1.0, 1.1), spread=0.05),
            volume=VolumeConfig(probability=0.5, level_db=(-40, -15)),
            noise=NoiseConfig(probability=0.1, snr_db=(8, 30)),
        ),
        batches=BatchesConfig(max_duration_s=25, cache_mb=2048, curriculum_epochs=1),
        network=TransducerConfig(
            encoder=ConformerEncoderConfig(
                dim=192,
                heads=4,
                layers=6,
                kernel=15,
                dropout=0.1,
                contexts=CONTEXTS,
                context_warmup_steps=2000,
                subsampling=SubsamplingConfig(factor=4, channels=144),
            ),
            predictor=StatelessPredictorConfig(dim=192, context=4),
            joiner=JoinerConfig(dim=192),
            loss=LossConfig(ctc=CtcLossConfig(weight=0.5)),
        ),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=300),
        training=TrainingConfig(epochs=12, keep_best=5, precision="bfloat16"),
    )
