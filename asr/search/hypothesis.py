"""What a search finds: tokens with their place in time and their probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Token(NamedTuple):
    """One emitted label."""

    id: int
    frame: int
    """Encoder frame of the emission, counted from the start of the stream."""
    end_frame: int
    """First encoder frame that is no longer part of it."""
    log_prob: float
    """Natural logarithm of its probability given what was emitted before it."""
    log_confidence: float | None = None
    """Natural logarithm of the confidence in it (asr.search.confidence); None: that is the probability."""

    @property
    def log_sure(self) -> float:
        """Natural logarithm of the confidence in it, before any temperature."""
        return self.log_prob if self.log_confidence is None else self.log_confidence


class Hypothesis(NamedTuple):
    """What may have been said."""

    tokens: list[Token]
    log_prob: float
    """Natural logarithm of its probability given the audio, over the alignments that were found."""
    fused: float
    """What scorers added."""

    @property
    def score(self) -> float:
        """What it is ranked by."""
        return self.log_prob + self.fused


def in_columns(said: Sequence[Sequence[int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels that streams have said, one of each at a time: (B,) bool whether there is one, (B,) int64 which.

    Where there is none it is some label, as a predictor or scorer may be asked for it in vain.
    """
    for labels in zip_longest(*said):
        there = torch.tensor([label is not None for label in labels], device=device)
        yield there, torch.tensor([1 if label is None else label for label in labels], device=device)


class SearchOutput(NamedTuple):
    """What a search step found."""

    tokens: list[list[Token]]
    """For each stream the tokens that this chunk added, in order."""
    state: Any
    truncated: list[int]
    """For each stream the number of frames where the bound on symbols per frame stopped the search."""


class Settled(NamedTuple):
    """What was decided."""

    tokens: list[list[Token]]
    """For each stream what became final."""
    state: Any


class Search(Protocol):
    """A search over encoder frames, for batches and for streams; offline is one large chunk."""

    def initial_state(self, batch: int, device: torch.device | None = None) -> Any:
        """State of `batch` streams that have heard nothing."""

    def __call__(self, encoded: Tensor, lengths: Tensor, state: Any) -> SearchOutput:
        """Search the next encoder frames (B, T', E), of which lengths (B,) are valid."""

    def flush(self, state: Any) -> list[list[Token]]:
        """Tokens that wait for their end, as the end of the stream would give them; the state stays."""

    def pending(self, state: Any) -> list[list[Token]]:
        """What is thought to have been said beyond what was given out; it may change."""

    def settle(self, state: Any) -> Settled:
        """Decide now: what is pending, as if the streams ended here, becomes final.

        What has no end yet (CTC's open run) goes on to wait.
        """

    def restart(self, state: Any, said: Sequence[Sequence[int]]) -> Any:
        """The state as if only the labels `said` of each stream had been said, while frames are counted on.

        What waits for its end goes on to wait: nothing is given twice, and nothing is lost.
        """

    def frames(self, state: Any) -> Tensor:
        """(B,) int64: frames searched so far."""
