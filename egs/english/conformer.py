"""English with a streaming Conformer transducer of about 10 million parameters.

`asr train egs/english/conformer.py:streaming --data DIR --exp DIR`, with DIR from prepare.py.
"""

from __future__ import annotations

from asr.data.augment import AugmentConfig, NoiseConfig, ReverbConfig, SpeedConfig, VolumeConfig
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
    ContextConfig(chunk=4, left_chunks=16),  # 320 ms of 80 ms frames, 5.1 s of history
    ContextConfig(chunk=8, left_chunks=8),  # 640 ms
    ContextConfig(),
)


def streaming() -> Recipe:
    """Frames of 80 ms in chunks of 320 ms (algorithmic latency 310 ms), or 640 ms, or whole recordings."""
    return Recipe(
        name="English Conformer transducer, streaming",
        features=FbankConfig(sample_rate=16000, num_mel_bins=80),
        specaugment=SpecAugmentConfig(max_time_width=40, max_time_fraction=0.2),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=256),
        augment=AugmentConfig(
            speed=SpeedConfig(factors=(0.9, 1.0, 1.1), spread=0.05),
            volume=VolumeConfig(probability=0.5, level_db=(-40, -15)),
            noise=NoiseConfig(probability=0.2, snr_db=(8, 30)),
            reverb=ReverbConfig(probability=0.1),
        ),
        batches=BatchesConfig(max_duration_s=80, cache_mb=2048),
        network=TransducerConfig(
            encoder=ConformerEncoderConfig(
                dim=224,
                heads=4,
                layers=8,
                kernel=9,
                dropout=0.1,
                contexts=CONTEXTS,
                context_warmup_steps=1000,
                subsampling=SubsamplingConfig(factor=8, channels=224),
            ),
            predictor=StatelessPredictorConfig(dim=224, context=3),
            joiner=JoinerConfig(dim=256),
            loss=LossConfig(ctc=CtcLossConfig(weight=0.5)),
        ),
        optimizer=OptimizerConfig(lr=6e-4, warmup_steps=1000),
        training=TrainingConfig(epochs=60, keep_best=5, precision="bfloat16"),
    )
