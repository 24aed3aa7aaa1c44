"""Hebrew yes and no with LSTM encoders: a streaming transducer, a bidirectional one, and CTC.

Thirty recordings of eight words each, cut into words and joined again at random (prepare.py). Characters are
the labels: a transducer whose predictor sees whole words has trouble to count equal words in a row
(egs/digits/README.md), and here half of them are.
"""

from __future__ import annotations

from asr.data.augment import AugmentConfig, NoiseConfig, SpeedConfig, VolumeConfig
from asr.data.batches import BatchesConfig, ConcatenateConfig
from asr.encoders import LstmEncoderConfig
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.transducer import TransducerConfig


def streaming() -> Recipe:
    """A streaming LSTM transducer; algorithmic latency 207.5 ms."""
    return Recipe(
        name="yesno LSTM transducer, streaming",
        features=FbankConfig(sample_rate=8000, num_mel_bins=40),
        specaugment=SpecAugmentConfig(probability=0),
        tokenizer=TokenizerConfig(kind="char"),
        augment=AugmentConfig(
            speed=SpeedConfig(factors=(0.9, 1.0, 1.1), spread=0.03),
            volume=VolumeConfig(probability=0.5, gain_db=(-10, 6)),
            noise=NoiseConfig(probability=0.2, snr_db=(10, 30)),
        ),
        batches=BatchesConfig(
            max_duration_s=20,
            concatenate=ConcatenateConfig(max_parts=10, gap_s=(0, 0.15), edge_s=(0, 0.4), part_gain_db=2),
        ),
        network=TransducerConfig(
            encoder=LstmEncoderConfig(hidden=128, layers=2, lookahead=4, dropout=0.1),
            predictor=StatelessPredictorConfig(dim=64, context=3),
            joiner=JoinerConfig(dim=128),
            loss=LossConfig(ctc=CtcLossConfig(weight=1)),
        ),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=50),
        # One thread: as fast on tensors this small, and the same numbers on every machine with this CPU.
        training=TrainingConfig(epochs=100, validate_every=5, keep_best=5, threads=1),
    )


def bidirectional() -> Recipe:
    """A bidirectional LSTM transducer: sees the whole utterance, cannot stream."""
    base = streaming()
    encoder = LstmEncoderConfig(hidden=96, layers=2, bidirectional=True, dropout=0.1)
    network = base.network.model_copy(update={"encoder": encoder})
    return base.model_copy(update={"name": "yesno BiLSTM transducer", "network": network})


def ctc() -> Recipe:
    """The streaming encoder with a CTC head alone."""
    base = streaming()
    network = TransducerConfig(
        encoder=base.network.encoder,
        predictor=None,
        loss=LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1)),
    )
    return base.model_copy(update={"name": "yesno LSTM CTC, streaming", "network": network})
