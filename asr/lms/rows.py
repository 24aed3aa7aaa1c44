"""All words of a row: what an n-gram model says of every label behind each of many contexts.

For a context h and every label v, the n-gram that decides is the one of v from h or from the first context
that backing off from h leads to and that has one. Edges of longer contexts have larger numbers (see
`asr.lms.ngram`), so the deciding one is the largest among the edges of the whole chain: the edges of all
chains, laid end to end, are reduced by their maximum into a table of (N, V).

Most of these edges are those of the same few short contexts. The rows of the contexts with most edges are
therefore worked out once, as far as `MAX_TABLE_BYTES` go, and a chain ends at the first such context; a model
of letters often fits wholly and a row is then one look-up. What is left of the chains is of a size that
depends on the contexts; a GPU is waited for to tell it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr.lms.ngram import NgramModel

MAX_TABLE_BYTES = 1 << 26
"""Memory of the rows that are worked out once."""

_CONTEXTS_AT_ONCE = 4096


class Rows:
    """Rows of a model for V labels; on the device of the model."""

    def __init__(self, model: NgramModel, words: Tensor, table_bytes: int = MAX_TABLE_BYTES) -> None:
        """`words` (V,) int64: the word of the model that each label is; several may be one."""
        self.model, words = model, words.to(model.keys.device)
        used, self._column_of_label = torch.unique(words, return_inverse=True)
        size, contexts = len(model.words), len(model.suffix)
        column = torch.full((size,), len(used), device=words.device)  # the last: words that are no label
        column[used] = torch.arange(len(used), device=words.device)
        self._column = column[model.keys % size]
        limits = torch.arange(contexts + 1, device=words.device) * size
        self._first = torch.searchsorted(model.keys, limits)
        self._count = self._first.diff()
        self._count[0] = 0  # what it has is in the table
        self._table = torch.cat([used, used.new_zeros(1)])[None].int()
        self._row = torch.zeros(contexts, dtype=torch.int64, device=words.device)
        self._rounds = model.order - 1
        self._tabulate(table_bytes // (4 * self._table.shape[1]))

    def log_prob(self, context: Tensor) -> Tensor:
        """(N, V) float32 natural logarithms of the probability of every label behind contexts (N,) int64."""
        scores = self.model.scores[self._deciding(context)].index_select(1, self._column_of_label)
        return scores + self.model.chain.index_select(0, context)[:, None]

    def _deciding(self, context: Tensor) -> Tensor:
        """(N, columns) edges of contexts (N,)."""
        best = self._table.index_select(0, self._row.index_select(0, context)).long()
        if not self._rounds:
            return best
        chain = [context]
        for _ in range(self._rounds - 1):
            chain.append(self.model.suffix.index_select(0, chain[-1]).long())
        nodes = torch.cat(chain)
        count = self._count.index_select(0, nodes)
        owner = torch.repeat_interleave(count)  # of every edge, numbered through all nodes
        begin = self._first.index_select(0, nodes) - count.cumsum(0) + count
        edges = begin.index_select(0, owner) + torch.arange(len(owner), device=owner.device)
        columns = best.shape[1]
        place = owner % len(context) * columns + self._column.index_select(0, edges)
        return best.view(-1).scatter_reduce_(0, place, edges, "amax").view(-1, columns)

    def _tabulate(self, most: int) -> None:
        """Work out up to `most` rows, of the contexts with most edges; chains then end there."""
        contexts = torch.nonzero(self._count)[:, 0]
        if len(contexts) > most:
            order = self._count[contexts].argsort(descending=True, stable=True)
            contexts = contexts[order[:most]].sort().values
        starts = range(0, len(contexts), _CONTEXTS_AT_ONCE)
        parts = [self._deciding(contexts[start : start + _CONTEXTS_AT_ONCE]).int() for start in starts]
        self._table = torch.cat([self._table, *parts])
        self._count[contexts] = 0
        row = torch.zeros_like(self._row)
        row[contexts] = torch.arange(1, len(contexts) + 1, device=row.device)
        node, self._rounds = torch.arange(len(row), device=row.device), 0
        for step in range(self.model.order):
            if self._count[node].any():
                self._rounds = step + 1
            node = torch.where(row[node] > 0, node, self.model.suffix[node].long())
        self._row = row[node]
