"""Gated linear attention by chunks of frames, as matrix products; serves tensors on every device.

With S_0 the state before a chunk and a_t = exp(g_t), the frames of the chunk see::

    y_t = S_0^T (q_t prod_{r<=t} a_r) + sum_{s<=t} P_ts v_s        P_ts = sum_c q_tc k_sc prod_{s<r<=t} a_rc
    S_C = diag(prod_r a_r) S_0 + sum_s (k_s prod_{r>s} a_r) v_s^T

(with a bonus, the products for y end before t and P_tt has the bonus). All is products of matrices once the
scores P are there: chunkwise.py. The backward pass is the same forms turned around; it computes the scores
anew, from the inputs and the states between the chunks, which are all that is kept of the forward pass.

Chunks that do not depend on each other, a segment, go through the products together, as many as the caches
hold; only the states are passed on one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.attention.chunkwise import Channelwise, Headwise
from asr_kernels.attention.reference import Attended

# Frames of a chunk, a power of two, and elements of one tensor of a segment.
CHUNK = 64
SEGMENT = 1 << 17


class Gradients(NamedTuple):
    """At the inputs, of their shapes."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    state: Tensor
    bonus: Tensor | None


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, bonus: Tensor | None
) -> tuple[Attended, Tensor]:
    """The result, and the states (chunks, B H, K, V) before every chunk, which `backward` needs."""
    (B, T, H, K), V = q.shape, v.shape[-1]
    chunks = Chunks(B, T, H, max(K, V))
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    states = state.new_empty(chunks.count + 1, B * H, K, V)
    states[0] = state.flatten(0, 1)
    for part in chunks.segments():
        values = chunks.take(v, part)
        scores = _scores(chunks, part, q, k, log_decay, bonus)
        update = scores.k_end.mT @ values
        _pass_on(states[part.start : part.stop + 1], scores.decay, torch.unflatten(update, 0, (-1, B * H)))
        read = scores.matrix @ values
        read += scores.q_start @ states[part.start : part.stop].flatten(0, 1)
        chunks.put(y, part, read)
    return Attended(y, torch.unflatten(states[-1], 0, (B, H)).clone()), states


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    states: Tensor,
    grad_y: Tensor,
    grad_state: Tensor,
) -> Gradients:
    """Gradients from those at y and at the last state."""
    (B, T, H, K), V = q.shape, v.shape[-1]
    chunks = Chunks(B, T, H, max(K, V))
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, log_decay)]
    grad_bonus = None if bonus is None else torch.zeros_like(bonus)
    after = grad_state.flatten(0, 1)
    for part in reversed(list(chunks.segments())):
        values, dy = chunks.take(v, part), chunks.take(grad_y, part)
        scores = _scores(chunks, part, q, k, log_decay, bonus)
        before = states[part.start : part.stop]
        # [c]: at the state behind chunk c of the segment; what comes out in front is the next segment's.
        behind = torch.empty_like(before)
        update = torch.unflatten(scores.q_start.mT @ dy, 0, (-1, B * H))
        factors = torch.unflatten(scores.decay, 0, (-1, B * H))[..., None]
        for c in range(len(part) - 1, -1, -1):
            behind[c] = after
            after = torch.addcmul(update[c], after, factors[c])
        flat, before = behind.flatten(0, 1), before.flatten(0, 1)
        chunks.put(grads[2], part, (scores.matrix.mT @ dy).add_(scores.k_end @ flat))
        dq, dk, dg, du = scores.backward(
            dy @ values.mT, dy @ before.mT, values @ flat.mT, (before * flat).sum(dim=-1)
        )
        for grad, found in zip((*grads[:2], grads[3]), (dq, dk, dg), strict=True):
            chunks.put(grad, part, found)
        if grad_bonus is not None and du is not None:
            grad_bonus += torch.unflatten(du, 0, (-1, H)).sum(dim=0)
    dq, dk, dv, dg = grads
    return Gradients(dq, dk, dv, dg, torch.unflatten(after, 0, (B, H)), grad_bonus)


class Chunks:
    """How the frames of (B, T, H, ...) are cut: of a segment, (chunks B H, C, ...), padded by 0."""

    def __init__(
        self, B: int, T: int, H: int, width: int, longest: int = CHUNK, segment: int = SEGMENT
    ) -> None:
        self._B, self._T, self._H = B, T, H
        self.C = min(longest, 1 << max(T - 1, 0).bit_length())
        self.count = -(-T // self.C)
        self._together = max(1, segment // (B * H * self.C * width))

    def segments(self) -> Iterator[range]:
        """Ranges of chunks, in order."""
        for first in range(0, self.count, self._together):
            yield range(first, min(self.count, first + self._together))

    def take(self, x: Tensor, part: range) -> Tensor:
        """(n B H, C, ...) of (B, T, H, ...)."""
        frames = x[:, part.start * self.C : part.stop * self.C]
        missing = len(part) * self.C - frames.shape[1]
        if missing:
            frames = torch.cat((frames, frames.new_zeros(self._B, missing, *x.shape[2:])), dim=1)
        return torch.unflatten(frames, 1, (len(part), self.C)).movedim(0, 1).transpose(2, 3).flatten(0, 2)

    def put(self, x: Tensor, part: range, segment: Tensor) -> None:
        """The inverse of `take`."""
        frames = torch.unflatten(segment, 0, (len(part), self._B, self._H)).transpose(2, 3).movedim(0, 1)
        into = x[:, part.start * self.C : part.stop * self.C]
        whole = into.shape[1] // self.C
        torch.unflatten(into[:, : whole * self.C], 1, (whole, self.C)).copy_(frames[:, :whole])
        if whole < len(part):
            into[:, whole * self.C :] = frames[:, whole, : into.shape[1] - whole * self.C]

    def per_head(self, x: Tensor, part: range) -> Tensor:
        """(n B H, 1, ...) of (H, ...)."""
        return x.repeat(len(part) * self._B, *(1,) * (x.ndim - 1)).unsqueeze(1)


def _scores(
    chunks: Chunks, part: range, q: Tensor, k: Tensor, log_decay: Tensor, bonus: Tensor | None
) -> Channelwise | Headwise:
    form = Channelwise if log_decay.ndim == 4 else Headwise
    weight = None if bonus is None else chunks.per_head(bonus, part)
    return form(chunks.take(q, part), chunks.take(k, part), chunks.take(log_decay, part), weight)


def _pass_on(states: Tensor, decay: Tensor, update: Tensor) -> None:
    """Fill states[1:] from states[0]: (n+1, B H, K, V), decay (n B H, K or 1), update (n, B H, K, V)."""
    factors = torch.unflatten(decay, 0, (len(update), -1))[..., None]
    for c in range(len(update)):
        torch.addcmul(update[c], states[c], factors[c], out=states[c + 1])
