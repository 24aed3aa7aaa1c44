"""The definition: frame after frame, differentiated by autograd.

h_t = a_t h_{t-1} + b_t                                     linear_scan
log h_t = log(exp(log a_t + log h_{t-1}) + exp(log b_t))    log_linear_scan
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan(a: Tensor, b: Tensor, h0: Tensor, *, reverse: bool, log: bool) -> tuple[Tensor, Tensor]:
    """h (B, T, D) and the last state (B, D) from a, b (B, T, D) and h0 (B, D)."""
    state, states = h0, list[Tensor]()
    frames = list(zip(a.unbind(1), b.unbind(1), strict=True))
    for a_t, b_t in reversed(frames) if reverse else frames:
        state = _log_add(a_t + state, b_t) if log else a_t * state + b_t
        states.append(state)
    if not states:
        return b.clone(), h0.clone()
    return torch.stack(states[::-1] if reverse else states, dim=1), state


def _log_add(x: Tensor, y: Tensor) -> Tensor:
    """torch.logaddexp, whose derivatives may be NaN where a side is -inf: there it is the other side."""
    no_x, no_y = x == -torch.inf, y == -torch.inf
    both = torch.logaddexp(x.masked_fill(no_x, 0.0), y.masked_fill(no_y, 0.0))
    return torch.where(no_x, y, torch.where(no_y, x, both))
