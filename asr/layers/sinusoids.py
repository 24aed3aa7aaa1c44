"""Sinusoids of absolute positions, which begin anew after 30 seconds, so that a stream may go on for ever.

    s_t = [sin(w_i t) ..., cos(w_i t) ...]      w_i = 10000^(-i / (dim / 2 - 1)),  i = 0 .. dim / 2 - 1

is what Whisper adds to its frames (Vaswani et al. 2017, section 3.5), for `PERIOD` frames at most; here t is
what is left of the position after division by that. What was tried instead, every w_i moved to a whole number
of cycles per period, so that no two neighbours are farther apart than others, is further from what Whisper
knows than a jump every 30 seconds (asr/encoders/README.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PERIOD = 1500
"""Frames of 20 ms: what Whisper hears at once."""


def sinusoids(position: Tensor, dim: int) -> Tensor:
    """(..., dim) float32 for positions (...) int64; `dim` is even and at least 4."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=position.device) / (half - 1)
    speed = torch.exp(-math.log(10000.0) * exponent)
    angle = (position % PERIOD)[..., None] * speed
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()
