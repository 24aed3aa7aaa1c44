"""Pruned transducer training written straight from the paper, in PyTorch alone: what k2 does, readable.

Kuang et al. 2022, "Pruned RNN-T for fast, memory-efficient ASR training": the loss of a linear joiner, whose
normaliser is a matrix product (section 3.1), smoothed (3.2); its occupations, from which each frame gets the
S label positions that matter (3.3); the loss of the real joiner at those positions alone. Gradients are
autograd's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from measure import plain_lattice_loss
from torch import Tensor
from torch.nn import functional

LOG_ZERO = -1e30


class Scores(NamedTuple):
    """Log-probabilities, or what belongs to them, at each node."""

    blank: Tensor  # (B, T, U+1)
    label: Tensor  # (B, T, U)


def simple_scores(am: Tensor, lm: Tensor, targets: Tensor, lm_scale: float) -> Scores:
    """Of logits am (B, T, V) + lm (B, U+1, V), mixed with those of lm alone; blank is 0."""
    am, lm = _wide(am), _wide(lm)
    am_max, lm_max = am.detach().amax(-1, keepdim=True), lm.detach().amax(-1, keepdim=True)
    product = (am - am_max).exp() @ (lm - lm_max).exp().transpose(1, 2)
    log_norm = (product + torch.finfo(am.dtype).tiny).log() + am_max + lm_max.transpose(1, 2)
    index = targets.to(am.device, torch.int64)
    by_am = am.gather(-1, index[:, None].expand(-1, am.shape[1], -1))
    by_lm = lm[:, :-1].gather(-1, index[..., None]).transpose(1, 2)
    blank = am[..., :1] + lm[:, None, :, 0] - log_norm
    label = by_am + by_lm - log_norm[..., :-1]
    alone = lm.log_softmax(-1)
    alone_blank = alone[:, None, :, 0]
    alone_label = alone[:, :-1].gather(-1, index[..., None]).transpose(1, 2)
    return Scores(
        (1 - lm_scale) * blank + lm_scale * alone_blank, (1 - lm_scale) * label + lm_scale * alone_label
    )


def loss_and_occupation(scores: Scores, frames: Tensor, labels: Tensor) -> tuple[Tensor, Scores]:
    """Summed loss, differentiable, and the occupations, by one forward and backward through the lattice."""
    leaves = Scores(*(x.detach().requires_grad_() for x in scores))
    value = plain_lattice_loss(*leaves, frames, labels).sum()
    gradient = torch.autograd.grad(value, leaves)
    linear = sum((x * g).sum() for x, g in zip(scores, gradient, strict=True))
    return linear + (value - linear).detach(), Scores(*(-g for g in gradient))


def pruning_bounds(occupation: Scores, frames: Tensor, labels: Tensor, S: int) -> Tensor:
    """(B, T, S): the best window of each frame, then mended so that a path can follow them."""
    T, width = occupation.blank.shape[1:]
    S = min(S, width)
    # What leaves by blank within the window, less what enters it from the position before.
    inside = functional.pad(occupation.blank.cumsum(-1), (1, 0)).unfold(-1, S + 1, 1)
    entering = functional.pad(occupation.label, (1, 0))[..., : width + 1 - S]
    first = (inside[..., -1] - inside[..., 0] - entering).argmax(-1)
    t = torch.arange(T, device=first.device)[None]
    last = (labels.long()[:, None] + 1 - S).clamp(min=0).to(first.device)
    first = torch.where(t < frames.to(first.device)[:, None] - 1, first.minimum(last), last)
    # Never falls, and rises by less than S: twice the lowest bound that comes later.
    first = _lowest_later(first)
    first = -_lowest_later((S - 1) * t - first).clamp(min=0) + (S - 1) * t
    return first[..., None] + torch.arange(S, device=first.device)


def _lowest_later(x: Tensor) -> Tensor:
    return x.flip(1).cummin(1).values.flip(1)


def pruned_scores(
    encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, ranges: Tensor
) -> Scores:
    """Of the joiner's logits (B, T, S, V) at the label positions `ranges`; log 0 at all others."""
    B, T = ranges.shape[:2]
    rows = predictor[torch.arange(B, device=ranges.device)[:, None, None], ranges]
    logits = _wide(functional.linear(torch.tanh(encoder[:, :, None] + rows), weight, bias))
    log_norm = logits.logsumexp(-1)
    # The last position has no label: its score is dropped below.
    labels = functional.pad(targets.to(ranges.device, torch.int64), (0, 1))
    following = labels[:, None].expand(-1, T, -1).gather(-1, ranges)
    label = logits.gather(-1, following[..., None]).squeeze(-1) - log_norm
    whole = logits.new_full((B, T, predictor.shape[1]), LOG_ZERO)
    return Scores(
        whole.scatter(2, ranges, logits[..., 0] - log_norm), whole.scatter(2, ranges, label)[..., :-1]
    )


def _wide(x: Tensor) -> Tensor:
    """In half precision the sums would be lost."""
    return x if x.dtype == torch.float64 else x.float()
