"""Whole signals cut into pieces that are heard alone, and put together again.

Training in pieces bounds what a recurrence has to carry, and fills the machine with equal lengths (Zeyer et
al. 2017, "A comprehensive study of deep bidirectional LSTM RNNs for acoustic modeling in speech recognition";
Chen and Huo 2016, "Training deep bidirectional LSTM acoustic model for LVCSR by a
context-sensitive-chunk BPTT approach"). As in the latter, a piece also hears `context` frames on either side,
whose answers are thrown away; so that every frame is answered once, which a sequence criterion needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """The pieces of a batch of signals, those of a signal one after the other."""

    frames: Tensor
    """(B N, size + 2 context, D)."""
    lengths: Tensor
    """(B N,) int64; 0 behind the end of a signal."""
    own: Tensor
    """(N, size) int64, where in a piece the frames are that it answers for."""


def cut(x: Tensor, x_lengths: Tensor, size: int, context: int) -> Pieces:
    """x: (B, T, D) signals; x_lengths: (B,). Nothing before the first frame and behind the last is heard."""
    T = x.shape[1]
    first = torch.arange(0, max(T, 1), size, device=x.device)
    start = (first - context).clamp(min=0)
    place = start[:, None] + torch.arange(size + 2 * context, device=x.device)
    frames = x[:, place.clamp(max=T - 1)]
    ends = torch.minimum(first + size + context, x_lengths[:, None])
    lengths = torch.where(first < x_lengths[:, None], ends - start, 0)
    own = (first - start)[:, None] + torch.arange(size, device=x.device)
    return Pieces(frames.flatten(0, 1), lengths.flatten(), own)


def together(y: Tensor, own: Tensor, signals: int, T: int) -> Tensor:
    """(B, T, E), the signals again, of what was answered for their pieces: y (B N, size + 2 context, E)."""
    pieces = y.view(signals, len(own), *y.shape[1:])
    number = torch.arange(len(own), device=y.device)[:, None]
    return pieces[:, number, own].flatten(1, 2)[:, :T]
