"""Scorers joined to one: their weighted sum, and a reward for every label.

    score(label) = sum_i weight_i * score_i(label) + reward

A weight below 0 takes something off again, as the internal language model of the transducer is (density
ratio, McDermott et al. 2019; ILME, Meng et al. 2021; LODR, Zheng et al. 2022). A label that a scorer with a
weight above 0 forbids is forbidden; one with a weight below 0 says nothing of what it forbids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor

from asr import state as states
from asr.errors import ConfigError
from asr.lms.base import Scorer

S = TypeVar("S")


class Weighted(NamedTuple):
    """A scorer and how much it counts."""

    scorer: Scorer
    weight: float = 1.0


class StreamScorer(Scorer, Protocol):
    """A scorer to which streams bring something of their own, by number: phrases that each listens for."""

    @property
    def idle(self) -> bool:
        """Whether it adds nothing, to no hypothesis."""

    def states_for(self, lists: Sequence[int], device: torch.device | None = None) -> Any:
        """State of hypotheses that have said nothing; what each of them brings."""

    def renewed(self, state: Any) -> Any:
        """State of hypotheses that bring the same and have said nothing."""


@dataclass(frozen=True)
class FusionState:
    """The states of the scorers, in order."""

    parts: tuple[Any, ...]
    rows: Tensor
    """(N, 0): how many rows there are, where there is no scorer."""


class Fusion:
    """A Scorer made of others; see the module docstring."""

    def __init__(self, vocab_size: int, parts: Sequence[Weighted] = (), reward: float = 0.0) -> None:
        """Raises ConfigError if a scorer has another vocabulary or a weight is 0 or not finite."""
        self.vocab_size, self.parts, self.reward = vocab_size, tuple(parts), reward
        for scorer, weight in self.parts:
            name = type(scorer).__name__
            if scorer.vocab_size != vocab_size:
                raise ConfigError(
                    f"{name}: expected the {vocab_size} labels of the recogniser, found {scorer.vocab_size}; "
                    "make the scorer with the recogniser's tokenizer"
                )
            if weight == 0 or not math.isfinite(weight):
                raise ConfigError(f"{name}: expected a finite weight other than 0, found {weight}")

    def initial_state(self, batch: int, device: torch.device | None = None) -> FusionState:
        """State of `batch` hypotheses that have said nothing."""
        parts = tuple(scorer.initial_state(batch, device) for scorer, _ in self.parts)
        return FusionState(parts, torch.zeros(batch, 0, device=device))

    def states_for(self, lists: Sequence[int], device: torch.device | None = None) -> FusionState:
        """State of hypotheses that have said nothing; the list of phrases that each listens for."""
        count = len(lists)
        parts = tuple(
            scorer.states_for(lists, device) if _has_streams(scorer) else scorer.initial_state(count, device)
            for scorer, _ in self.parts
        )
        return FusionState(parts, torch.zeros(count, 0, device=device))

    def renewed(self, state: FusionState) -> FusionState:
        """State of the same streams' hypotheses, when they have said nothing."""
        parts = zip(self.parts, state.parts, strict=True)
        return FusionState(tuple(renewed(scorer, part) for (scorer, _), part in parts), state.rows)

    def score(self, state: FusionState) -> Tensor:
        """(N, V) weighted sum, and 0 for blank."""
        rows = state.rows
        total = torch.full((rows.shape[0], self.vocab_size), self.reward, device=rows.device)
        total[:, 0] = 0
        for (scorer, weight), part in zip(self.parts, state.parts, strict=True):
            if _has_streams(scorer) and scorer.idle:
                continue
            total = torch.add(total, _bounded(scorer.score(part), weight), alpha=weight)
        return total

    def advance(self, state: FusionState, labels: Tensor) -> FusionState:
        """State after labels (N,)."""
        moved = zip(self.parts, state.parts, strict=True)
        return FusionState(tuple(scorer.advance(part, labels) for (scorer, _), part in moved), state.rows)

    def end(self, state: FusionState) -> Tensor:
        """(N,) weighted sum of the scores of saying nothing more."""
        total = torch.zeros(state.rows.shape[0], device=state.rows.device)
        for (scorer, weight), part in zip(self.parts, state.parts, strict=True):
            total = torch.add(total, _bounded(scorer.end(part), weight), alpha=weight)
        return total


def renewed(scorer: Scorer, state: Any) -> Any:
    """State of the hypotheses of `state` as if they had said nothing; what streams brought stays."""
    if _has_streams(scorer):
        return scorer.renewed(state)
    first = states.leaves(state)[0]
    return scorer.initial_state(first.shape[0], first.device)


def repeated(state: S, width: int) -> S:
    """(B, ...) to (B*K, ...): every stream's state for each of its hypotheses."""
    return states.map_tensors(lambda x: x.repeat_interleave(width, dim=0), state)


def first_of(rows: S) -> S:
    """(B, K, ...) to (B, ...): the state of the first hypothesis of each stream."""
    return states.map_tensors(lambda x: x[:, 0].contiguous(), rows)


def _has_streams(scorer: Scorer) -> TypeGuard[StreamScorer]:
    return hasattr(scorer, "renewed")


def _bounded(scores: Tensor, weight: float) -> Tensor:
    """What a scorer forbids it knows nothing of: where it is taken off, that is no merit."""
    return scores if weight > 0 else scores.masked_fill(scores == -math.inf, 0.0)
