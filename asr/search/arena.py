"""Texts of a beam search and the rows that belong to them, each computed once, when somebody asks for it.

What a label changes (predictor, scorers) is a row of tensors, and a function of the labels alone: hypotheses
that come to the same text, on whatever frame, share it. A text that is dropped before it is asked for costs
nothing. The rows of all streams lie in one arena, so that those which are missing are made together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr import state as states
from asr.search.moves import Moves

NOTHING = -torch.inf
"""The log-probability of a hypothesis that is not there."""
HASH_BASE = 0x5851F42D4C957F2D
"""Multiplier of the polynomial, modulo 2^64, that tells label sequences apart (Knuth's MMIX generator)."""
BUDGET = 64_000_000
"""Bytes of rows above which those that nobody needs any more are dropped."""
ROOM = 256
"""Rows for which there is room from the beginning."""

_TOP, _MASK = 1 << 63, (1 << 64) - 1


@dataclass(frozen=True)
class Rows:
    """What does not change while a hypothesis says nothing: one row per hypothesis."""

    predictor: Any
    projected: Tensor
    """(N, J) predictor output after the last label, projected for the joiner."""
    scorer: Any
    next: Tensor
    """(N, V) what the scorers add to each label if it comes next; minus infinity for blank."""
    hash: Tensor
    """(N,) int64 of all labels."""


@dataclass(slots=True, eq=False)
class Text:
    """Labels that a hypothesis of a stream has said; there is one of each as long as it lives."""

    hash: int
    fused: float
    """What the scorers added."""
    row: int = -1
    """Its place in the arena, if it has been made."""
    parent: Text | None = None
    """All labels but the last, until the row is made."""
    label: int = 0
    """The last one."""
    heard: dict[int, Heard] = field(default_factory=dict)
    """What may come next, by the label that is held."""


class Heard(NamedTuple):
    """What a text may do on some frames of the chunk, one after the other."""

    moves: Moves
    first: int
    """Frame, and the first that is not among them."""
    until: int
    base: int
    """The row of frame 0, if it were among them: that of frame t is t more."""


def longer(hash: int, label: int) -> int:
    """The hash (int64) of labels with one more, as tensors of int64 have it."""
    return ((hash * HASH_BASE + label + _TOP) & _MASK) - _TOP


class Parents(NamedTuple):
    """What the rows of texts with one more label follow from; see Rows."""

    predictor: Any
    scorer: Any
    hash: Tensor


class Arena:
    """The rows of texts; `say` makes rows from those of the parents and labels (N,)."""

    def __init__(self, rows: Rows, say: Callable[[Parents, Tensor], Rows]) -> None:
        self._say, self.size = say, len(rows.hash)
        per_row = max(1, states.bytes_per_stream(rows)) if self.size else 1
        self._most = max(BUDGET // per_row, 8 * self.size)
        self._take(states.map_tensors(lambda x: _with_room(x, min(ROOM, self._most)), rows))

    @property
    def full(self) -> bool:
        """Whether it is time to drop what nobody needs."""
        return self.size > self._most

    def make(self, texts: Iterable[Text]) -> None:
        """Make the rows of those that have none."""
        missing: list[Text] = []
        parents: list[int] = []
        for text in texts:
            if text.row < 0:
                assert text.parent is not None
                parents.append(text.parent.row)
                text.row, text.parent = self.size + len(missing), None
                missing.append(text)
        if not missing:
            return
        place, label = integers([parents, [text.label for text in missing]], self.rows.hash.device)
        known = Parents(self.rows.predictor, self.rows.scorer, self.rows.hash)
        self._add(self._say(states.select(known, place), label))

    def select(self, rows: Sequence[int]) -> Rows:
        """The rows with these places."""
        return states.select(self.rows, integers([rows], self.rows.hash.device)[0])

    def keep(self, texts: Sequence[Text]) -> None:
        """Make the rows of `texts` and drop all others."""
        self.make(texts)
        kept = list({id(text): text for text in texts}.values())
        rows = self.select([text.row for text in kept])
        for row, text in enumerate(kept):
            text.row = row
        self.size = len(kept)
        self._take(states.map_tensors(lambda x: _with_room(x, ROOM), rows))

    def _add(self, rows: Rows) -> None:
        end = self.size + len(rows.hash)
        if end > self._room:
            self._take(states.map_tensors(lambda x: _with_room(x, max(end, self._room)), self.rows))
        for leaf, new in zip(self._leaves, states.leaves(rows), strict=True):
            leaf.narrow(0, self.size, end - self.size).copy_(new)
        self.size = end

    def _take(self, rows: Rows) -> None:
        self.rows, self._leaves, self._room = rows, states.leaves(rows), len(rows.hash)


def integers(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(R, N) int64; faster than torch reads lists."""
    return torch.from_numpy(np.array(rows, dtype=np.int64)).to(device)


def _with_room(x: Tensor, more: int) -> Tensor:
    """A copy with further rows (N + more, ...), which hold anything."""
    return torch.cat((x, x.new_empty(more, *x.shape[1:])))
