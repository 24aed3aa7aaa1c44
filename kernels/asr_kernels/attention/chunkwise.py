"""Scores of the frames of a chunk for each other, decays included, without ever dividing by a decay.

P_ts = sum_c q_tc k_sc prod_{s<r<=t} a_rc is a product of matrices only where the decays of the pair (t, s) split into
one factor of t and one of s. The usual split, at the start of the chunk, divides by the decays before s, which
overflows. But a boundary between s and t splits them into factors that are products of decays, at most 1::

    prod_{s<r<=t} a_r  =  prod_{boundary<=r<=t} a_r  *  prod_{s<r<boundary} a_r

and the pairs on both sides of a boundary are a rectangle. So the chunk is halved again and again: the middle
of the chunk serves the pairs across it, the middles of the halves those across them, and so on: log2(C) times a
product of matrices, each pair in exactly one (the diagonal has no decays). From blocks of m frames to blocks of
2m, the factors of a half grow by the decay of the other half, one multiplication per number; -inf is as good a
log-decay as any.

With one decay per head P = (q k^T) * G needs no split: G_ts = exp(b_t - b_s) <= 1, from running sums b in
float64, where the difference of large sums has digits enough.

Both classes take segments of chunks: q, k (n, C, K), C a power of two, and have the chunks' quantities as attributes:
matrix (n, C, C), lower triangular; q_start (n, C, K), each query with the decays since the start of the chunk;
k_end (n, C, K), each key with those to its end; decay (n, K) or (n, 1), of the chunk. With a bonus (n, 1, K), a
query has not seen its own frame's decay.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A log-decay that leaves nothing in float64, and that may still be added up.
NOTHING = -1e4


class Gradients(NamedTuple):
    """At the arguments of the scores."""

    q: Tensor
    k: Tensor
    g: Tensor
    bonus: Tensor | None
    """(n, K)."""


class Channelwise:
    """Log-decays g (n, C, K)."""

    def __init__(self, q: Tensor, k: Tensor, g: Tensor, bonus: Tensor | None) -> None:
        self._inputs = q, k, bonus
        self._a = g.exp()
        self.matrix = _diagonal(q, k, bonus)
        # By level: factors within blocks of 1, 2, 4, ... frames, and the decays (n, C / m, K) of the blocks.
        self._q, self._k, self._decay = [q if bonus is not None else q * self._a], [k], [self._a]
        for level in range(q.shape[1].bit_length() - 1):
            m = 1 << level
            before, after = _halves(self._k[-1], m)[:, :, 0], _halves(self._q[-1], m)[:, :, 1]
            _below(self.matrix, m).copy_(after @ before.mT)
            decays = self._decay[-1].unflatten(1, (-1, 2))
            self._q.append(self._q[-1].clone())
            _halves(self._q[-1], m)[:, :, 1] *= decays[:, :, 0, None]
            self._k.append(self._k[-1].clone())
            _halves(self._k[-1], m)[:, :, 0] *= decays[:, :, 1, None]
            self._decay.append(decays.prod(dim=2))
        self.q_start, self.k_end, self.decay = self._q[-1], self._k[-1], self._decay[-1][:, 0]

    def backward(self, d_matrix: Tensor, d_q: Tensor, d_k: Tensor, d_decay: Tensor) -> Gradients:
        """From the gradients at matrix (what is above the diagonal is ignored), q_start, k_end and decay."""
        # log_decay (n, C / m, K): gradient at the logarithm of a block's decay; nothing is divided by a decay.
        log_decay = (d_decay * self.decay)[:, None]
        for level in range(len(self._q) - 2, -1, -1):
            m = 1 << level
            decays = self._decay[level].unflatten(1, (-1, 2))
            d_after, d_before = _halves(d_q, m)[:, :, 1], _halves(d_k, m)[:, :, 0]
            by_first = (d_after * _halves(self._q[level + 1], m)[:, :, 1]).sum(dim=2)
            by_second = (d_before * _halves(self._k[level + 1], m)[:, :, 0]).sum(dim=2)
            log_decay = torch.stack((log_decay + by_first, log_decay + by_second), dim=2).flatten(1, 2)
            block = _below(d_matrix, m)
            d_after *= decays[:, :, 0, None]
            d_after += block @ _halves(self._k[level], m)[:, :, 0]
            d_before *= decays[:, :, 1, None]
            d_before += block.mT @ _halves(self._q[level], m)[:, :, 1]
        q, k, bonus = self._inputs
        if bonus is None:
            log_decay = torch.addcmul(log_decay, d_q, self._q[0])
            d_q = d_q * self._a
        more = _diagonal_backward(q, k, bonus, d_matrix)
        return Gradients(d_q + more[0], d_k + more[1], log_decay, more[2])


class Headwise:
    """Log-decays g (n, C)."""

    def __init__(self, q: Tensor, k: Tensor, g: Tensor, bonus: Tensor | None) -> None:
        self._inputs = q, k, bonus
        since = g.double().clamp(min=NOTHING).cumsum(dim=1)
        until = since if bonus is None else since - g.double().clamp(min=NOTHING)
        self._pairs = (until[:, :, None] - since[:, None]).clamp_(max=0.0).to(q.dtype).exp().tril_(-1)
        self._start = until.to(q.dtype).exp()[..., None]
        self._end = (since[:, -1:] - since).to(q.dtype).exp()[..., None]
        self.matrix = (q @ k.mT).mul_(self._pairs)
        self.matrix.diagonal(dim1=1, dim2=2).copy_(_weighted(q, bonus).mul(k).sum(dim=-1))
        self.q_start, self.k_end = q * self._start, k * self._end
        self.decay = since[:, -1:].to(q.dtype).exp()

    def backward(self, d_matrix: Tensor, d_q: Tensor, d_k: Tensor, d_decay: Tensor) -> Gradients:
        """As in Channelwise."""
        q, k, bonus = self._inputs
        C = q.shape[1]
        # At the exponents: every pair, start and end counts for the decays that it spans.
        pairs = (d_matrix * self.matrix).tril_(-1)
        start, end = (d_q * self.q_start).sum(dim=-1), (d_k * self.k_end).sum(dim=-1)
        spanned = _from_on(pairs, inclusive=bonus is None).tril_(-1).sum(dim=-1)
        spanned += _from_on(start[..., None], inclusive=bonus is None)[..., 0]
        spanned += end @ end.new_ones(C, C).triu_(1)
        spanned += (d_decay.sum(dim=-1, keepdim=True) * self.decay).expand(-1, C)
        products = d_matrix * self._pairs
        more = _diagonal_backward(q, k, bonus, d_matrix)
        d_q = torch.addcmul(more[0], d_q, self._start).add_(products @ k)
        d_k = torch.addcmul(more[1], d_k, self._end).add_(products.mT @ q)
        return Gradients(d_q, d_k, spanned, more[2])


def _from_on(x: Tensor, *, inclusive: bool) -> Tensor:
    """(n, C, m): at r, the sum over t >= r, or t > r, as a product of matrices: nothing is taken off again."""
    return x.new_ones(x.shape[1], x.shape[1]).triu_(0 if inclusive else 1) @ x


def _halves(x: Tensor, m: int) -> Tensor:
    """(n, C / 2m, 2, m, K) of (n, C, K)."""
    return x.unflatten(1, (-1, 2, m))


def _below(matrix: Tensor, m: int) -> Tensor:
    """(n, C / 2m, m, m): by block of 2m frames, the scores of its second half for the first."""
    blocks = matrix.unflatten(2, (-1, 2, m)).unflatten(1, (-1, 2, m))
    return blocks[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _weighted(q: Tensor, bonus: Tensor | None) -> Tensor:
    return q if bonus is None else q * bonus


def _diagonal(q: Tensor, k: Tensor, bonus: Tensor | None) -> Tensor:
    """(n, C, C): each frame's score for itself."""
    return torch.diag_embed((_weighted(q, bonus) * k).sum(dim=-1))


def _diagonal_backward(
    q: Tensor, k: Tensor, bonus: Tensor | None, d_matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the diagonal gives q, k and the bonus."""
    each = d_matrix.diagonal(dim1=1, dim2=2)[..., None]
    d_q, d_k = each * k, each * q
    if bonus is None:
        return d_q, d_k, None
    return d_q * bonus, d_k * bonus, (d_q * q).sum(dim=1)
