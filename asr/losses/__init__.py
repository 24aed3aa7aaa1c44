"""Training criteria on top of `asr_kernels`, chosen and weighted by configuration."""

from __future__ import annotations

from asr.config import Config
from asr.losses.ctc import CtcLossConfig, ctc_frames_needed, ctc_head_loss
from asr.losses.topology import TopologyConfig
from asr.losses.transducer import (
    JoinerInputs,
    PrunedLossConfig,
    Transcripts,
    TransducerLossConfig,
    pruned_transducer_loss,
    transducer_frames_needed,
    transducer_loss,
)


class LossConfig(Config):
    """What is minimised: the weighted sum of the criteria."""

    transducer: TransducerLossConfig = TransducerLossConfig()
    ctc: CtcLossConfig = CtcLossConfig()


__all__ = [
    "CtcLossConfig",
    "JoinerInputs",
    "LossConfig",
    "PrunedLossConfig",
    "TopologyConfig",
    "Transcripts",
    "TransducerLossConfig",
    "ctc_frames_needed",
    "ctc_head_loss",
    "pruned_transducer_loss",
    "transducer_frames_needed",
    "transducer_loss",
]
