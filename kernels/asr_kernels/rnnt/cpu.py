"""The transducer loss, fast: logits read once per direction, in pieces that stay in the cache.

Written in torch operations for what has the size of the logits and in numpy for the lattice, which has
V times less: no compiled extension. See README.md beside this file for the algorithm and its speed.

Forward, per piece: exp into a small buffer, sum, gather the blank and label logits; nothing else of size V
is kept. Then lattice.py gives the loss and the occupations (posteriors of the arcs), with P = P(y|x)::

    o_b(t,u) = alpha(t,u) b(t,u) beta(t+1,u) / P      o_y(t,u) = alpha(t,u) y(t,u) beta(t,u+1) / P

Backward, per piece, with z the logits, N their log-normaliser and gamma = o_b + o_y::

    dloss/dz_v = exp(z_v - N + log gamma) - [v = blank] o_b - [v = label] o_y

one subtraction and one exp into the gradient and, while that is in the cache, the columns of blank and
label over it, formed in float64 because their difference cancels where the model is sure. FastEmit
multiplies o_y by 1 + lambda. Nodes whose occupation underflows in the gradient's precision are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_kernels.rnnt import lattice

# Elements of a piece: 1 MB of float32, shared by the threads, stays in their second-level caches.
_PIECE = 1 << 18
# Sums of exp(logit) within these bounds lose nothing by not subtracting the largest logit first.
_SUM_MIN, _SUM_MAX = 1e-25, 1e35
# Occupations below this are zero: 23 orders under float32 rounding, and short of the denormal numbers that
# would make exp several times slower. (They sum to one over each anti-diagonal.)
_NEGLIGIBLE = {torch.float32: 1e-30, torch.float64: 1e-300}


# Slices of utterances, frames and label positions.
Piece: TypeAlias = tuple[slice, slice, slice]


class Saved(NamedTuple):
    """What the backward pass needs besides the logits, on their device."""

    symbols: Tensor  # (B, U+1, 2) int64: ids of blank and of the label (again blank where there is none)
    symbol_grad: Tensor  # (B, T, U+1, 2): gradient of the loss at the logits of these symbols
    occupation: Tensor  # (B, T, U+1): of the node, gamma
    log_norm: Tensor  # (B, T, U+1): log sum_v exp(logit - shift)
    shift: Tensor | None  # (B, T, U+1): the largest logit; None, for zero, unless some are extreme


class _Read(NamedTuple):
    """What the forward pass takes from the logits, V times smaller than they are."""

    symbol_logits: Tensor  # (B, T, U+1, 2), less shift
    sums: Tensor  # (B, T, U+1): sum_v exp(logit - shift)
    shift: Tensor | None  # as in Saved


def forward(
    logits: Tensor,
    targets: Tensor,
    frames: Sequence[int],
    labels: Sequence[int],
    blank: int,
    fastemit: float,
    delay_penalty: float,
    *,
    needs_grad: bool,
) -> tuple[Tensor, Saved | None]:
    """Losses (B,) of logits (B, T, U+1, V), int64 targets (B, U) padded with blank; None without gradient."""
    symbols = torch.full((logits.shape[0], logits.shape[2], 2), blank)
    symbols[:, :-1, 1] = targets
    symbols = symbols.to(logits.device)
    read = _read(logits, symbols, frames, labels)
    log_norm = read.sums.double().log_()
    log_probs = read.symbol_logits.double().sub_(log_norm[..., None])
    arcs = _arcs(log_probs, frames, delay_penalty)
    dtype, device = read.sums.dtype, logits.device
    if not needs_grad:
        return torch.from_numpy(lattice.forward(arcs, frames, labels)).to(device, dtype), None
    losses, occupation = lattice.forward_backward(arcs, frames, labels)
    symbol_grad, node = _symbol_gradient(log_probs, symbols, occupation, 1 + fastemit)
    saved = Saved(symbols, symbol_grad.to(dtype), node.to(dtype), log_norm.to(dtype), read.shift)
    return torch.from_numpy(losses).to(device, dtype), saved


def backward(
    logits: Tensor, saved: Saved, frames: Sequence[int], labels: Sequence[int], grad_losses: Tensor
) -> Tensor:
    """Gradient (B, T, U+1, V) of sum_b grad_losses[b] losses[b], in the dtype of the logits."""
    grad = _zeros_like(logits)
    weights = grad_losses.to(saved.occupation.dtype)[:, None, None]
    offset = saved.log_norm - (saved.occupation * weights.abs()).log()
    symbol_grad = saved.symbol_grad * weights[..., None]
    sign = weights.sign()[..., None] if bool((weights < 0).any()) else None
    live = ~(saved.occupation < _NEGLIGIBLE[offset.dtype]) & (weights != 0)
    buffer = _buffer(logits, offset.dtype)
    for piece in _pieces(frames, labels, logits.shape[-1], live.cpu().numpy()):
        b, _, u = piece
        x, target = logits[piece], grad[piece]
        # Half precision is formed in float32 and rounded once.
        out = target if target.dtype == offset.dtype else buffer[: x.numel()].view(x.shape)
        if saved.shift is not None:
            x = torch.sub(x, saved.shift[piece].unsqueeze(-1), out=out)
        torch.sub(x, offset[piece].unsqueeze(-1), out=out).exp_()
        if sign is not None:
            out *= sign[b]
        out.scatter_(-1, saved.symbols[b, None, u].expand(-1, x.shape[1], -1, -1), symbol_grad[piece])
        if out is not target:
            target.copy_(out)
        _reset_padding(grad, piece, frames, labels, 0.0)
    return grad


def _read(logits: Tensor, symbols: Tensor, frames: Sequence[int], labels: Sequence[int]) -> _Read:
    """Read the valid part of the logits: once, or thrice if some are extreme."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sums = torch.ones(logits.shape[:3], dtype=dtype, device=logits.device)
    read = _Read(sums.new_zeros((*sums.shape, 2)), sums, None)
    _sum_exp(logits, symbols, frames, labels, read)
    if sums.numel() > 0:
        low, high = (float(bound) for bound in sums.aminmax())
        if not (low > _SUM_MIN and high < _SUM_MAX):  # also where either is NaN
            read = read._replace(shift=torch.zeros_like(sums))
            _sum_exp(logits, symbols, frames, labels, read)
    return read


