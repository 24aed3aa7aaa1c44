"""Where labels lead in a lexicon, for hypotheses by the batch: as a table, or looked up among the ways on.

A table of nodes times labels takes 8 bytes an entry and a fifth of the time; of letters even large lexicons
have few enough. Both give the same.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asr.lms.lexicon import Lexicon

TABLE_ENTRIES = 16_000_000
"""Nodes times labels up to which there is a table, 128 MB."""


class Ways(Protocol):
    """Of nodes (N,) int64."""

    def worth(self, node: Tensor) -> Tensor:
        """(N, V) float32, new: the look-ahead of where a label leads; minus infinity where it is lost."""

    def follow(self, node: Tensor, labels: Tensor) -> Tensor:
        """(N,) int64: where labels (N,) lead."""


class Table(NamedTuple):
    """All of them."""

    children: Tensor
    """(M * V,) int32."""
    worths: Tensor
    """(M, V) float32."""

    def worth(self, node: Tensor) -> Tensor:
        """See Ways."""
        return self.worths.index_select(0, node)

    def follow(self, node: Tensor, labels: Tensor) -> Tensor:
        """See Ways."""
        return self.children.index_select(0, node * self.worths.shape[1] + labels).long()


class Listed(NamedTuple):
    """Those that lead on, sorted; start labels lead from all nodes to the same."""

    keys: Tensor
    children: Tensor
    first: Tensor
    label: Tensor
    """(E,) int64."""
    ahead: Tensor
    """(E,) float32 of the child."""
    start_node: Tensor
    is_start: Tensor
    """(V,) bool."""

    def worth(self, node: Tensor) -> Tensor:
        """See Ways."""
        size = len(self.start_node)
        scores = torch.full((len(node), size), -torch.inf, device=node.device)
        first = self.first.index_select(0, node)
        count = self.first.index_select(0, node + 1) - first
        row = torch.repeat_interleave(count)
        way = (first - count.cumsum(0) + count).index_select(0, row)
        way = way + torch.arange(len(row), device=row.device)
        place = row * size + self.label.index_select(0, way)
        scores.view(-1).scatter_(0, place, self.ahead.index_select(0, way))
        return scores

    def follow(self, node: Tensor, labels: Tensor) -> Tensor:
        """See Ways."""
        wanted = node * len(self.start_node) + labels
        way = torch.searchsorted(self.keys, wanted)
        there = self.keys.index_select(0, way) == wanted
        starts = self.start_node.index_select(0, labels)
        inside = torch.where(there, self.children.index_select(0, way), len(self.first) - 2)
        return torch.where(self.is_start.index_select(0, labels), starts, inside)


def make_ways(lexicon: Lexicon, table_entries: int = TABLE_ENTRIES) -> Ways:
    """The ways of a lexicon, as a table of that many entries at most."""
    nodes, size, lost = len(lexicon.words), len(lexicon.start_node), lexicon.lost
    if nodes * size > table_entries:
        ahead = lexicon.ahead[lexicon.children]
        way = lexicon.keys, lexicon.children, lexicon.first, lexicon.keys % size, ahead
        return Listed(*way, lexicon.start_node, lexicon.is_start)
    device = lexicon.start_node.device
    children = torch.full((nodes * size,), lost, dtype=torch.int32, device=device)
    worths = torch.full((nodes * size,), -torch.inf, device=device)
    keys, inside = lexicon.keys[:-1], lexicon.children[:-1]  # the last is none
    children[keys], worths[keys] = inside.int(), lexicon.ahead[inside]
    table = children.view(nodes, size)
    table[:, lexicon.starts] = lexicon.start_node[lexicon.starts].int()
    return Table(children, worths.view(nodes, size))
