"""CTC loss (Graves et al. 2006) of the encoder's frames: beside a transducer, or alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from asr.config import Config
from asr.losses.consistency import VIEWS
from asr.losses.transducer import Transcripts
from asr_kernels import CTC, ctc_loss


class CtcLossConfig(Config):
    """The CTC head's training criterion."""

    weight: float = Field(0.0, ge=0)
    """Its share in the total loss; 0 builds no CTC head."""
    criterion: Literal["sum", "max"] = "sum"
    """Sum over all alignments, or the best one (Viterbi)."""
    consistency: float = Field(0.0, ge=0)
    """Weight of CR-CTC's consistency term (asr.losses.consistency); the paper has 0.2 of CTC's own weight.
    Every utterance is then trained on twice, masked by two draws of SpecAugment: a batch takes twice the
    memory, so halve batches.max_duration_s. An encoder with several contexts draws one for each view, so what
    hears less learns from what hears more (as in the dual-mode training of Yu et al. 2021). The paper also
    masks 2.5 times as much time (specaugment.max_time_fraction, and time_masks to match)."""

    @model_validator(mode="after")
    def _consistency_has_its_head(self) -> CtcLossConfig:
        if self.consistency and not self.weight:
            raise ValueError(f"consistency {self.consistency:g} needs a CTC head: set ctc.weight above 0")
        return self

    @property
    def views(self) -> int:
        """Views of every utterance in a batch of training."""
        return VIEWS if self.consistency else 1


def ctc_head_loss(config: CtcLossConfig, logits: Tensor, to: Transcripts) -> Tensor:
    """(B,) losses of logits (B, T, V); infinite where no alignment exists, with zero gradient."""
    return ctc_loss(logits, *to, criterion=config.criterion)


def ctc_frames_needed(target: Sequence[int]) -> int:
    """Fewest encoder frames that can emit `target`: one per label and one blank between equal neighbours."""
    return CTC.frames_needed(target)
