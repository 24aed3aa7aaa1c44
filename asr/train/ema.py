"""The running average of the weights, which is what is kept of a run: `training.ema`.

    average <- d * average + (1 - d) * weights        after every optimiser step
    d = min(decay, (1 + step) / (10 + step))          step from 0

Training goes on with the weights themselves and does not know of the average; that is what dev is decoded
with, what the best checkpoints are chosen and averaged of, and the model in the end. While steps are few d
is small, so that the average soon forgets how the network was drawn.

Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging", with exponential
weights and the warm-up of TensorFlow's ExponentialMovingAverage. The statistics of the features do not
change in training and are not averaged.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps `average` at the average of what `trained` has been: two networks alike, sharded or not."""

    def __init__(self, decay: float, trained: nn.Module, average: nn.Module) -> None:
        self.decay, self.trained, self.average = decay, trained, average

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that optimiser step `step` (from 0) has left."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([*weights_here(self.average)], [*weights_here(self.trained)], 1 - decay)


def weights_here(network: nn.Module) -> Iterator[Tensor]:
    """The parameters of a network, of those that are spread over processes what is here."""
    for parameter in network.parameters():
        local = getattr(parameter, "to_local", None)
        yield parameter.detach() if local is None else local()
