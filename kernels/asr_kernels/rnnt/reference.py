"""The scores of a lattice's symbols from logits, as plain as can be; lattice/reference.py does the rest.

At every node (t, u) the joiner's logits are a distribution over the vocabulary (Graves 2012, eq. 15)::

    p(v | t, u) = exp(z_v) / sum_v' exp(z_v')

of which the topology's arcs read a few symbols: blank, the next label, and what else it knows. Columns
behind the vocabulary are durations (TDT), whose softmax is their own and belongs to the lattice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def symbol_scores(logits: Tensor, symbols: Tensor, vocab: int) -> Tensor:
    """(..., K) log-probabilities of the columns `symbols` (..., K); from `vocab` on, the raw logits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    columns = torch.cat((logits[..., :vocab].log_softmax(dim=-1), logits[..., vocab:]), dim=-1)
    return columns.gather(-1, symbols.expand(*logits.shape[:-1], -1))
