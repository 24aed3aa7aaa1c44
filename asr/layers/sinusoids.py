"""Sinusoids of absolute positions that come back to where they were, so that a stream may go on for ever.

    s_t = [sin(w_i t) ..., cos(w_i t) ...]      w_i = 10000^(-i / (dim / 2 - 1)),  i = 0 .. dim / 2 - 1

is what Whisper adds to its frames (Vaswani et al. 2017, section 3.5), for 30 seconds at most. Here every w_i
is moved to the nearest whole number of cycles in `PERIOD` frames: s is the same again after that many, and no
two neighbours are farther apart there than anywhere else. What would not turn once in a period stands still
where it is at position `STILL`: such sinusoids only tell how late it is in those 30 seconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PERIOD = 4096
"""Frames: 82 s of 20 ms."""
STILL = 128


def sinusoids(position: Tensor, dim: int) -> Tensor:
    """(..., dim) float32 for positions (...) int64; `dim` is even and at least 4."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=position.device) / (half - 1)
    speed = torch.exp(-math.log(10000.0) * exponent)
    cycles = (speed * PERIOD / (2 * math.pi)).round().long()
    # Whole numbers up to here: far positions are as exact as near ones.
    turned = (position[..., None] % PERIOD * cycles) % PERIOD
    angle = turned * (2 * math.pi / PERIOD) + torch.where(cycles == 0, speed * STILL, 0.0)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()
