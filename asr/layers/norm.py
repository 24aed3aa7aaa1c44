"""Normalisation of the input features by the statistics of the training data.

y = (x - mean) / std, per mel bin. The statistics are measured once before training and travel with the
weights, so that a live stream is normalised exactly as a file is: no running or per-utterance estimate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from asr.lengths import padding_mask


class FeatureNorm(nn.Module):
    """Global mean and variance normalisation of (B, T, D) features."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return (x - self.mean) * self.scale

    def measure(self, features: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the statistics from batches of (features (B, T, D), lengths (B,)), in float64."""
        dim = self.mean.numel()
        count, total, square = 0, torch.zeros(dim).double(), torch.zeros(dim).double()
        for x, x_lengths in features:
            valid = x[padding_mask(x_lengths, x.shape[1])].double()
            count += valid.shape[0]
            total += valid.sum(0)
            square += valid.square().sum(0)
        mean = total / max(count, 1)
        variance = square / max(count, 1) - mean.square()
        self.mean.copy_(mean)
        # A bin that never varies (no FFT line falls into it) carries nothing: scale it gently.
        self.scale.copy_(variance.clamp(min=1e-2).rsqrt())
