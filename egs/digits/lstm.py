"""Digit strings with LSTM encoders: a streaming transducer, a bidirectional one, and CTC.

Every function returns a Recipe: `asr train egs/digits/lstm.py:streaming --data DIR --exp DIR`.
"""

from __future__ import annotations

from asr.data.augment import AugmentConfig, NoiseConfig, ReverbConfig, SpeedConfig, VolumeConfig
from asr.data.batches import BatchesConfig, ConcatenateConfig
from asr.encoders import LstmEncoderConfig
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.transducer import TransducerConfig


def streaming() -> Recipe:
    """A streaming LSTM transducer; algorithmic latency 207.5 ms."""
    return Recipe(
        name="digits LSTM transducer, streaming",
        features=FbankConfig(sample_rate=8000, num_mel_bins=40),
        specaugment=SpecAugmentConfig(probability=0),
        tokenizer=TokenizerConfig(kind="char"),
        augment=AugmentConfig(
            speed=SpeedConfig(factors=(0.9, 1.0, 1.1), spread=0.04),
            # Speakers of this corpus differ by 25 dB; without this a new one is a new world (README).
            volume=VolumeConfig(probability=0.7, level_db=(-48, -18)),
            noise=NoiseConfig(probability=0.3, snr_db=(8, 30)),
            reverb=ReverbConfig(probability=0.1),
        ),
        batches=BatchesConfig(max_duration_s=40, concatenate=ConcatenateConfig(max_parts=7, part_gain_db=3)),
        network=TransducerConfig(
            encoder=LstmEncoderConfig(
                hidden=256, layers=2, lookahead=4, dropout=0.2, subsampling=SubsamplingConfig(channels=128)
            ),
            predictor=StatelessPredictorConfig(dim=128, context=3),
            joiner=JoinerConfig(dim=128),
            loss=LossConfig(ctc=CtcLossConfig(weight=0.5)),
        ),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=100),
        training=TrainingConfig(epochs=36, keep_best=5),
    )


def bidirectional() -> Recipe:
    """A bidirectional LSTM transducer: sees the whole utterance, cannot stream."""
    base = streaming()
    encoder = LstmEncoderConfig(
        hidden=192, layers=2, bidirectional=True, dropout=0.2, subsampling=base.network.encoder.subsampling
    )
    return base.model_copy(
        update={
            "name": "digits BiLSTM transducer",
            "network": base.network.model_copy(update={"encoder": encoder}),
        }
    )


def ctc() -> Recipe:
    """The streaming encoder with a CTC head alone."""
    base = streaming()
    network = TransducerConfig(
        encoder=base.network.encoder,
        predictor=None,
        loss=LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1)),
    )
    # The shortest "three" has fewer frames than CTC needs for its six labels; silence around it gives them.
    concatenate = base.batches.concatenate.model_copy(update={"edge_s": (0.05, 0.3)})
    return base.model_copy(
        update={
            "name": "digits LSTM CTC, streaming",
            "network": network,
            "batches": base.batches.model_copy(update={"concatenate": concatenate}),
        }
    )
