"""From the scores of symbols at nodes to the scores of moves between states, and the way back.

A lattice has states s beside its frames: s = u, or, where labels may be held, s = 2u - c with c = 1 if the
last symbol was a label. Every arc of a topology becomes a move (frames, states) from a state; arcs from
different kinds of states that move equally far share a place, so CTC's five arcs make three moves. What a
move may not do (leave the lattice, put out an equal label twice, stray from a given alignment) has score
log 0, so the recursions in cpu.py and gpu.py know nothing of topologies.

The functions take torch tensors, on any device, as well as numpy arrays, whose small operations cost less
and which no thread waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels.lattice.topology import BLANK, LABEL, LABEL_SYMBOL, REPEAT, RNNT, Arc, Topology

# Stands for log 0: finite, so that no step computes inf - inf, and far beyond any real log-probability.
LOG_ZERO = -1e30

Criterion = Literal["sum", "max"]
# (frames, states) of each move
Moves: TypeAlias = tuple[tuple[int, int], ...]
# A torch tensor or a numpy array, and M arrays (B, T, S), or one (M, B, T, S), with something of each move.
Array: TypeAlias = Any
Moved: TypeAlias = Sequence[Any] | Array


class Alignment(NamedTuple):
    """Where labels are emitted, and how probable that path is."""

    frames: Tensor
    """(B, U) int64: frame on which each label is put out; -1 beyond the labels and where no path exists."""
    end_frames: Tensor
    """(B, U) int64: the first frame that no longer belongs to the label; -1 likewise."""
    score: Tensor
    """(B,): log-probability of the path; -inf where none exists."""


class Graph(NamedTuple):
    """What a recursion knows of a batch of lattices."""

    moves: Moves
    frames: list[int]
    states: list[int]
    """Number of states of each utterance."""
    finals: int
    """How many of the last states a path may end in."""


class Band(NamedTuple):
    """Paths to keep: those whose labels lie within `width` frames of where they are expected."""

    frames: Tensor
    """(B, U) int64: frame of each label, on the CPU."""
    end_frames: Tensor | None
    """(B, U) int64: frame after each label, for topologies that hold labels; None leaves them free."""
    width: int


@dataclass(frozen=True)
class Rules:
    """Which paths count, and how."""

    topology: Topology = RNNT
    criterion: Criterion = "sum"
    fastemit: float = 0.0
    delay_penalty: float = 0.0
    band: Band | None = None


@dataclass(frozen=True)
class Lattice:
    """The lattices of a batch: everything but the scores."""

    targets: Tensor
    """(B, U) int64 on the CPU; blank beyond the labels."""
    frames: list[int]
    labels: list[int]
    rules: Rules = Rules()

    @property
    def graph(self) -> Graph:
        """Moves between states instead of arcs between nodes."""
        held = self.rules.topology.repeats
        states = [2 * U + 1 if held else U + 1 for U in self.labels]
        return Graph(self.moves, self.frames, states, finals=2 if held else 1)

    @property
    def moves(self) -> Moves:
        """(frames, states) of each move."""
        return tuple(dict.fromkeys(slot.move for slot in self.slots()))

    def states(self, width: int) -> int:
        """Number of states for label counts below `width`."""
        return 2 * width - 1 if self.rules.topology.repeats else width

    def part(self, utterances: list[int]) -> Lattice:
        """The lattices of some of the utterances."""
        rules, band = self.rules, self.rules.band
        if band is not None:
            ends = None if band.end_frames is None else band.end_frames[utterances]
            rules = replace(rules, band=Band(band.frames[utterances], ends, band.width))
        frames, labels = ([x[b] for b in utterances] for x in (self.frames, self.labels))
        return Lattice(self.targets[utterances], frames, labels, rules)

    def slots(self) -> Iterator[Slot]:
        """Every arc from every kind of state."""
        copies = (False, True) if self.rules.topology.repeats else (None,)
        for arc in self.rules.topology.arcs:
            yield from (Slot(arc, held) for held in copies if held is not False or arc.kind != REPEAT)


class Slot(NamedTuple):
    """An arc from one kind of state."""

    arc: Arc
    held: bool | None
    """Whether it leaves states whose last symbol was a label; None where that makes no difference."""

    @property
    def move(self) -> tuple[int, int]:
        """Frames and states it moves."""
        if self.held is None:
            return self.arc.frames, self.arc.labels
        into_label = self.arc.kind != BLANK
        return self.arc.frames, 2 * self.arc.labels - into_label + self.held

    @property
    def states(self) -> slice:
        """The states it leaves, of all states."""
        return slice(None) if self.held is None else slice(1 if self.held else 0, None, 2)

    @property
    def nodes(self) -> slice:
        """The label counts u of those states."""
        return slice(1, None) if self.held else slice(None)


def fill_arcs(arcs: Moved, scores: Array, lattice: Lattice, *, linear: bool = False) -> None:
    """Write the score of every move m from every state into arcs[m] (B, T, S), which hold the score of none.

    `scores` (B, T, U+1, K) are `adjusted` log-probabilities of the symbols, durations included, or, if
    `linear`, probabilities. A move that does not exist has LOG_ZERO or 0.
    """
    where = torch.where if isinstance(scores, Tensor) else np.where
    places, moves = _Places.of(scores, lattice), lattice.moves
    for slot in lattice.slots():
        arc = slot.arc
        score = scores[:, :, slot.nodes, arc.symbol]
        if arc.duration is not None:
            duration = scores[:, :, slot.nodes, arc.duration]
            score = score * duration if linear else score + duration
        exists = _exists(slot, lattice, places)
        score = where(exists, score, 0.0) if linear else where(exists, score.clip(min=LOG_ZERO), LOG_ZERO)
        arcs[moves.index(slot.move)][:, :, slot.states] = score


def arcs_of(scores: Array, lattice: Lattice) -> Array:
    """Arc scores (M, B, T, S) from `adjusted` scores (B, T, U+1, K)."""
    shape = (len(lattice.moves), *scores.shape[:2], lattice.states(scores.shape[2]))
    arcs = scores.new_empty(shape) if isinstance(scores, Tensor) else np.empty(shape)
    arcs[:] = LOG_ZERO
    fill_arcs(arcs, scores, lattice)
    return arcs


def adjusted(scores: Array, lattice: Lattice) -> Array:
    """The scores (B, T, U+1, K) with what the rules add to those of symbols."""
    rules, columns = lattice.rules, scores.shape[-1] - lattice.rules.topology.durations
    if not (rules.topology.sigma or rules.delay_penalty):
        return scores
    scores = scores + 0.0
    scores[..., :columns] -= rules.topology.sigma
    if rules.delay_penalty:
        t, _, T_b, _ = _Places.of(scores, lattice)
        twice = T_b - 1 - 2 * t
        twice = twice.to(scores.dtype) if isinstance(twice, Tensor) else twice.astype(scores.dtype)
        scores[..., LABEL_SYMBOL] += rules.delay_penalty / 2 * twice
    return scores


def add_occupation(occupation: Moved, gradient: Array, lattice: Lattice) -> None:
    """Add to the gradient (B, T, U+1, K) of the losses at the scores, from the occupation of the moves."""
    moves = lattice.moves
    for slot in lattice.slots():
        arc = slot.arc
        own = occupation[moves.index(slot.move)][:, :, slot.states]
        if arc.kind == LABEL and lattice.rules.fastemit:
            own = own * (1 + lattice.rules.fastemit)
        gradient[:, :, slot.nodes, arc.symbol] -= own
        if arc.duration is not None:
            gradient[:, :, slot.nodes, arc.duration] -= own


def occupation_to_alignment(occupation: Tensor, score: Tensor, lattice: Lattice) -> Alignment:
    """Where the labels are on the best path, from its occupation (M, B, T, S) of zeros and ones."""
    moves = lattice.moves
    (_, B, T, _), U = occupation.shape, lattice.targets.shape[1]
    emitted = occupation.new_zeros((B, T, U))
    length = occupation.new_zeros((B, U))
    for slot in lattice.slots():
        own = occupation[moves.index(slot.move)][:, :, slot.states]
        if slot.arc.kind == LABEL:
            own = own[:, :, :-1]  # none is left to put out at u = U
            emitted[:, :, slot.nodes] += own
            length[:, slot.nodes] += slot.arc.frames * own.sum(dim=1)
        elif slot.arc.kind == REPEAT:
            length += slot.arc.frames * own.sum(dim=1)
    t = torch.arange(T, dtype=occupation.dtype, device=occupation.device)[:, None]
    found = emitted.sum(dim=1) > 0
    frames = (t * emitted).sum(dim=1).long()
    # A label that consumes no frame still belongs to the one that it was emitted on.
    end_frames = frames + length.long().clamp(min=1)
    return Alignment(frames.masked_fill(~found, -1), end_frames.masked_fill(~found, -1), score)


class _Places(NamedTuple):
    """The coordinates of nodes, to compare."""

    t: Array  # (1, T, 1)
    u: Array  # (1, 1, U+1)
    frames: Array  # (B, 1, 1)
    labels: Array  # (B, 1, 1)

    @staticmethod
    def of(scores: Array, lattice: Lattice) -> _Places:
        """As arrays like the scores (B, T, U+1, K)."""
        like = _like(scores)
        t, u = (like(np.arange(n)) for n in scores.shape[1:3])
        frames, labels = (like(x)[:, None, None] for x in (lattice.frames, lattice.labels))
        return _Places(t[None, :, None], u[None, None], frames, labels)


def _like(array: Array) -> Callable[[Any], Array]:
    """Makes arrays of the same kind on the same device."""
    return partial(torch.as_tensor, device=array.device) if isinstance(array, Tensor) else np.asarray


def _exists(slot: Slot, lattice: Lattice, places: _Places) -> Array:
    """(B, T, nodes) whether the move is allowed there."""
    arc, topology, band = slot.arc, lattice.rules.topology, lattice.rules.band
    like = _like(places.t)
    t, T_b, U_b = places.t, places.frames, places.labels
    u = places.u[:, :, slot.nodes]
    within = t + max(arc.frames, 1) <= T_b
    if arc.kind == LABEL and topology.ends_with_blank:
        within = within & (t + arc.frames < T_b)
    exists = within & (u + arc.labels <= U_b)
    if arc.kind == LABEL and slot.held:
        targets = lattice.targets
        exists = exists & like(_before_end(targets[:, 1:] != targets[:, :-1], True))[:, None]
    if band is not None and arc.kind == LABEL:
        frame = like(_before_end(band.frames, 0))[:, None, slot.nodes]
        exists = exists & (frame >= 0) & (abs(t - frame) <= band.width)
    if band is not None and band.end_frames is not None and slot.held:
        end = like(band.end_frames)[:, None]  # of the label that was last
        exists = exists & (t < end + band.width if arc.kind == REPEAT else t >= end - band.width)
    return exists


def _before_end(values: Tensor, end: int | bool) -> Tensor:
    """(B, n) with a last column added."""
    return functional.pad(values, (0, 1), value=end)
