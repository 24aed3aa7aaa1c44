"""Transducer loss: minus the log-probability of the transcript, summed over all alignments.

Exact RNN-T loss (Graves 2012) on the logits of the whole lattice, by `asr_kernels.rnnt_loss`.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr_kernels import rnnt_loss


class TransducerLossConfig(Config):
    """The transducer's training criterion."""

    weight: float = Field(1.0, ge=0)
    """Its share in the total loss; 0 trains without it."""
    fastemit: float = Field(0.0, ge=0)
    """FastEmit's lambda (Yu et al. 2021): label gradients times 1 + lambda, for earlier emission."""
    delay_penalty: float = Field(0.0, ge=0)
    """Reward of early labels per frame (Kang et al. 2023), as k2 defines it."""


def transducer_loss(
    config: TransducerLossConfig,
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
) -> Tensor:
    """(B,) losses of logits (B, T, U + 1, V); infinite where no alignment exists, with zero gradient."""
    return rnnt_loss(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        fastemit=config.fastemit,
        delay_penalty=config.delay_penalty,
        reduction="none",
    )


def transducer_frames_needed(target_length: int) -> int:
    """Fewest encoder frames that can emit a transcript: labels take no frame, the final blank does."""
    return 1