def _sum_exp(
    logits: Tensor, symbols: Tensor, frames: Sequence[int], labels: Sequence[int], read: _Read
) -> None:
    """Fill `read`, including its shift if it has one."""
    buffer = _buffer(logits, read.sums.dtype)
    for piece in _pieces(frames, labels, logits.shape[-1]):
        b, _, u = piece
        x = logits[piece]
        exp = buffer[: x.numel()].view(x.shape)
        if read.shift is not None:
            read.shift[piece] = x.amax(-1)
            torch.sub(x, read.shift[piece].unsqueeze(-1), out=exp).exp_()
        elif x.dtype == exp.dtype:
            torch.exp(x, out=exp)
        else:
            exp.copy_(x).exp_()
        torch.sum(exp, -1, out=read.sums[piece])
        _reset_padding(read.sums, piece, frames, labels, 1.0)
        # After exp has brought the piece into the cache: alone, each of these would wait for memory.
        index = symbols[b, None, u].expand(-1, x.shape[1], -1, -1)
        read.symbol_logits[piece] = x.gather(-1, index)
    if read.shift is not None:
        read.symbol_logits.sub_(read.shift.unsqueeze(-1))


def _arcs(log_probs: Tensor, frames: Sequence[int], delay_penalty: float) -> lattice.Arcs:
    """Scores of blank and label arcs, on the host, from log-probabilities (B, T, U+1, 2)."""
    blank, label = log_probs.cpu().numpy().transpose(3, 0, 1, 2)
    if delay_penalty != 0.0:
        centre = (np.array(frames) - 1)[:, None, None] / 2
        label = label + delay_penalty * (centre - np.arange(label.shape[1])[None, :, None])
    return lattice.Arcs(blank, label)


def _symbol_gradient(
    log_probs: Tensor, symbols: Tensor, occupation: lattice.Arcs, label_factor: float
) -> tuple[Tensor, Tensor]:
    """Gradient (B, T, U+1, 2) at the logits of blank and label, and occupation of the nodes (B, T, U+1)."""
    blank, label = (torch.from_numpy(x).to(log_probs.device) for x in occupation)
    label *= label_factor
    node = blank + label
    # Both columns are written by one scatter, so where label and blank are one id both carry the whole.
    same = (symbols[..., 0] == symbols[..., 1])[:, None]
    own = torch.stack((torch.where(same, node, blank), torch.where(same, node, label)), dim=-1)
    return (log_probs.exp() * node[..., None]).sub_(own), node


def _pieces(
    frames: Sequence[int], labels: Sequence[int], V: int, live: NDArray[np.bool_] | None = None
) -> Iterator[Piece]:
    """Boxes of up to _PIECE logits that cover every utterance, or what is `live` of them.

    Neighbours that fit into one piece share it, padding included; longer utterances are cut along T, and
    along U where one frame is larger than a piece.
    """
    first = 0
    while first < len(frames):
        last, T, width = _neighbours(frames, labels, V, first)
        b = slice(first, last)
        first = last
        t_step, u_step = max(1, _PIECE // (width * V)), max(1, min(width, _PIECE // V))
        if last - b.start > 1:
            t_step = max(1, T)
        for t in range(0, T, t_step):
            low, high = 0, width
            if live is not None:
                columns = np.flatnonzero(live[b, t : t + t_step, :width].any(axis=(0, 1)))
                low, high = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
            for u in range(low, high, u_step):
                yield b, slice(t, min(t + t_step, T)), slice(u, min(u + u_step, high))


def _neighbours(frames: Sequence[int], labels: Sequence[int], V: int, first: int) -> tuple[int, int, int]:
    """End of the run of utterances from `first` that fit into one piece, and the T and U+1 that hold them."""
    last, T, width = first + 1, frames[first], labels[first] + 1
    while last < len(frames):
        wider = max(T, frames[last]), max(width, labels[last] + 1)
        if (last + 1 - first) * wider[0] * wider[1] * V > _PIECE:
            break
        last, (T, width) = last + 1, wider
    return last, T, width


def _reset_padding(
    x: Tensor, piece: Piece, frames: Sequence[int], labels: Sequence[int], value: float
) -> None:
    """Undo what a piece shared by several utterances wrote to x (B, T, U+1, ...) beyond their lengths."""
    batch, t, u = piece
    for b in range(batch.start, batch.stop):
        if frames[b] < t.stop:
            x[b, frames[b] : t.stop, u] = value
        if labels[b] + 1 < u.stop:
            x[b, t, labels[b] + 1 : u.stop] = value


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
