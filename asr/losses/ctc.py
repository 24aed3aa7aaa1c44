"""CTC loss (Graves et al. 2006): minus the log-probability of the transcript over all frame labellings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from asr.config import Config


class CtcLossConfig(Config):
    """The CTC head's training criterion."""

    weight: float = Field(0.0, ge=0)
    """Its share in the total loss; 0 builds no CTC head."""


def ctc_loss(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    """(B,) losses of logits (B, T, V); infinite where no alignment exists, with zero gradient."""
    log_probs = functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    loss = functional.ctc_loss(
        log_probs, targets, logit_lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True
    )
    # torch's infinite loss has NaN gradients and its zeroed one hides the fault: say where there is no path.
    within = torch.arange(1, targets.shape[1], device=targets.device)[None] < target_lengths[:, None]
    repeats = ((targets[:, 1:] == targets[:, :-1]) & within).sum(dim=1)
    return loss.masked_fill(logit_lengths < target_lengths + repeats, torch.inf)


def ctc_frames_needed(target: Sequence[int]) -> int:
    """Fewest encoder frames that can emit `target`: one per label and one blank between equal neighbours."""
    return len(target) + sum(a == b for a, b in pairwise(target))
