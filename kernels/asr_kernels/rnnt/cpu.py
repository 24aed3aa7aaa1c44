"""Scores of symbols from logits, fast: read once per direction, in pieces that stay in the cache.

Written in torch operations, so that it runs wherever tensors do; no compiled extension. See README.md
beside this file for the algorithm and its speed.

Forward, per piece: exp into a small buffer, sum, gather the symbols' logits; nothing else of size V is kept.
Backward, per piece, with z the logits, N their log-normaliser, g_k the gradient at the score of symbol k and
gamma = -sum_k g_k, the occupation of the node::

    dloss/dz_v = gamma exp(z_v - N) + sum over k with symbol_k = v of g_k

one subtraction and one exp into the gradient and, while that is in the cache, the symbols' columns over
it, formed in float64 because their difference cancels where the model is sure. Nodes whose occupation
underflows in the gradient's precision are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_kernels.nodes import Nodes

# Elements of a piece: 1 MB of float32, shared by the threads, stays in their second-level caches.
_PIECE = 1 << 18
# Sums of exp(logit) within these bounds lose nothing by not subtracting the largest logit first.
_SUM_MIN, _SUM_MAX = 1e-25, 1e35
# Occupations below this are zero: 23 orders under float32 rounding, and short of the denormal numbers that
# would make exp several times slower. (They sum to one over each anti-diagonal.)
_NEGLIGIBLE = {torch.float32: 1e-30, torch.float64: 1e-300}


# Slices of utterances, frames and places in the band.
Piece: TypeAlias = tuple[slice, slice, slice]


class Reading(NamedTuple):
    """What the forward pass takes from the logits, V times smaller than they are."""

    scores: Tensor
    """(B, T, W, K) float64: log-probabilities, or raw logits of columns outside the softmax; 0 outside."""
    log_norm: Tensor
    """(B, T, W): log sum_v exp(logit - shift); 0 outside."""
    shift: Tensor | None
    """(B, T, W): the largest logit; None, for zero, unless some are extreme."""


def read(logits: Tensor, symbols: Tensor, nodes: Nodes, vocab: int) -> Reading:
    """Scores of `symbols` (B, 1 or T, W, K) by logits (B, T, W, V); the softmax is over the first `vocab`."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    valid = nodes.valid(logits.shape[1], logits.device)
    sums = torch.ones(logits.shape[:3], dtype=dtype, device=logits.device)
    raw = sums.new_zeros((*sums.shape, symbols.shape[-1]))
    shift = None
    _sum_exp(logits, symbols, nodes, vocab, sums, raw, None)
    sums.masked_fill_(~valid, 1.0)
    if sums.numel() > 0:
        low, high = (float(bound) for bound in sums.aminmax())
        if not (low > _SUM_MIN and high < _SUM_MAX):  # also where either is NaN
            shift = torch.zeros_like(sums)
            _sum_exp(logits, symbols, nodes, vocab, sums, raw, shift)
            sums.masked_fill_(~valid, 1.0)
    scores, log_norm = raw.double(), sums.double().log_()
    norm = log_norm if shift is None else log_norm + shift
    scores -= torch.where(symbols < vocab, norm[..., None], 0.0)
    scores.masked_fill_(~valid[..., None], 0.0)
    return Reading(scores, log_norm.to(dtype), shift)


def spread(
    logits: Tensor, symbols: Tensor, reading: Reading, grad_scores: Tensor, nodes: Nodes, vocab: int
) -> Tensor:
    """Gradient (B, T, W, V) at the logits, in their dtype, from that at the scores (B, T, W, K), float64."""
    grad = _zeros_like(logits)
    dtype = reading.log_norm.dtype
    valid = nodes.valid(logits.shape[1], logits.device)
    own, gamma = symbol_gradient(symbols, reading.scores, grad_scores, vocab)
    own = own.to(dtype)
    live = valid & ~(gamma.abs() < _NEGLIGIBLE[dtype])
    # What a piece writes besides live nodes is zero, but where the logits are not numbers.
    stray = ~live & ~(valid & reading.log_norm.isfinite())
    offset = reading.log_norm - gamma.abs().log().to(dtype)
    sign = gamma.sign().to(dtype) if bool((gamma < 0).any()) else None
    visited, strays = live.cpu().numpy(), stray.cpu().numpy()
    buffer = _buffer(logits, dtype)
    for piece in _pieces(nodes, logits.shape[-1], visited):
        x, target = logits[piece], grad[piece]
        # Half precision is formed in float32 and rounded once.
        out = target if target.dtype == dtype else buffer[: x.numel()].view(x.shape)
        if reading.shift is not None:
            x = torch.sub(x, reading.shift[piece].unsqueeze(-1), out=out)
        torch.sub(x, offset[piece].unsqueeze(-1), out=out).exp_()
        if sign is not None:
            out *= sign[piece].unsqueeze(-1)
        out[..., vocab:] = 0.0
        out.scatter_(-1, _of(symbols, piece).expand(-1, x.shape[1], -1, -1), own[piece])
        if strays[piece].any():
            out.masked_fill_(stray[piece].unsqueeze(-1), 0.0)
        if out is not target:
            target.copy_(out)
    return grad


