"""CTC forward-backward in Triton, with one score per state; the recursion is that of cpu.py, in logarithms.

A program per utterance and direction walks over the frames and treats the states of a frame as vectors of
BLOCK. Frames are rows [t, s] in global memory, one barrier apart, so any number of states is treated block
by block. beta is alpha of the lattice turned around. A second kernel turns both into the gradient, each
program with some frames: the posteriors of a label's states one by one, those of blank summed up.

log alpha is kept in float64 and only exp and log are taken in float32, of differences: see lattice/gpu.py.
The scores of the next block are loaded while the current one is added up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from asr_kernels.lattice.arcs import Lattice
from asr_kernels.lattice.gpu import LOG_ZERO, UNREACHED, log_add

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["B", "T", "width"]

# States that a program of the recursion treats at once; frames and columns of one of the gradient.
_STATES = 1024
_FRAMES, _COLUMNS = 4, 128


class Solution(NamedTuple):
    """Outcome for a batch."""

    log_total: Tensor
    """(B,) float32: log of the sum over all paths; -inf where no path exists."""
    gradient: Tensor | None
    """(B, T, U+1) float32: of minus log_total at the scores; NaN where that is NaN."""


def forward_backward(scores: Tensor, lattice: Lattice, *, gradient: bool = True) -> Solution:
    """From log-probabilities (B, T, U+1) of blank and of the labels at each frame."""
    scores = scores.contiguous()
    B, T, width = scores.shape
    targets = lattice.targets
    skips = functional.pad(targets[:, 1:] != targets[:, :-1], (2 if width > 1 else 1, 0))
    skips = skips.to(
        scores.device, torch.int8
    ).contiguous()  # (B, U+1) by label; the first has none before it
    lengths = torch.tensor([lattice.frames, lattice.labels], device=scores.device)
    directions = 2 if gradient else 1
    alpha = scores.new_empty((directions, B, max(T, 1), 2 * width - 1), dtype=torch.float64)
    totals = alpha.new_empty(B)
    block = min(_STATES, max(32, triton.next_power_of_2(2 * width - 1)))
    _alpha_kernel[(B, directions)](
        scores, skips, alpha, totals, lengths[0], lengths[1],
        B, T, width, BLOCK=block, num_warps=max(1, min(8, block // 64)),
    )  # fmt: skip
    grad = None
    if gradient:
        grad = torch.empty_like(scores)
        if T > 0:
            _gradient_kernel[(triton.cdiv(T, _FRAMES), B)](
                scores, alpha, totals, grad, lengths[0], lengths[1],
                B, T, width, FRAMES=_FRAMES, COLUMNS=_COLUMNS, num_warps=4,
            )  # fmt: skip
    return Solution(totals.to(scores.dtype), grad)


@triton.jit(do_not_specialize=_VARYING)
def _alpha_kernel(
    scores, skips, alpha, totals, frames, labels, B, T, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B, directions): fill alpha (directions, B, T, S); the first direction gives the totals."""
    b = tl.program_id(0).to(tl.int64)
    turned = tl.program_id(1)
    T_b = tl.load(frames + b).to(tl.int32)
    S_b = 2 * tl.load(labels + b).to(tl.int32) + 1
    S = 2 * width - 1
    scores += b * T * width
    skips += b * width
    alpha += (turned.to(tl.int64) * B + b) * T * S
    blocks = tl.cdiv(S_b, BLOCK)
    last = T_b * blocks
    score = _load_block(scores, 0, last, blocks, turned, T_b, S_b, width, BLOCK)
    for i in range(last):
        following = _load_block(scores, i + 1, last, blocks, turned, T_b, S_b, width, BLOCK)
        t = i // blocks
        s = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = s < S_b
        # A label that differs from the one before needs no blank between; turned, the one behind is before.
        label = tl.where(turned == 1, S_b + 2 - s, s + 1) // 2
        skip = tl.load(skips + label, mask=inside & (s >= 2) & (s % 2 == 1), other=0) != 0
        row = alpha + (t - 1).to(tl.int64) * S + s
        value = tl.load(row, mask=inside & (t > 0), other=LOG_ZERO)
        value = log_add(value, tl.load(row - 1, mask=inside & (t > 0) & (s >= 1), other=LOG_ZERO), False)
        value = log_add(value, tl.load(row - 2, mask=skip & (t > 0), other=LOG_ZERO), False)
        value = tl.where(t > 0, value, tl.where(s < 2, 0.0, LOG_ZERO)) + score
        tl.store(row + S, value, mask=inside)
        if i % blocks == blocks - 1:
            tl.debug_barrier()
        score = following
    if turned == 0:
        end = alpha + (T_b - 1).to(tl.int64) * S + S_b - 1
        total = tl.load(end, mask=T_b > 0, other=LOG_ZERO)
        total = log_add(total, tl.load(end - 1, mask=(T_b > 0) & (S_b > 1), other=LOG_ZERO), False)
        tl.store(totals + b, tl.where(total < UNREACHED, float("-inf"), total))


