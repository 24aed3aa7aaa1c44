"""SpecAugment: bands of frequency and stretches of time are masked, so that a model learns to do without.

Source: Park et al. 2019, "SpecAugment", with the adaptive limit on time masks of Park et al. 2020: an
utterance of T frames loses at most `max_time_fraction` * T of them. As in lhotse, that budget decides first
how many time masks there are, min(time_masks, ceil(budget / max_time_width)), and then how wide each may be,
min(max_time_width, floor(budget / masks)). Widths are uniform from 0 to their limit, places are uniform.

Departures: no time warping; masks are filled with the mean of the utterance's features rather than zero,
because log-mel energies are not centred on zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.lengths import padding_mask


class SpecAugmentConfig(Config):
    """How much is masked; all zeros switch it off."""

    time_masks: int = Field(10, ge=0, le=1000)
    """Most time masks per utterance."""
    max_time_width: int = Field(100, ge=1)
    """Frames."""
    max_time_fraction: float = Field(0.15, ge=0, le=1)
    """Most that all time masks of an utterance may take of it together."""
    freq_masks: int = Field(2, ge=0, le=1000)
    """Frequency masks per utterance."""
    max_freq_width: int = Field(27, ge=1)
    """Mel bins; a single mask never takes more than a third of them, however few they are."""
    probability: float = Field(0.9, ge=0, le=1)
    """Share of utterances that are masked at all."""
    fill: Literal["mean", "zero"] = "mean"
    """What masks are filled with: the mean over the utterance's frames and bins, or zero."""

    @property
    def active(self) -> bool:
        """Whether anything is ever masked."""
        return self.probability > 0 and bool(self.freq_masks or (self.time_masks and self.max_time_fraction))


class SpecAugment:
    """Masks batches of features; all randomness comes from the generator that is passed in."""

    def __init__(self, config: SpecAugmentConfig | None = None) -> None:
        self.config = config or SpecAugmentConfig()

    def __call__(self, features: Tensor, feature_lengths: Tensor, generator: torch.Generator) -> Tensor:
        """A masked copy of `features` (B, T, M), of which `feature_lengths` (B,) int64 frames count.

        Padding is neither counted, nor read, nor altered. The same generator state and lengths give the same
        masks, on any device.
        """
        batch, frames, bins = features.shape
        lengths = feature_lengths.to(generator.device)
        chosen = torch.rand(batch, generator=generator, device=generator.device) < self.config.probability
        masked = self._time_masks(lengths, frames, generator)[:, :, None]
        masked = masked | self._freq_masks(batch, bins, generator)[:, None, :]
        valid = padding_mask(lengths, frames)[:, :, None]
        masked = (masked & valid & chosen[:, None, None]).to(features.device)
        return torch.where(masked, self._fill(features, valid.to(features.device)), features)

    def _time_masks(self, lengths: Tensor, frames: int, generator: torch.Generator) -> Tensor:
        """(B, T) True where masked; the draw takes `time_masks` numbers per utterance, used or not."""
        config = self.config
        budget = (lengths * config.max_time_fraction).floor().long()
        masks = (-(-budget // config.max_time_width)).clamp(min=1, max=max(1, config.time_masks))
        widest = (budget // masks).clamp(max=config.max_time_width)
        spans = _spans(widest, lengths, config.time_masks, frames, generator)
        used = torch.arange(config.time_masks, device=lengths.device) < masks[:, None]
        return (spans & used[:, :, None]).any(dim=1)

    def _freq_masks(self, batch: int, bins: int, generator: torch.Generator) -> Tensor:
        """(B, M) True where masked."""
        sizes = torch.full((batch,), bins, device=generator.device)
        widest = (sizes // 3).clamp(max=self.config.max_freq_width)
        return _spans(widest, sizes, self.config.freq_masks, bins, generator).any(dim=1)

    def _fill(self, features: Tensor, valid: Tensor) -> Tensor:
        """(B, 1, 1), or zero."""
        if self.config.fill == "zero":
            return features.new_zeros(())
        total = torch.where(valid, features, 0).sum(dim=(1, 2), keepdim=True)
        return total / (valid.sum(dim=1, keepdim=True) * features.shape[2]).clamp(min=1)


def _spans(widest: Tensor, sizes: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` random spans per row, (B, count, length) True inside: up to `widest` long, within `sizes`."""
    draws = torch.rand(2, len(sizes), count, generator=generator, device=generator.device)
    widths = (draws[0] * (widest[:, None] + 1)).long()
    starts = (draws[1] * (sizes[:, None] - widths + 1)).long()
    places = torch.arange(length, device=generator.device)
    return (places >= starts[:, :, None]) & (places < (starts + widths)[:, :, None])
