"""Complex linear recurrences over a piece of a stream, with the state as real numbers, the real parts first.

A state of real numbers is converted, stored and compared like any other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr_kernels import linear_scan


def complex_scan(a: Tensor, b: Tensor, state: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t, complex (B, T, D), and the state behind it, (B, 2 D) as it came in."""
    start = torch.complex(*state.chunk(2, dim=-1))
    h, last = linear_scan(a, b, start, lengths=lengths)
    return h, as_pairs(last)


def as_pairs(z: Tensor) -> Tensor:
    """(..., 2 D) real numbers of (..., D) complex ones, the real parts first."""
    return torch.cat((z.real, z.imag), dim=-1)