def _sum_exp(
    logits: Tensor, symbols: Tensor, nodes: Nodes, vocab: int, sums: Tensor, raw: Tensor, shift: Tensor | None
) -> None:
    """Fill sums (B, T, W), raw (B, T, W, K) and the shift, if there is one."""
    buffer = _buffer(logits, sums.dtype)
    for piece in _pieces(nodes, logits.shape[-1]):
        columns = logits[piece]
        x = columns[..., :vocab]
        exp = buffer[: x.numel()].view(x.shape)
        if shift is not None:
            shift[piece] = x.amax(-1)
            torch.sub(x, shift[piece].unsqueeze(-1), out=exp).exp_()
        elif x.dtype == exp.dtype:
            torch.exp(x, out=exp)
        else:
            exp.copy_(x).exp_()
        torch.sum(exp, -1, out=sums[piece])
        # After exp has brought the piece into the cache: alone, this would wait for memory.
        raw[piece] = columns.gather(-1, _of(symbols, piece).expand(-1, x.shape[1], -1, -1)).to(raw.dtype)


def symbol_gradient(
    symbols: Tensor, scores: Tensor, grad_scores: Tensor, vocab: int
) -> tuple[Tensor, Tensor]:
    """Gradient at the logits of the symbols, and gamma: float64 (B, T, W, K) and (B, T, W).

    Symbols of one node that are the same column all get the sum of their gradients.
    """
    in_softmax = symbols < vocab
    gamma = -torch.where(in_softmax, grad_scores, 0.0).sum(dim=-1)
    own = torch.where(in_softmax, scores.exp() * gamma[..., None], 0.0) + grad_scores
    for j, k in permutations(range(symbols.shape[-1]), 2):
        same = symbols[..., j] == symbols[..., k]
        if bool(same.any()):
            own[..., k] += torch.where(same, grad_scores[..., j], 0.0)
    return own, gamma


def _of(symbols: Tensor, piece: Piece) -> Tensor:
    """The symbols of the piece's nodes; one set for all frames where they do not depend on the frame."""
    b, t, w = piece
    return symbols[b, t if symbols.shape[1] > 1 else slice(None), w]


def _pieces(nodes: Nodes, V: int, live: NDArray[np.bool_] | None = None) -> Iterator[Piece]:
    """Boxes of up to _PIECE logits that cover every utterance, or what is `live` of them.

    Neighbours that fit into one piece share it, padding included; longer utterances are cut along T, and
    along W where one frame is larger than a piece.
    """
    first, frames, widths = 0, nodes.frames, nodes.widths()
    while first < len(frames):
        last, T, width = _neighbours(frames, widths, V, first)
        b = slice(first, last)
        first = last
        t_step, w_step = max(1, _PIECE // (width * V)), max(1, min(width, _PIECE // V))
        if last - b.start > 1:
            t_step = max(1, T)
        for t in range(0, T, t_step):
            low, high = 0, width
            if live is not None:
                columns = np.flatnonzero(live[b, t : t + t_step, :width].any(axis=(0, 1)))
                low, high = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
            for w in range(low, high, w_step):
                yield b, slice(t, min(t + t_step, T)), slice(w, min(w + w_step, high))


def _neighbours(frames: list[int], widths: list[int], V: int, first: int) -> tuple[int, int, int]:
    """End of the run of utterances from `first` that fit into one piece, and the T and W that hold them."""
    last, T, width = first + 1, frames[first], widths[first]
    while last < len(frames):
        longer = max(T, frames[last]), max(width, widths[last])
        if (last + 1 - first) * longer[0] * longer[1] * V > _PIECE:
            break
        last, (T, width) = last + 1, longer
    return last, T, width


def _buffer(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for any piece of the logits."""
    return torch.empty(max(_PIECE, logits.shape[-1]), dtype=dtype, device=logits.device)


def _zeros_like(logits: Tensor) -> Tensor:
    """Contiguous zeros; on CPU as fresh pages of the system, which cost nothing until they are written.

    numpy asks for huge pages where torch does not: writing 300 MB takes a quarter of the time.
    """
    if logits.device.type != "cpu" or logits.numel() == 0:
        return torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    raw = np.zeros(logits.numel() * logits.element_size(), dtype=np.uint8)
    return torch.from_numpy(raw).view(logits.dtype).view(logits.shape)
