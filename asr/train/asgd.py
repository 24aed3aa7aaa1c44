"""NT-ASGD: SGD whose weights are averaged once the loss on dev has stopped to fall.

    T = the step of the first validation t > n with v_t > min(v_0 .. v_{t-n-1})      n = optimizer.patience
    kept = w                                                            before T
    kept = (w_T + ... + w_k) / (k - T + 1)                              from T on, k steps done

A validation above the lowest of those more than n before it: for n of them nothing has improved. From then on
dev is measured with the average, which is also what is kept; training goes on with the weights themselves.

Source: Merity, Keskar and Socher 2018, "Regularizing and optimizing LSTM language models", algorithm 1, with
the minimum that its text describes and the authors' program takes; averaging itself is Polyak and Juditsky
1992.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from asr.train.ema import weights_here


class TriggeredAverage:
    """Keeps `average` at what is kept of `trained`: two networks alike."""

    def __init__(self, trained: nn.Module, average: nn.Module) -> None:
        self.trained, self.average = trained, average

    @torch.no_grad()
    def update(self, step: int, since: int | None) -> None:
        """Take in the weights that optimiser step `step` (from 0) has left; `since` is T."""
        share = 1.0 if since is None else 1 / (step + 2 - since)
        torch._foreach_lerp_([*weights_here(self.average)], [*weights_here(self.trained)], share)


def is_triggered(losses: Sequence[float], patience: int) -> bool:
    """Whether averaging begins with the last of these losses on dev, all that there were."""
    earlier = losses[: -1 - patience]
    return len(losses) > patience + 1 and losses[-1] > min(earlier)
