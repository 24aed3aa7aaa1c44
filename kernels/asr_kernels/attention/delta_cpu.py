"""The delta rule by chunks of frames, as matrix products; serves tensors on every device.

The N steps of C frames are M = C N steps in a row, j = 1..M, of which the first of a frame has its decay and the
last is read. Every step adds one outer product k_j u_j^T to the state, decayed, so (Yang et al. 2024,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", with N steps as in Siems et al.
2025, and decays as in Yang, Kautz & Hatamizadeh 2024), with b_j the sum of the log-decays up to step j::

    S_j = exp(b_j) S_0 + sum_{i<=j} exp(b_j - b_i) k_i u_i^T
    u_j = beta_j (v_j - exp(b_j) S_0^T k_j - sum_{i<j} exp(b_j - b_i) (k_j . k_i) u_i)

which is a triangular system for all u of the chunk at once. It is solved for what does not depend on S_0, in all
chunks together, and what does follows from chunk to chunk::

    (I + L) [X W] = diag(beta) [V  diag(exp b) K]        L_ji = beta_j exp(b_j - b_i) (k_j . k_i) for i < j
    U = X - W S_0        Y = diag(exp b) Q S_0 + P U        S_M = exp(b_M) S_0 + (diag(exp(b_M - b)) K)^T U

All exponents are at most 0. The backward pass goes through each segment again, by autograd, from the state
before it: only these states are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.attention.chunkwise import NOTHING
from asr_kernels.attention.cpu import Chunks
from asr_kernels.attention.reference import Attended

# Steps of a chunk, at most, and at least one frame.
STEPS = 64


class Inputs(NamedTuple):
    """Those of reference.py, with the heads before the steps, and zeros for no decay."""

    q: Tensor
    """(B, T, H, K)."""
    k: Tensor
    """(B, T, H, N, K)."""
    v: Tensor
    """(B, T, H, N, V)."""
    beta: Tensor
    """(B, T, H, N)."""
    log_decay: Tensor
    """(B, T, H)."""


def forward(inputs: Inputs, state: Tensor) -> tuple[Attended, Tensor]:
    """The result, and the states (segments, B, H, K, V) before every segment, which `backward` needs."""
    chunks = _chunks(inputs)
    y = inputs.v.new_empty(*inputs.q.shape[:3], inputs.v.shape[-1])
    states = []
    for part in chunks.segments():
        states.append(state)
        read, state = _segment(*(chunks.take(x, part) for x in inputs), state)
        chunks.put(y, part, read)
    return Attended(y, state.clone()), torch.stack(states) if states else state.new_empty(0, *state.shape)


def backward(inputs: Inputs, states: Tensor, grad_y: Tensor, grad_state: Tensor) -> tuple[Inputs, Tensor]:
    """Gradients at the inputs and at the first state, from those at y and at the last state."""
    chunks = _chunks(inputs)
    grads = Inputs(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs))
    parts = list(chunks.segments())
    for part, before in zip(reversed(parts), states.flip(0), strict=True):
        sources = [chunks.take(x, part).detach().requires_grad_() for x in inputs]
        start = before.detach().requires_grad_()
        with torch.enable_grad():
            outputs = _segment(*sources, start)
        *found, grad_state = torch.autograd.grad(
            outputs, (*sources, start), (chunks.take(grad_y, part), grad_state)
        )
        for grad, one in zip(grads, found, strict=True):
            chunks.put(grad, part, one)
    return grads, grad_state


def _chunks(inputs: Inputs) -> Chunks:
    B, T, H, N, K = inputs.k.shape
    longest = 1 << max(0, (STEPS // N).bit_length() - 1)
    return Chunks(B, T, H, N * max(K, inputs.v.shape[-1]), longest)


def _segment(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """What is read (n B H, C, V), and the state (B, H, K, V) behind n chunks.

    q (n B H, C, K), k (n B H, C, N, K), v (n B H, C, N, V), beta (n B H, C, N), log_decay (n B H, C).
    """
    N = k.shape[2]
    k, v, beta = (x.flatten(1, 2) for x in (k, v, beta[..., None]))
    frames = log_decay.double().clamp(min=NOTHING).cumsum(dim=1)
    steps = frames.repeat_interleave(N, dim=1)
    start, end = _decay(frames, q), _decay(steps[:, -1:] - steps, q)
    system = (beta * k @ k.mT * _decay(_pairs(steps, steps, -1), q)).tril(-1)
    right = torch.cat((beta * v, beta * _decay(steps, q)[..., None] * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, stale = (
        x.unflatten(0, (-1, *state.shape[:2])) for x in solved.split((v.shape[-1], k.shape[-1]), -1)
    )
    last = _decay(steps[:, -1], q).unflatten(0, fresh.shape[:3])[..., None, None]
    keys = (k * end[..., None]).mT.unflatten(0, fresh.shape[:3])
    befores, updates = [], []
    for c in range(len(fresh)):
        befores.append(state)
        updates.append(fresh[c] - stale[c] @ state)
        state = last[c] * state + keys[c] @ updates[c]
    scores = q @ k.mT * _decay(_pairs(frames, steps, N - 1, N), q)
    read = scores @ torch.stack(updates).flatten(0, 2)
    return read + start[..., None] * (q @ torch.stack(befores).flatten(0, 2)), state


def _decay(exponents: Tensor, like: Tensor) -> Tensor:
    return exponents.to(like.dtype).exp()


def _pairs(later: Tensor, earlier: Tensor, diagonal: int, stride: int = 1) -> Tensor:
    """later_j - earlier_i of the pairs that there are: i <= stride j + diagonal; -inf elsewhere."""
    j = torch.arange(later.shape[1], device=later.device)[:, None]
    i = torch.arange(earlier.shape[1], device=later.device)
    return (later[:, :, None] - earlier[:, None]).masked_fill(i > stride * j + diagonal, -torch.inf)
