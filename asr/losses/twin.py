"""The criterion of a twin network: the label side, taught what comes next by one that reads backwards.

    loss = sum over labels u of  -log p(y[u] | y[u+1 ..])  +  weight | g(forward[u]) - sg(backward[u]) |

forward[u] is what the predictor says before label u, from the labels before it, and backward[u] what its twin
says from the labels behind it: both are to know label u. g is an affine map, | | the Euclidean norm, and sg
stops the gradient, so the twin is a language model of reversed transcripts and nothing else moves it. Only
training needs it.

Source: Serdyuk et al. 2018, "Twin networks: Matching the future for sequence generation", section 2.
The twin of a predictor is asr.predictors.twin.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from asr.config import Config
from asr.lengths import padding_mask
from asr.state import wide


class TwinConfig(Config):
    """A twin of the predictor, for those that remember more than a few labels."""

    weight: float = Field(0.0, ge=0)
    """Of the distance, per label; beside nats; 0 is without a twin."""


def twin_loss(
    config: TwinConfig, forward: Tensor, backward: Tensor, logits: Tensor, targets: Tensor, lengths: Tensor
) -> Tensor:
    """(B,) losses of transcripts (B, U) int64 of lengths (B,), padded with anything.

    forward, backward: (B, U, P) what the affine map makes of the predictor's output before each label, and
        what the twin says of it.
    logits: (B, U, V) of each label, by the twin.
    """
    spoken = padding_mask(lengths, targets.shape[1])
    dtype = wide(forward.dtype)
    # Padding is undefined, and the norm has no gradient at 0: there the difference is a constant.
    difference = (forward - backward.detach()).to(dtype).masked_fill(~spoken[:, :, None], 1.0)
    apart = difference.norm(dim=-1).masked_fill(~spoken, 0.0).sum(dim=1)
    labels = targets.masked_fill(~spoken, -1)
    log_probs = logits.masked_fill(~spoken[:, :, None], 0.0).log_softmax(-1, dtype=dtype)
    nats = functional.nll_loss(log_probs.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    return torch.add(nats.sum(dim=1), apart, alpha=config.weight)
