"""The contract of every predictor (the label encoder of a transducer).

`forward(labels, state)` extends hypotheses by labels and answers one vector per label; training passes
blank followed by the transcript, search one label at a time, and both run the same code. The state is
explicit and batch-first, so that beam search can fork and reorder hypotheses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class PredictorOutput(NamedTuple):
    """What a predictor answers."""

    y: Tensor
    """(B, U, output_dim), one vector after each label."""
    state: Any


Step = Callable[[Tensor, Any], PredictorOutput]
"""One label (B, 1) more for every hypothesis of a state."""


class Predictor(nn.Module, ABC):
    """Base of all predictors."""

    output_dim: int
    blank: int

    def whole(self, targets: Tensor) -> Tensor:
        """(B, U) transcripts -> (B, U + 1, output_dim): before the first label and after each."""
        labels = functional.pad(targets, (1, 0), value=self.blank)
        y: Tensor = self(labels, self.initial_state(targets.shape[0], targets.device)).y
        return y

    @abstractmethod
    def forward(self, labels: Tensor, state: Any) -> PredictorOutput:
        """Extend the hypotheses of `state` by labels (B, U) int64; a hypothesis starts with blank."""

    def stepper(self) -> Step:
        """The same for a search, which goes label by label, with the weights as they are now."""
        return self

    @abstractmethod
    def initial_state(self, batch: int, device: torch.device | None = None) -> Any:
        """State of `batch` empty hypotheses; feed blank first."""
