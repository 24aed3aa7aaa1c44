"""All labels of a row: what an n-gram model says of every label behind each of many contexts.

For a context and a label, the n-gram that decides is the one of the label from the context, or else from the
first context that backing off leads to and that has one. Edges of longer contexts have larger numbers (see
`asr.lms.ngram`), so the deciding one is the largest: the edges of all contexts of all chains, laid end to
end, are reduced by their maximum into the table (N, V), which begins with the unigrams. The work is
proportional to the edges there are, not to V times the order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr.lms.ngram import NgramModel


class Rows:
    """Rows of a model for V labels; on the device of the model, which has to be waited for once a call."""

    def __init__(self, model: NgramModel, words: Tensor) -> None:
        """`words` (V,) int64: the word of the model that each label is; several may be one."""
        self.model, words = model, words.to(model.keys.device)
        used, self._column_of_label = torch.unique(words, return_inverse=True)
        size, device = len(model.words), words.device
        column = torch.full((size,), len(used), device=device)  # the last, for words that are no label
        column[used] = torch.arange(len(used), device=device)
        self._column = column[model.keys % size].int()
        self._unigrams = torch.cat([used, used.new_zeros(1)])
        limits = torch.arange(len(model.suffix) + 1, device=device) * size
        self._first = torch.searchsorted(model.keys, limits, out_int32=True)
        self._first[0] = self._first[1]  # of the empty context, the unigrams are there already

    def log_prob(self, context: Tensor) -> Tensor:
        """(N, V) float32 natural logarithms of the probability of every label behind contexts (N,) int64."""
        scores = self.model.scores[self._deciding(context)].index_select(1, self._column_of_label)
        return scores + self.model.chain.index_select(0, context)[:, None]

    def _deciding(self, context: Tensor) -> Tensor:
        """(N, columns) edges of contexts (N,)."""
        best = self._unigrams.repeat(len(context), 1)
        if self.model.order == 1:
            return best
        nodes = self.model.chains(context).view(-1)
        first = self._first.index_select(0, nodes)
        count = self._first.index_select(0, nodes + 1) - first
        owner = torch.repeat_interleave(count)  # of every edge, numbered through all nodes
        begin = first - count.cumsum(0) + count
        edges = begin.index_select(0, owner) + torch.arange(len(owner), device=owner.device)
        place = owner % len(context) * best.shape[1] + self._column.index_select(0, edges)
        best.view(-1).scatter_reduce_(0, place, edges, "amax")
        return best
