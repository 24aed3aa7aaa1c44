"""Scores of symbols by the linear joiner, as they are written; lattice/reference.py does the rest.

With am (B, T, V) and lm (B, U+1, V) (Kuang et al. 2022, "Pruned RNN-T for fast, memory-efficient ASR
training", sections 3.1 and 3.2)::

    p(v | t, u)  = softmax over v of am_v(t) + lm_v(u)
    p_lm(v | u)  = softmax over v of lm_v(u)
    p_am(v | t)  = softmax over v of am_v(t) + log q_v
    score        = (1 - am_scale - lm_scale) log p + am_scale log p_am + lm_scale log p_lm

where q is the mean of p_lm over the label positions of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr_kernels.nodes import Nodes


def simple_scores(
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    nodes: Nodes,
    am_scale: float,
    lm_scale: float,
    unigram: Tensor | None,
) -> Tensor:
    """(B, T, U+1, K) scores of symbols (B, U+1, K) at the nodes of the lattices; outside 0."""
    heard, spoken = within(am, lm, nodes)
    am, lm = torch.where(heard, am, 0.0), torch.where(spoken, lm, 0.0)
    scores = (1 - am_scale - lm_scale) * (am[:, :, None] + lm[:, None]).log_softmax(dim=-1)
    if lm_scale:
        scores = scores + lm_scale * lm.log_softmax(dim=-1)[:, None]
    if am_scale:
        prior = log_mean(lm, spoken) if unigram is None else unigram.to(am.dtype).log()
        scores = scores + am_scale * (am + prior).log_softmax(dim=-1)[:, :, None]
    chosen = scores.gather(-1, symbols[:, None].expand(-1, am.shape[1], -1, -1))
    return torch.where(heard[:, :, None] & spoken[:, None], chosen, 0.0)


def within(am: Tensor, lm: Tensor, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """(B, T, 1) and (B, U+1, 1): which frames and label counts are within the lengths."""
    T_b, U_b = (torch.tensor(x, device=am.device)[:, None, None] for x in (nodes.frames, nodes.labels))
    t, u = (torch.arange(x.shape[1], device=x.device)[:, None] for x in (am, lm))
    return t < T_b, u <= U_b


def log_mean(lm: Tensor, spoken: Tensor) -> Tensor:
    """(V,) log of the mean of softmax(lm) over the positions `spoken` (B, U+1, 1)."""
    log_probs = torch.where(spoken, lm.log_softmax(dim=-1), -torch.inf)
    # The gradient of the log of a sum of zeros is not a number; it does not matter which one.
    never = (log_probs == -torch.inf).all(dim=1).all(dim=0)
    log_sum = torch.where(never, 0.0, log_probs).flatten(0, 1).logsumexp(dim=0)
    return torch.where(never, -torch.inf, log_sum) - spoken.sum().log()
