"""What mixers with heads and matrix states have in common: widths, first states, decays, and a norm per head.

Linear attention adds up without a softmax, so what a head reads is as large as what it has heard so far. A
norm of every head by itself takes the size out (Sun et al. 2023, "Retentive network", section 2.2)::

    y = weight * x / rms(x)        centred: y = weight * (x - mean(x)) / std(x) + bias

In float32, whose squares end at 1e38: beyond 1e19, far from what normalised frames give, y is 0.

`StepDecay` is how much Mamba-2 forgets (Dao and Gu 2024, "Transformers are SSMs"), in a frame that lasts dt::

    log_decay = -A dt        dt = softplus(r + bias)

A begins uniform between 1 and 16, dt log-uniform between `dt_min` and `dt_max` for r = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.state import wide


def head_width(width: int, heads: int, *, even: bool = False) -> int:
    """`width` / `heads`; raises ValueError naming what would do if that is no whole (`even`) number."""
    factor = 2 if even else 1
    if width and width % (heads * factor) == 0:
        return width // heads
    fits = [count for count in range(1, width + 1) if width % (count * factor) == 0]
    near = [max(c for c in fits if c < heads), *[c for c in fits if c > heads][:1]] if fits else []
    remedy = (
        f"set heads to {' or '.join(map(str, near))}"
        if near
        else f"make the width a multiple of {heads * factor}"
    )
    kind = "an even width" if even else "the same width"
    raise ValueError(f"expected heads of {kind} within {width} channels, found {heads} heads: {remedy}")


def state_width(dim: int, expansion: float) -> int:
    """`expansion` times `dim`, rounded; raises ValueError if that leaves nothing."""
    width = round(expansion * dim)
    if width < 1:
        raise ValueError(
            f"expected a state of 1 channel at least, found {expansion:g} times {dim}: set expansion to "
            f"{1 / dim:.2g} or more"
        )
    return width


def by_head(x: Tensor, heads: int) -> Tensor:
    """(..., heads, width) of (..., heads * width)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def initial_matrix(
    batch: int, heads: int, keys: int, values: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(B, H, K, V), empty, for weights of `dtype`."""
    return torch.zeros(batch, heads, keys, values, device=device, dtype=wide(dtype))


class Step(NamedTuple):
    """How long a frame lasts, and what that leaves of the state; of the dtype that StepDecay is asked for."""

    dt: Tensor
    """(B, T, H)."""
    log_decay: Tensor
    """(B, T, H), negative."""


class StepDecay(nn.Module):
    """(B, T, H) -> the same, twice; see the module docstring."""

    def __init__(self, heads: int, dt_min: float, dt_max: float) -> None:
        super().__init__()
        low, high = math.log(dt_min), math.log(dt_max)
        start = torch.exp(low + torch.rand(heads) * (high - low))
        self.bias = nn.Parameter(start + torch.log(-torch.expm1(-start)))  # the inverse of softplus
        self.log_rate = nn.Parameter(torch.log(1.0 + 15.0 * torch.rand(heads)))  # log(A)

    def forward(self, r: Tensor, dtype: torch.dtype) -> Step:
        """See the module docstring."""
        dt = functional.softplus(r.to(dtype) + self.bias)
        return Step(dt, -self.log_rate.to(dtype).exp() * dt)


class HeadNorm(nn.Module):
    """(..., heads, width) -> (..., heads * width), of the dtype that came in; see the module docstring."""

    def __init__(self, heads: int, width: int, *, centred: bool = False) -> None:
        super().__init__()
        # Vectors: the optimizer takes what has more dimensions for matrices, and decays it.
        self.weight = nn.Parameter(torch.ones(heads * width))
        self.bias = nn.Parameter(torch.zeros(heads * width)) if centred else None

    def forward(self, x: Tensor) -> Tensor:
        """See the module docstring."""
        y, shape = x.to(wide(x.dtype)), x.shape[-1:]
        if self.bias is None:
            y = functional.rms_norm(y, shape, eps=1e-5).flatten(-2) * self.weight
        else:
            y = functional.layer_norm(y, shape, eps=1e-5).flatten(-2) * self.weight + self.bias
        return y.to(x.dtype)
