"""Scores of symbols by the linear joiner, normalised by a matrix product; differentiated by autograd.

With am (B, T, V) and lm (B, U+1, V) (Kuang et al. 2022, "Pruned RNN-T for fast, memory-efficient ASR
training", sections 3.1 and 3.2)::

    log p(v | t, u)  = am_v(t) + lm_v(u) - N(t, u)       N(t, u) = log sum_v exp(am_v(t)) exp(lm_v(u))
    log p_lm(v | u)  = lm_v(u) - log sum_v' exp(lm_v'(u))
    log p_am(v | t)  = am_v(t) + log q_v - log sum_v' q_v' exp(am_v'(t))
    score            = (1 - am_scale - lm_scale) log p + am_scale log p_am + lm_scale log p_lm

where q is the mean of p_lm over the label positions of the batch. N is the logarithm of a matrix product, so
that (B, T, U+1, V) is never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr_kernels.nodes import Nodes

# Where am and lm agree on no column, their product underflows. Sums below this are formed anew.
_SUM_MIN = {torch.float32: 1e-25, torch.float64: 1e-280}


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
    T_b, U_b = (torch.tensor(x, device=am.device)[:, None, None] for x in (nodes.frames, nodes.labels))
    heard = torch.arange(am.shape[1], device=am.device)[:, None] < T_b
    spoken = torch.arange(lm.shape[1], device=am.device)[:, None] <= U_b
    am, lm = torch.where(heard, am, 0.0), torch.where(spoken, lm, 0.0)
    index = symbols.flatten(1)[:, None].expand(-1, am.shape[1], -1)
    by_am = am.gather(-1, index).view(*am.shape[:2], *symbols.shape[1:])
    by_lm = lm.gather(-1, symbols)[:, None]
    scores = by_am + by_lm - _log_norm(am, lm)[..., None]
    if am_scale or lm_scale:
        scores = scores * (1 - am_scale - lm_scale)
    if lm_scale:
        scores = scores + lm_scale * (by_lm - lm.logsumexp(dim=-1)[:, None, :, None])
    if am_scale:
        prior = _log_mean(lm, spoken) if unigram is None else unigram.to(am.dtype).log()
        norm = (am + prior).logsumexp(dim=-1)[:, :, None, None]
        scores = scores + am_scale * (by_am + prior[symbols][:, None] - norm)
    return torch.where(heard[:, :, None] & spoken[:, None], scores, 0.0)


def _log_mean(lm: Tensor, spoken: Tensor) -> Tensor:
    """(V,) log of the mean of softmax(lm) over the positions `spoken` (B, U+1, 1)."""
    log_probs = torch.where(spoken, lm.log_softmax(dim=-1), -torch.inf)
    # The gradient of the log of a sum of zeros is not a number; it does not matter which one.
    never = (log_probs == -torch.inf).all(dim=1).all(dim=0)
    log_sum = torch.where(never, 0.0, log_probs).flatten(0, 1).logsumexp(dim=0)
    return torch.where(never, -torch.inf, log_sum) - spoken.sum().log()


def _log_norm(am: Tensor, lm: Tensor) -> Tensor:
    """(B, T, U+1): log sum_v exp(am_v(t) + lm_v(u))."""
    am_max, lm_max = (x.detach().amax(dim=-1, keepdim=True) for x in (am, lm))
    sums = (am - am_max).exp() @ (lm - lm_max).exp().transpose(1, 2)
    log_norm = sums.log() + am_max + lm_max.transpose(1, 2)
    lost = ~(sums.detach() > _SUM_MIN[sums.dtype])
    if bool(lost.any()):
        b, t, u = lost.nonzero(as_tuple=True)
        # where, not only index_put: the gradient of log(0) would be inf * 0
        kept = sums.masked_fill(lost, 1.0).log() + am_max + lm_max.transpose(1, 2)
        log_norm = kept.index_put((b, t, u), (am[b, t] + lm[b, u]).logsumexp(dim=-1))
    return log_norm
