"""Which label positions to keep at each frame: the band with the most occupation a path can follow.

A band of S positions starts at p(t), with p(0) = 0, 0 <= p(t+1) - p(t) < S so that a path can pass from one
frame's positions to the next one's, and p(T-1) + S > U so that it arrives. Kuang et al. 2022 take the best
p(t) of each frame and mend what does not fit (section 3.3); here the sum over frames of the occupation kept,

    sum_t k(t, p(t))        k(t, p) = sum_{p <= u < p+S} o(t, u)

is as large as such a band can make it. That is the best path of a lattice whose states are p and whose
moves consume a frame and shift the band by 0 to S-1, so it takes no code of its own. But all moves from a
state have the same score, so on the CPU there is a third as much to do::

    best(t+1, p) = max over shifts of best(t, p - shift) + k(t, p - shift)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor
from torch.nn import functional

from asr_kernels.dispatch import Backend
from asr_kernels.lattice.arcs import LOG_ZERO, Graph
from asr_kernels.lattice.op import best_moves
from asr_kernels.lattice.scaling import Floats


def first_kept(occupation: Tensor, frames: list[int], labels: list[int], S: int, backend: Backend) -> Tensor:
    """p (B, T) from node occupations (B, T, U+1), zero outside the lattices; S <= U+1.

    Utterances with too few frames for a band to reach their last label get the one that comes closest. Of
    equally good bands it is the one that shifts early.
    """
    sums = functional.pad(occupation.double().cumsum(dim=-1), (1, 0))
    kept = sums[..., S:] - sums[..., : sums.shape[-1] - S]  # (B, T, P)
    reach = [max(0, T_b - 1) * (S - 1) for T_b in frames]
    starts = [max(1, min(U_b + 2 - S, far + 1)) for U_b, far in zip(labels, reach, strict=True)]
    if backend == "cpu":
        return torch.from_numpy(_best(kept.cpu().numpy(), frames, starts, S)).to(kept.device)
    return _best_by_lattice(kept, frames, starts, S, backend)


def _best(
    kept: Floats, frames: list[int], starts: list[int], S: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """p (B, T) from k (B, T, P); p ends at starts - 1."""
    B, T, P = kept.shape
    # From p = 1-S on, where no band is.
    leaving = np.full((T, B, S - 1 + P), -np.inf)
    leaving[:, :, S - 1 :] = kept.transpose(1, 0, 2)
    best = np.full((T + 1, B, P), -np.inf)
    best[0, :, 0] = 0.0
    step, row, p = leaving.strides
    by_shift = as_strided(leaving[:, :, S - 1 :], (T, S, B, P), (step, -p, row, p))
    for t in range(T):
        leaving[t, :, S - 1 :] += best[t]
        np.maximum.reduce(by_shift[t], axis=0, out=best[t + 1])
    shifts = np.zeros((T, B, P), dtype=np.int16)
    for shift in reversed(range(S)):
        shifts[by_shift[:, shift] == best[1:]] = shift
    first = np.empty((B, T), dtype=np.int64)
    for b, (T_b, start) in enumerate(zip(frames, starts, strict=True)):
        position, came_by = start - 1, shifts[:, b].data
        first[b, max(0, T_b - 1) :] = position
        for t in reversed(range(T_b - 1)):
            position -= came_by[t, position]
            first[b, t] = position
    return first


def _best_by_lattice(kept: Tensor, frames: list[int], starts: list[int], S: int, backend: Backend) -> Tensor:
    """The same, as a best path."""
    _, T, P = kept.shape
    device = kept.device
    # The last frame's band stays where it is, at the last position.
    shift = torch.arange(S, device=device)[:, None, None, None]
    t, p = torch.arange(T, device=device), torch.arange(P, device=device)
    T_b, P_b = (torch.tensor(x, device=device)[:, None, None] for x in (frames, starts))
    stays = t[:, None] + 1 >= T_b
    exists = (t[:, None] < T_b) & (p + shift < P_b) & (~stays | (shift == 0))
    arcs = torch.where(exists, kept, LOG_ZERO)
    moves = tuple((1, shift) for shift in range(S))
    _, path = best_moves(arcs, Graph(moves, frames, starts, finals=1), backend)
    found = (path.sum(dim=0) * p).sum(dim=-1).long()
    return torch.where(t < T_b[..., 0], found, P_b[..., 0] - 1)
