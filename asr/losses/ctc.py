"""CTC loss (Graves et al. 2006) of the encoder's frames: beside a transducer, or alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.losses.transducer import Transcripts
from asr_kernels import CTC, ctc_loss


class CtcLossConfig(Config):
    """The CTC head's training criterion."""

    weight: float = Field(0.0, ge=0)
    """Its share in the total loss; 0 builds no CTC head."""
    criterion: Literal["sum", "max"] = "sum"
    """Sum over all alignments, or the best one (Viterbi)."""


def ctc_head_loss(config: CtcLossConfig, logits: Tensor, to: Transcripts) -> Tensor:
    """(B,) losses of logits (B, T, V); infinite where no alignment exists, with zero gradient."""
    return ctc_loss(logits, *to, criterion=config.criterion)


def ctc_frames_needed(target: Sequence[int]) -> int:
    """Fewest encoder frames that can emit `target`: one per label and one blank between equal neighbours."""
    return CTC.frames_needed(target)
