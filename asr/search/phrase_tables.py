"""What labels do at the nodes of phrase automata, in tensors: whole tables, or few exceptions to look up.

Where nodes times labels are few, gains and next nodes are tables. Otherwise each label is looked up among the
few that do something special at a node, and does what it does at the root if it is not there. Both give the
same.

Lists of phrases come and go while hypotheses carry numbers of nodes about. So a node keeps its number: those
of a list that comes are behind all that there ever were, those of one that goes are not given again, and
where there are holes a number is looked up to find its place in the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr import state as states
from asr.search.automaton import Automaton


@dataclass(frozen=True)
class Table:
    """Every label at every node."""

    gain: Tensor
    """(K, V) float32"""
    next: Tensor
    """(K, V) int32"""

    def score(self, node: Tensor) -> Tensor:
        """(N, V) float32: what each label adds at nodes (N,)."""
        return self.gain[node]

    def advance(self, node: Tensor, label: Tensor) -> Tensor:
        """(N,) int64 nodes after labels (N,)."""
        return self.next[node, label].long()


@dataclass(frozen=True)
class Lookup:
    """What labels do at the root of their list, and what is different at some nodes: asr.search.automaton."""

    potential: Tensor
    """(K,) float32"""
    complete: Tensor
    """(K,) float32"""
    list_of: Tensor
    """(K,) int64"""
    root_gain: Tensor
    """(lists, V) float32"""
    root_next: Tensor
    """(lists, V) int64"""
    begins_word: Tensor
    """(V,) float32: 1 for labels that begin with '▁'."""
    first: Tensor
    """(K + 1,) int64: first exception of each node."""
    key: Tensor
    """(X,) int64: node * V + label of the exceptions, sorted."""
    gain: Tensor
    """(X,) float32"""
    next: Tensor
    """(X,) int64"""

    def score(self, node: Tensor) -> Tensor:
        """(N, V) float32: what each label adds at nodes (N,)."""
        vocab = self.root_gain.shape[1]
        gains = self.root_gain[self.list_of[node]] - self.potential[node, None]
        gains.addcmul_(self.complete[node, None], self.begins_word)
        gains[:, 0] = 0.0
        counts = self.first[node + 1] - self.first[node]
        row = torch.repeat_interleave(counts)
        within = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        exception = self.first[node][row] + within
        place = row * vocab + self.key[exception] - node[row] * vocab
        gains.view(-1).index_add_(0, place, self.gain[exception])
        return gains

    def advance(self, node: Tensor, label: Tensor) -> Tensor:
        """(N,) int64 nodes after labels (N,)."""
        after = self.root_next[self.list_of[node], label]
        if len(self.key):
            key = node * self.root_gain.shape[1] + label
            place = torch.searchsorted(self.key, key).clamp(max=len(self.key) - 1)
            after = torch.where(self.key[place] == key, self.next[place], after)
        return torch.where(label == 0, node, after)


class Listed(NamedTuple):
    """A list of phrases among others."""

    first: int
    """The number of its automaton's first node."""
    automaton: Automaton
    characters: int
    """Of its phrases."""

    @property
    def initial(self) -> int:
        """Node of a text that has not begun."""
        return self.first + self.automaton.initial


@dataclass(frozen=True)
class Lists:
    """Lists of phrases in tensors, L of them."""

    actions: Lookup | Table
    end: Tensor
    """(K,) float32: what the end of a text brings."""
    first: Tensor
    """(L,) int64: number of the first node of each list, ascending."""
    initial: Tensor
    """(L,) int64: number of each list's node of a text that has not begun."""
    shift: Tensor | None
    """(L,) int64: by how much numbers are above places; None where they are the same."""

    def score(self, node: Tensor) -> Tensor:
        """(N, V) float32: what each label adds at nodes (N,) int64."""
        return self.actions.score(self._place(node)[0])

    def advance(self, node: Tensor, label: Tensor) -> Tensor:
        """(N,) nodes after labels (N,) int64."""
        place, shift = self._place(node)
        after = self.actions.advance(place, label)
        return after if shift is None else after + shift

    def ends(self, node: Tensor) -> Tensor:
        """(N,) float32: what the end adds at nodes."""
        return self.end[self._place(node)[0]]

    def renewed(self, node: Tensor) -> Tensor:
        """(N,) the node of a text that has not begun, of the list of each."""
        return self.initial[self._list(node)]

    def _list(self, node: Tensor) -> Tensor:
        return torch.searchsorted(self.first, node, right=True) - 1

    def _place(self, node: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.shift is None:
            return node, None
        shift = self.shift[self._list(node)]
        return node - shift, shift


def lists_of(
    listed: Mapping[int, Listed], begins_word: Sequence[bool], table_entries: int, device: torch.device
) -> Lists:
    """The tensors of lists, in the order of their nodes, on a device."""
    automata = [each.automaton for each in listed.values()]
    lookup = join(automata, begins_word)
    entries = len(lookup.potential) * len(begins_word)
    first = torch.tensor([each.first for each in listed.values()], dtype=torch.int64)
    shift = first - torch.from_numpy(offsets(automata))
    made = Lists(
        tabulate(lookup) if entries <= table_entries else lookup,
        lookup.complete - lookup.potential,
        first,
        torch.tensor([each.initial for each in listed.values()], dtype=torch.int64),
        shift if bool(shift.any()) else None,
    )
    return states.map_tensors(lambda tensor: tensor.to(device), made)


def offsets(automata: Sequence[Automaton]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of the first node of each automaton among the nodes of all."""
    sizes = [len(automaton.potential) for automaton in automata]
    return np.cumsum([0, *sizes[:-1]], dtype=np.int64)


def join(automata: Sequence[Automaton], begins_word: Sequence[bool]) -> Lookup:
    """The automata of all lists as one."""
    starts, vocab = offsets(automata), len(begins_word)
    pairs = list(zip(automata, starts, strict=True))
    sizes = [len(automaton.potential) for automaton in automata]

    def floats(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    key = np.concatenate([(a.node + offset) * vocab + a.label for a, offset in pairs])
    return Lookup(
        potential=floats([a.potential for a in automata]),
        complete=floats([a.complete for a in automata]),
        list_of=torch.from_numpy(np.repeat(np.arange(len(automata)), sizes)),
        root_gain=floats([a.root_gain[None] for a in automata]),
        root_next=torch.from_numpy(np.stack([a.root_next + offset for a, offset in pairs])),
        begins_word=torch.tensor(begins_word, dtype=torch.float32),
        first=torch.from_numpy(np.searchsorted(key, vocab * np.arange(sum(sizes) + 1))),
        key=torch.from_numpy(key),
        gain=floats([a.gain for a in automata]),
        next=torch.from_numpy(np.concatenate([a.next + offset for a, offset in pairs])),
    )


def tabulate(lookup: Lookup) -> Table:
    """The same as a table."""
    nodes = torch.arange(len(lookup.potential))
    after = lookup.root_next.int()[lookup.list_of]
    after.view(-1)[lookup.key] = lookup.next.int()
    after[:, 0] = nodes.int()
    return Table(lookup.score(nodes), after)
