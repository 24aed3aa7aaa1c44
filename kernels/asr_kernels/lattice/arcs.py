"""From the scores of symbols at nodes to the scores of moves between states, and the way back.

A lattice has states s beside its frames: s = u, or, where labels may be held, s = 2u - c with c = 1 if the
last symbol was a label. Every arc of a topology becomes a move (frames, states) from a state; arcs from
different kinds of states that move equally far share a place, so CTC's five arcs make three moves. What a
move may not do (leave the lattice, put out an equal label twice, stray from a given alignment) has score
log 0, so the recursions in cpu.py and gpu.py know nothing of topologies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels.lattice.topology import BLANK, LABEL, REPEAT, RNNT, Arc, Topology

# Stands for log 0: finite, so that no step computes inf - inf, and far beyond any real log-probability.
LOG_ZERO = -1e30

Criterion = Literal["sum", "max"]
# (frames, states) of each move
Moves: TypeAlias = tuple[tuple[int, int], ...]


class Alignment(NamedTuple):
    """Where labels are emitted, and how probable that path is."""

    frames: Tensor
    """(B, U) int64: frame on which each label is put out; -1 beyond the labels and where no path exists."""
    end_frames: Tensor
    """(B, U) int64: the first frame that no longer belongs to the label; -1 likewise."""
    score: Tensor
    """(B,): log-probability of the path; -inf where none exists."""


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
    def states(self) -> list[int]:
        """Number of states of each utterance."""
        return [2 * U + 1 if self.rules.topology.repeats else U + 1 for U in self.labels]

    @property
    def finals(self) -> int:
        """How many of the last states a path may end in."""
        return 2 if self.rules.topology.repeats else 1

    @property
    def moves(self) -> Moves:
        """(frames, states) of each move, in the order of the arcs' last dimension."""
        return tuple(dict.fromkeys(slot.move for slot in self.slots()))

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


def scores_to_arcs(scores: Tensor, lattice: Lattice) -> Tensor:
    """Arc scores (B, T, S, M) from log-probabilities (B, T, U+1, K) of the symbols, durations included."""
    B, T, width, _ = scores.shape
    moves, rules = lattice.moves, lattice.rules
    S = 2 * width - 1 if rules.topology.repeats else width
    # What belongs to one move is contiguous.
    arcs = scores.new_full((len(moves), B, T, S), LOG_ZERO).permute(1, 2, 3, 0)
    for slot in lattice.slots():
        arc, move = slot.arc, moves.index(slot.move)
        score = scores[:, :, slot.nodes, arc.symbol]
        if arc.duration is not None:
            score = score + scores[:, :, slot.nodes, arc.duration]
        if rules.topology.sigma:
            score = score - rules.topology.sigma
        if arc.kind == LABEL and rules.delay_penalty:
            score = score + _delay_reward(lattice, T, score)
        exists = _exists(slot, lattice, T, score.device)
        arcs[:, :, slot.states, move] = torch.where(exists, score.clamp(min=LOG_ZERO), LOG_ZERO)
    return arcs


def occupation_to_gradient(occupation: Tensor, scores: Tensor, lattice: Lattice) -> Tensor:
    """Gradient (B, T, U+1, K) of the losses at `scores`, from the occupation (B, T, S, M) of the moves."""
    moves = lattice.moves
    grad = torch.zeros_like(scores)
    for slot in lattice.slots():
        arc = slot.arc
        own = occupation[:, :, slot.states, moves.index(slot.move)]
        factor = -1 - lattice.rules.fastemit if arc.kind == LABEL else -1.0
        grad[:, :, slot.nodes, arc.symbol].add_(own, alpha=factor)
        if arc.duration is not None:
            grad[:, :, slot.nodes, arc.duration].add_(own, alpha=factor)
    return grad


def occupation_to_alignment(occupation: Tensor, score: Tensor, lattice: Lattice) -> Alignment:
    """Where the labels are on the best path, from its occupation (B, T, S, M) of zeros and ones."""
    moves = lattice.moves
    B, T, U = *occupation.shape[:2], lattice.targets.shape[1]
    emitted = occupation.new_zeros((B, T, U))
    length = occupation.new_zeros((B, U))
    for slot in lattice.slots():
        own = occupation[:, :, slot.states, moves.index(slot.move)]
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


def _exists(slot: Slot, lattice: Lattice, T: int, device: torch.device) -> Tensor:
    """(B, T, nodes) whether the move is allowed there."""
    arc, topology, band = slot.arc, lattice.rules.topology, lattice.rules.band
    targets = lattice.targets.to(device)
    t = torch.arange(T, device=device)[None, :, None]
    u = torch.arange(targets.shape[1] + 1, device=device)[None, None, slot.nodes]
    T_b, U_b = (torch.tensor(x, device=device)[:, None, None] for x in (lattice.frames, lattice.labels))
    within = t + max(arc.frames, 1) <= T_b
    if arc.kind == LABEL and topology.ends_with_blank:
        within = within & (t + arc.frames < T_b)
    exists = within & (u + arc.labels <= U_b)
    if arc.kind == LABEL and slot.held:
        again = functional.pad(targets[:, 1:] == targets[:, :-1], (0, 1))
        exists = exists & ~again[:, None]
    if band is not None and arc.kind == LABEL:
        frame = functional.pad(band.frames.to(device), (0, 1))[:, None, slot.nodes]
        exists = exists & (frame >= 0) & ((t - frame).abs() <= band.width)
    if band is not None and band.end_frames is not None and slot.held:
        end = band.end_frames.to(device)[:, None]  # of the label that was last
        exists = exists & (t < end + band.width if arc.kind == REPEAT else t >= end - band.width)
    return exists


def _delay_reward(lattice: Lattice, T: int, like: Tensor) -> Tensor:
    """(B, T, 1): penalty ((T_b - 1)/2 - t), in the dtype and on the device of `like`."""
    centre = (torch.tensor(lattice.frames).to(like) - 1) / 2
    t = torch.arange(T).to(like)
    return lattice.rules.delay_penalty * (centre[:, None] - t)[:, :, None]
