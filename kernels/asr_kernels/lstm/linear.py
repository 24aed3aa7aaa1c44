"""Linear recurrences s_t = A_t s_{t-1} + b_t with a K x K matrix per unit, solved in parallel over time.

`solve` is all that newton.py uses. One number per unit, K = 1, is what `linear_scan` is for, in one pass over
memory; matrices are composed by doubling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr_kernels.scan import linear_scan


def solve(a: Tensor, b: Tensor) -> Tensor:
    """s (T, ..., K, D) with s_t = A_t s_{t-1} + b_t and zero before the first frame.

    a is (T, B, K, K, D) and b (T, B, K, D). Beyond K = 1 composes the maps of frames 1, 2, 4, ... apart
    (Hillis and Steele 1986, "Data parallel algorithms"): log2(T) passes over everything.
    """
    if b.shape[2] == 1:
        return linear_scan(a[:, :, 0].transpose(0, 1), b.transpose(0, 1)).h.transpose(0, 1)
    distance = 1
    while distance < len(b):
        early, late = slice(None, -distance), slice(distance, None)
        b = torch.cat((b[:distance], _apply(a[late], b[early]) + b[late]))
        if 2 * distance < len(a):  # the last pass needs no matrices any more
            a = torch.cat((a[:distance], _compose(a[late], a[early])))
        distance *= 2
    return b


def _apply(a: Tensor, s: Tensor) -> Tensor:
    """A s, for each unit by itself."""
    return (a * s[..., None, :, :]).sum(dim=-2)


def _compose(late: Tensor, early: Tensor) -> Tensor:
    """First `early`, then `late`."""
    return (late[..., :, :, None, :] * early[..., None, :, :, :]).sum(dim=-3)