@triton.jit
def _load_block(scores, i, last, blocks, turned, T_b, S_b, width, BLOCK: tl.constexpr):
    """(BLOCK,): scores of the i-th block of states, at their frame."""
    s = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
    t = i // blocks
    t = tl.where(turned == 1, T_b - 1 - t, t)
    state = tl.where(turned == 1, S_b - 1 - s, s)
    column = tl.where(s % 2 == 1, (state + 1) // 2, 0)
    inside = (s < S_b) & (i < last)
    score = tl.load(scores + t.to(tl.int64) * width + column, mask=inside, other=0.0)
    return tl.where(score < LOG_ZERO, LOG_ZERO, score).to(tl.float64)


@triton.jit(do_not_specialize=_VARYING)
def _gradient_kernel(
    scores, alpha, totals, grad, frames, labels, B, T, width,
    FRAMES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of frames, B): grad (B, T, width) = -alpha beta / (e P), zero outside the lengths."""
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * FRAMES + tl.arange(0, FRAMES)[:, None]
    T_b = tl.load(frames + b)
    U_b = tl.load(labels + b)
    S = 2 * width - 1
    total = tl.load(totals + b)
    T_b = tl.where(total == float("-inf"), 0, T_b)  # no path, no posterior
    valid = t < T_b
    forward = alpha + b * T * S + t * S
    backward = alpha + (B + b) * T * S + (T_b - 1 - t) * S + 2 * U_b
    row = scores + (b * T + t) * width
    out = grad + (b * T + t) * width
    blank = tl.load(row, mask=valid, other=0.0)
    blank = tl.where(blank < LOG_ZERO, LOG_ZERO, blank).to(tl.float64)
    blanks = tl.zeros((FRAMES, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        u = first + tl.arange(0, COLUMNS)[None, :]
        there = valid & (u <= U_b)
        share = tl.load(forward + 2 * u, mask=there, other=LOG_ZERO)
        share += tl.load(backward - 2 * u, mask=there, other=LOG_ZERO)
        blanks += tl.where(there, tl.exp((share - blank - total).to(tl.float32)), 0.0)
        there &= u >= 1
        label = tl.load(row + u, mask=there, other=0.0)
        label = tl.where(label < LOG_ZERO, LOG_ZERO, label).to(tl.float64)
        share = tl.load(forward + 2 * u - 1, mask=there, other=LOG_ZERO)
        share += tl.load(backward - 2 * u + 1, mask=there, other=LOG_ZERO)
        own = tl.where(there, -tl.exp((share - label - total).to(tl.float32)), 0.0)
        tl.store(out + u, own, mask=(t < T) & (u >= 1) & (u < width))
    tl.store(out, -tl.sum(blanks, axis=1)[:, None], mask=t < T)
