"""Which label positions to keep at each frame: the band with the most occupation a path can follow.

A band of S positions starts at p(t), with p(0) = 0, 0 <= p(t+1) - p(t) < S so that a path can pass from one
frame's positions to the next one's, and p(T-1) + S > U so that it arrives. Kuang et al. 2022 take the best
p(t) of each frame and mend what does not fit (section 3.3); here the sum over frames of the occupation kept,

    sum_t sum_{p(t) <= u < p(t)+S} o(t, u)

is as large as such a band can make it. That is the best path of a lattice whose states are p and whose
moves consume a frame and shift the band by 0 to S-1, so it takes no code of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels.dispatch import Backend
from asr_kernels.lattice.arcs import LOG_ZERO, Graph
from asr_kernels.lattice.op import best_moves


def first_kept(occupation: Tensor, frames: list[int], labels: list[int], S: int, backend: Backend) -> Tensor:
    """p (B, T) from node occupations (B, T, U+1), zero outside the lattices; S <= U+1.

    Utterances with too few frames for a band to reach their last label get the one that comes closest.
    """
    _, T, width = occupation.shape
    device = occupation.device
    kept = functional.pad(occupation.double().cumsum(dim=-1), (1, 0)).unfold(-1, S + 1, 1)
    kept = kept[..., -1] - kept[..., 0]  # (B, T, P): occupation of the S positions from p on
    reach = [max(0, T_b - 1) * (S - 1) for T_b in frames]
    starts = [max(1, min(U_b + 2 - S, far + 1)) for U_b, far in zip(labels, reach, strict=True)]
    moves = tuple((1, shift) for shift in range(S))
    # The last frame's band stays where it is, at the last position.
    shift = torch.arange(S, device=device)[:, None, None, None]
    t, p = torch.arange(T, device=device), torch.arange(width + 1 - S, device=device)
    T_b, P_b = (torch.tensor(x, device=device)[:, None, None] for x in (frames, starts))
    stays = t[:, None] + 1 >= T_b
    exists = (t[:, None] < T_b) & (p + shift < P_b) & (~stays | (shift == 0))
    arcs = torch.where(exists, kept, LOG_ZERO)
    _, path = best_moves(arcs, Graph(moves, frames, starts, finals=1), backend)
    found = (path.sum(dim=0) * p).sum(dim=-1).long()
    return torch.where(t < T_b[..., 0], found, P_b[..., 0] - 1)
