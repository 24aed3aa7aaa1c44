"""Lengths and masks: the one place where seconds become samples and frames.

Seconds are floats at the edges of the toolkit, samples and frames are integers inside. Every conversion
rounds half up, once, here, so that a recording, its manifest and its features agree on how long it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Nearest sample, halves up."""
    return math.floor(seconds * sample_rate + 0.5)


def samples_to_seconds(samples: int, sample_rate: int) -> float:
    """Exact duration of `samples`."""
    return samples / sample_rate


def seconds_to_frames(seconds: float, frame_shift_s: float) -> int:
    """Nearest frame, halves up."""
    return math.floor(seconds / frame_shift_s + 0.5)


def frame_count(samples: int, window: int, shift: int, snip_edges: bool) -> int:
    """Number of analysis frames of `samples`, as Kaldi counts them (feature-window.cc, NumFrames).

    With `snip_edges` only whole windows count; without, one frame per `shift`, halves up.
    """
    if snip_edges:
        return 0 if samples < window else 1 + (samples - window) // shift
    return (samples + shift // 2) // shift


def subsampled(frames: int, factor: int) -> int:
    """Frames left after time reduction by `factor`: every input frame counts, so the quotient rounds up."""
    return -(-frames // factor)


def padding_mask(lengths: Tensor, max_length: int | None = None) -> Tensor:
    """Boolean (B, T) mask that is True on the valid frames; `lengths` is int64 (B,)."""
    size = int(lengths.max()) if max_length is None and lengths.numel() else max_length or 0
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def reverse_frames(x: Tensor, x_lengths: Tensor) -> Tensor:
    """Turn the valid frames of each signal (B, T, D) around; the padding stays where it is."""
    time, lengths = torch.arange(x.shape[1], device=x.device)[None], x_lengths[:, None]
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return x.gather(1, index[:, :, None].expand_as(x))
