"""The Scorer contract: what is added to the score of a hypothesis when a label extends it.

Language models, phrase lists and the internal language model that is taken off again are all scorers, so a
search knows one thing only and any of them combine (asr.search.fusion).

A scorer speaks the labels of the model that it is fused with: ids 0..V-1, of which 0 is blank and never said.
Its state is explicit and batch-first, one row per hypothesis, and may be stacked, selected and forked by
`asr.state`; nothing about a hypothesis is kept on the scorer. Scores are natural logarithms, float32; minus
infinity forbids a label. A row must score alike whatever rows are beside it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """Scores of the next label, given the labels so far."""

    vocab_size: int
    """V, blank included."""

    def initial_state(self, batch: int, device: torch.device | None = None) -> Any:
        """State of `batch` hypotheses that have said nothing."""

    def score(self, state: Any) -> Tensor:
        """(N, V) score of every label if it came next; the column of blank is 0.

        Cheap: where a network has to be asked, `advance` has asked it.
        """

    def advance(self, state: Any, labels: Tensor) -> Any:
        """State after labels (N,) int64, one of each hypothesis, none of them blank."""

    def end(self, state: Any) -> Tensor:
        """(N,) score of saying nothing more."""
