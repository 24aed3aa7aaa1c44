"""A predictor that reads transcripts backwards, for training alone (see asr.losses.twin)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from asr.lengths import reverse_frames
from asr.predictors.base import Predictor


class TwinOutput(NamedTuple):
    """What there is to compare of every label."""

    forward: Tensor
    """(B, U, P), what the affine map makes of the predictor's output before it."""
    backward: Tensor
    """(B, U, P), what the twin says from the labels behind it."""
    logits: Tensor
    """(B, U, V), the twin's, of that label."""


class Twin(nn.Module):
    """A second predictor, what it says as labels, and the map by which both are compared."""

    def __init__(self, predictor: Predictor, vocab_size: int) -> None:
        super().__init__()
        self.predictor = predictor
        self.output = nn.Linear(predictor.output_dim, vocab_size)
        self.map = nn.Linear(predictor.output_dim, predictor.output_dim)

    def forward(self, predicted: Tensor, targets: Tensor, lengths: Tensor) -> TwinOutput:
        """Of transcripts (B, U) int64 of lengths (B,), padded with labels, and outputs (B, U + 1, P)."""
        from_the_end = reverse_frames(targets[:, :, None], lengths)[:, :, 0]
        backward = reverse_frames(self.predictor.whole(from_the_end)[:, :-1], lengths)
        return TwinOutput(self.map(predicted[:, :-1]), backward, self.output(backward))
