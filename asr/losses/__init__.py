"""Training criteria on top of `asr_kernels`, chosen and weighted by configuration."""

from __future__ import annotations

from pydantic import model_validator

from asr.config import Config
from asr.losses.consistency import consistency_loss
from asr.losses.ctc import CtcLossConfig, ctc_frames_needed, ctc_head_loss
from asr.losses.mwer import MwerConfig, NBest, mwer_loss
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
from asr.losses.twin import TwinConfig, twin_loss


class LossConfig(Config):
    """What is minimised: the weighted sum of the criteria."""

    transducer: TransducerLossConfig = TransducerLossConfig()
    ctc: CtcLossConfig = CtcLossConfig()
    mwer: MwerConfig = MwerConfig()
    twin: TwinConfig = TwinConfig()

    @model_validator(mode="after")
    def _mwer_has_its_head(self) -> LossConfig:
        if self.mwer.weight and not self.transducer.weight:
            raise ValueError(
                f"mwer.weight {self.mwer.weight:g} trains a transducer, expected transducer.weight above 0, "
                "found 0: set it to 0.01 or more, or mwer.weight to 0"
            )
        return self

    @model_validator(mode="after")
    def _twin_has_a_predictor(self) -> LossConfig:
        if self.twin.weight and not self.transducer.weight:
            raise ValueError(
                f"twin.weight {self.twin.weight:g} is for the predictor of a transducer, expected "
                "transducer.weight above 0, found 0: set twin.weight to 0"
            )
        return self

    @model_validator(mode="after")
    def _ctc_can_begin_alone(self) -> LossConfig:
        if self.transducer.after_steps and not (self.transducer.weight and self.ctc.weight):
            raise ValueError(
                "transducer.after_steps trains a CTC head alone before the transducer: set ctc.weight and "
                "transducer.weight above 0, or after_steps to 0"
            )
        return self


__all__ = [
    "CtcLossConfig",
    "JoinerInputs",
    "LossConfig",
    "MwerConfig",
    "NBest",
    "PrunedLossConfig",
    "TopologyConfig",
    "Transcripts",
    "TransducerLossConfig",
    "TwinConfig",
    "consistency_loss",
    "ctc_frames_needed",
    "ctc_head_loss",
    "mwer_loss",
    "pruned_transducer_loss",
    "transducer_frames_needed",
    "transducer_loss",
    "twin_loss",
]
