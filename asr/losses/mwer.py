"""Minimum word error rate training: the word errors that a list of hypotheses is expected to have.

    P(y|x) = p(y|x) / sum over the list of p(y'|x)
    loss   = sum over the list of  P(y|x) (W(y) - mean of W over the list)

W(y) are the word errors of hypothesis y, and p(y|x) is the probability that the transducer gives its labels,
summed over all alignments: exp(-transducer loss of y), whichever alignments the search has found. The mean
changes no gradient, d loss / d log p(y) = P(y) (W(y) - sum P W), only the value, which is below 0 where
probable hypotheses have fewer errors than others.

Sources: Prabhavalkar et al. 2018, "Minimum word error rate training for attention-based sequence-to-sequence
models"; Guo et al. 2020, "Efficient minimum word error rate training of RNN-Transducer for end-to-end speech
recognition"; Weng et al. 2020, "Minimum Bayes risk training of RNN-Transducer for end-to-end speech
recognition". The list is made in asr.train.n_best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from asr.config import Config


class MwerConfig(Config):
    """Minimum word error rate training beside the transducer loss, for models that can recognise already."""

    weight: float = Field(0.0, ge=0)
    """Of the expected word errors, 1 in the papers; 0 is without. The weight of the transducer loss beside it
    is transducer.weight, 0.01 in the papers."""
    nbest: int = Field(4, ge=2, le=64)
    """Most hypotheses of an utterance that count. Each costs what its transducer loss does."""
    beam: int = Field(4, ge=2, le=64)
    """Hypotheses of the search that finds them."""
    include_reference: bool = False
    """Whether the transcript counts where the search has not found it."""

    @model_validator(mode="after")
    def _as_many_as_are_found(self) -> MwerConfig:
        if self.nbest > self.beam:
            raise ValueError(
                f"a search with beam {self.beam} finds no {self.nbest} hypotheses: set mwer.nbest to "
                f"{self.beam} or less, or mwer.beam to {self.nbest}"
            )
        return self


class NBest(NamedTuple):
    """Up to N hypotheses of each of B utterances."""

    targets: Tensor
    """(B, N, U) int64 labels, padded with anything."""
    target_lengths: Tensor
    """(B, N) int64"""
    errors: Tensor
    """(B, N) float32 word errors."""
    present: Tensor
    """(B, N) bool: which hypotheses there are."""


def mwer_loss(log_probs: Tensor, n_best: NBest) -> Tensor:
    """(B,) losses in word errors, of hypotheses with natural logarithms of probability (B, N).

    Hypotheses with minus infinity do not count. A list of one or none costs nothing and has no gradient.
    """
    counts = n_best.present & (log_probs != -torch.inf)
    errors = torch.where(counts, n_best.errors.to(log_probs.dtype), 0.0)
    relative = errors - errors.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # A softmax over nothing but minus infinity would be no number: such rows get zeros, which cost nothing.
    scores = torch.where(counts, log_probs, -torch.inf)
    scores = torch.where(counts.any(dim=1, keepdim=True), scores, 0.0)
    return (scores.softmax(dim=1) * torch.where(counts, relative, 0.0)).sum(dim=1)
