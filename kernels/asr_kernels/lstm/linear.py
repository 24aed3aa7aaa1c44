"""Linear recurrences s_t = A_t s_{t-1} + b_t with a K x K matrix per unit, solved in parallel over time.

`solve` is all that newton.py uses. For K = 1 it is what an elementwise linear scan computes, so such an op
can do that case here; 2 x 2 blocks it cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor


def solve(a: Tensor, b: Tensor) -> Tensor:
    """s (T, ..., K, D) with s_t = A_t s_{t-1} + b_t and zero before the first frame.

    a is (T, ..., K, K, D) and b (T, ..., K, D). Composes the maps of frames 1, 2, 4, ... apart (Hillis and
    Steele 1986, "Data parallel algorithms"): log2(T) passes over everything.
    """
    distance = 1
    while distance < len(b):
        early, late = slice(None, -distance), slice(distance, None)
        b = torch.cat((b[:distance], apply(a[late], b[early]) + b[late]))
        if 2 * distance < len(a):  # the last pass needs no matrices any more
            a = torch.cat((a[:distance], _compose(a[late], a[early])))
        distance *= 2
    return b


def apply(a: Tensor, s: Tensor) -> Tensor:
    """A s, for each unit by itself."""
    return (a * s[..., None, :, :]).sum(dim=-2)


def _compose(late: Tensor, early: Tensor) -> Tensor:
    """First `early`, then `late`."""
    return (late[..., :, :, None, :] * early[..., None, :, :, :]).sum(dim=-3)
