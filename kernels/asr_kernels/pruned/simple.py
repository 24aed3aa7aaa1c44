"""Scores of symbols by the linear joiner, fast: (B, T, U+1, V) is a matrix product and never stored.

The equations are those of reference.py; the normaliser is the logarithm of a product. With P = exp(am) and
Q = exp(lm), each relative to its largest, and g_k the gradient at the score of symbol k::

    log p(v | t, u) = am_v(t) + lm_v(u) - log sum_v P_v(t) Q_v(u)
    dam_v(t) = P_v(t) sum_u W(t, u) Q_v(u) + sum of g_k(t, u) over u and k with symbol_k(u) = v
    W(t, u)  = -sum_k g_k(t, u) / sum_v P_v(t) Q_v(u)

and likewise dlm. This part is one function with its own gradient, which takes half the time and memory of
autograd's; what is smaller is left to autograd. In torch operations, so that it runs wherever tensors do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from asr_kernels.autograd import NoSecondDerivative
from asr_kernels.nodes import Nodes
from asr_kernels.pruned.reference import log_mean, within

# Where am and lm agree on no column, their product underflows. Sums below this are formed anew.
_SUM_MIN = {torch.float32: 1e-25, torch.float64: 1e-280}
# Elements of their logits at a time.
_LOST = 1 << 21


def simple_scores(
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    nodes: Nodes,
    am_scale: float,
    lm_scale: float,
    unigram: Tensor | None,
) -> Tensor:
    """(B, T, U+1, 2) scores of blank and label, symbols (B, U+1, 2), at the nodes; 0 outside the lattices."""
    scores = cast(Tensor, _JointScores.apply(am, lm, symbols, nodes))
    if not (am_scale or lm_scale):
        return scores
    scores = scores * (1 - am_scale - lm_scale)
    heard, spoken = within(am, lm, nodes)
    lm = torch.where(spoken, lm, 0.0)
    if lm_scale:
        scores = scores + lm_scale * lm.log_softmax(dim=-1).gather(-1, symbols)[:, None]
    if am_scale:
        am = torch.where(heard, am, 0.0)
        prior = log_mean(lm, spoken) if unigram is None else unigram.to(am.dtype).log()
        alone = (am + prior).log_softmax(dim=-1)
        index = symbols.flatten(1)[:, None].expand(-1, am.shape[1], -1)
        scores = scores + am_scale * alone.gather(-1, index).view(*am.shape[:2], *symbols.shape[1:])
    return torch.where(heard[:, :, None] & spoken[:, None], scores, 0.0)


class _JointScores(torch.autograd.Function):
    """Scores (B, T, U+1, 2) of symbols (B, U+1, 2) by softmax(am + lm)."""

    @staticmethod
    def forward(ctx: Any, am: Tensor, lm: Tensor, symbols: Tensor, nodes: Nodes) -> Tensor:
        heard, spoken = within(am, lm, nodes)
        (am_max, P), (lm_max, Q) = _relative(am, heard), _relative(lm, spoken)
        sums = P @ Q.transpose(1, 2)
        outside = ~(heard & spoken.transpose(1, 2))
        lost = ((sums <= _SUM_MIN[sums.dtype]) & ~outside).nonzero()
        norm = sums.log().add_(am_max).add_(lm_max.transpose(1, 2))
        for (b, t, u), logits in _logits(am, lm, lost):
            norm[b, t, u] = logits.logsumexp(dim=-1)
        blank, label = symbols[:, :1, 0], symbols[..., 1]
        scores = am.new_empty(*norm.shape, 2)
        torch.sub(_at(am, blank), norm, out=scores[..., 0])
        torch.sub(_at(am, label), norm, out=scores[..., 1])
        scores += lm.gather(-1, symbols)[:, None]
        ctx.save_for_backward(am, lm, symbols, P, Q, sums, outside, lost)
        return scores.masked_fill_(outside[..., None], 0.0)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        am, lm, symbols, P, Q, sums, outside, lost = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(am.device.type, enabled=False):
            own = grad_scores.masked_fill(outside[..., None], 0.0)
            gamma = -own.sum(dim=-1)
            W = torch.div(gamma, sums).masked_fill_(outside, 0.0)
            W[lost.unbind(1)] = 0.0
            d_am, d_lm = (W @ Q).mul_(P), (W.transpose(1, 2) @ P).mul_(Q)
            for (b, t, u), logits in _logits(am, lm, lost):
                by_logits = logits.softmax(dim=-1).mul_(gamma[b, t, u][:, None])
                d_am.index_put_((b, t), by_logits, accumulate=True)
                d_lm.index_put_((b, u), by_logits, accumulate=True)
            blank, label = (
                x[:, None].expand(-1, am.shape[1], -1) for x in (symbols[:, :1, 0], symbols[..., 1])
            )
            d_am.scatter_add_(-1, blank, own[..., 0].sum(dim=-1, keepdim=True))
            d_am.scatter_add_(-1, label, own[..., 1])
            d_lm.scatter_add_(-1, symbols, own.sum(dim=1))
        if torch.is_grad_enabled():
            d_am, d_lm = (NoSecondDerivative.apply(x, am, lm, grad_scores) for x in (d_am, d_lm))
        return d_am, d_lm, None, None


def _relative(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row (..., 1), and exp of the row (..., V) relative to it; zero where not valid."""
    largest = x.amax(dim=-1, keepdim=True).masked_fill_(~valid, 0.0)
    exp = torch.sub(x, largest).exp_()
    return largest, exp if bool(valid.all()) else exp.masked_fill_(~valid, 0.0)


def _at(am: Tensor, columns: Tensor) -> Tensor:
    """(B, T, n): the columns (B, n) of every frame."""
    return am.gather(-1, columns[:, None].expand(-1, am.shape[1], -1))


def _logits(am: Tensor, lm: Tensor, nodes: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Some of the nodes (n, 3), as b, t and u, and their logits (n', V); then the next ones."""
    for some in torch.split(nodes, max(1, _LOST // am.shape[-1])):
        b, t, u = some.unbind(1)
        yield (b, t, u), am[b, t] + lm[b, u]
