"""The delta rule by chunks of frames, as matrix products, on every device.

The N steps of C frames are M = C N steps in a row, j = 1..M, of which the first of a frame has its decay and
the last is read. Every step adds one outer product k_j u_j^T to the state, decayed, so (Yang et al. 2024,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", with N steps as in Siems et al.
2025, and decays as in Yang, Kautz & Hatamizadeh 2024), with b_j the sum of the log-decays up to step j::

    S_j = exp(b_j) S_0 + sum_{i<=j} exp(b_j - b_i) k_i u_i^T
    u_j = beta_j (v_j - exp(b_j) S_0^T k_j - sum_{i<j} exp(b_j - b_i) (k_j . k_i) u_i)

which is a triangular system for all u of the chunk at once. It is solved for what does not depend on S_0, in
all chunks together, and what does follows from chunk to chunk::

    (I + L) [X W] = diag(beta) [V  diag(exp b) K]        L_ji = beta_j exp(b_j - b_i) (k_j . k_i) for i < j
    U = X - W S_0        Y = diag(exp b) Q S_0 + P U        S_M = exp(b_M) S_0 + (diag(exp(b_M - b)) K)^T U

The last is `chain`, in Triton where the backend is; all else is products for all chunks. All exponents are at
most 0. The backward pass goes through each segment again, by autograd, from the state before it: only these
states are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.attention.chain import chain
from asr_kernels.attention.chunkwise import NOTHING
from asr_kernels.attention.cpu import SEGMENT, Chunks
from asr_kernels.attention.reference import Attended
from asr_kernels.dispatch import Backend

# Steps of a chunk, at most, and at least one frame.
STEPS = 32
# Numbers of a segment on a GPU, in each of the inputs.
SEGMENT_ON_GPU = 1 << 25


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


def forward(inputs: Inputs, state: Tensor, backend: Backend) -> tuple[Attended, Tensor]:
    """The result, and the states (segments, B, H, K, V) before every segment, which `backward` needs."""
    chunks = _chunks(inputs, backend)
    y = inputs.v.new_empty(*inputs.q.shape[:3], inputs.v.shape[-1])
    states = []
    for part in chunks.segments():
        states.append(state)
        read, state = _segment(Inputs(*(chunks.take(x, part) for x in inputs)), state, backend)
        chunks.put(y, part, read)
    return Attended(y, state.clone()), torch.stack(states) if states else state.new_empty(0, *state.shape)


def backward(
    inputs: Inputs, states: Tensor, grad_y: Tensor, grad_state: Tensor, backend: Backend
) -> tuple[Inputs, Tensor]:
    """Gradients at the inputs and at the first state, from those at y and at the last state."""
    chunks = _chunks(inputs, backend)
    grads = Inputs(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs))
    parts = list(chunks.segments())
    for part, before in zip(reversed(parts), states.flip(0), strict=True):
        sources = Inputs(*(chunks.take(x, part).detach().requires_grad_() for x in inputs))
        start = before.detach().requires_grad_()
        with torch.enable_grad():
            outputs = _segment(sources, start, backend)
        *found, grad_state = torch.autograd.grad(
            outputs, (*sources, start), (chunks.take(grad_y, part), grad_state)
        )
        for grad, one in zip(grads, found, strict=True):
            chunks.put(grad, part, one)
    return grads, grad_state


def _chunks(inputs: Inputs, backend: Backend) -> Chunks:
    B, T, H, N, K = inputs.k.shape
    longest = 1 << max(0, (STEPS // N).bit_length() - 1)
    # On a GPU a launch costs more than a segment that leaves the cache.
    segment = SEGMENT_ON_GPU if backend == "triton" else SEGMENT
    return Chunks(B, T, H, N * max(K, inputs.v.shape[-1]), longest, segment)


def _segment(inputs: Inputs, state: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """What is read (n B H, C, V), and the state (B, H, K, V) behind n chunks; inputs (n B H, C, ...)."""
    q, k, v, beta, log_decay = inputs
    N, (B, H, K, V) = k.shape[2], state.shape
    k, v, beta = (x.flatten(1, 2) for x in (k, v, beta[..., None]))
    frames = log_decay.double().clamp(min=NOTHING).cumsum(dim=1)
    steps = frames.repeat_interleave(N, dim=1)
    since, until = _decay(steps, q)[..., None], _decay(steps[:, -1:] - steps, q)[..., None]
    system = beta * k @ k.mT * _decay(_pairs(steps, steps, -1), q)
    right = torch.cat((beta * v, beta * since * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, stale = solved.view(-1, B, H, *solved.shape[1:]).split((V, K), dim=-1)
    last, keys = since[:, -1].view(-1, B, H), (k * until).view(-1, B, H, *k.shape[1:])
    chained = chain(fresh, stale, keys, last, state, backend)
    scores = q @ k.mT * _decay(_pairs(frames, steps, N - 1, N), q)
    read = scores @ chained.updates.flatten(0, 2)
    read = read + _decay(frames, q)[..., None] * (q @ chained.befores.flatten(0, 2))
    return read, chained.state


def _decay(exponents: Tensor, like: Tensor) -> Tensor:
    return exponents.to(like.dtype).exp()


def _pairs(later: Tensor, earlier: Tensor, diagonal: int, stride: int = 1) -> Tensor:
    """later_j - earlier_i of the pairs that there are: i <= stride j + diagonal; -inf elsewhere."""
    j = torch.arange(later.shape[1], device=later.device)[:, None]
    i = torch.arange(earlier.shape[1], device=later.device)
    return (later[:, :, None] - earlier[:, None]).masked_fill(i > stride * j + diagonal, -torch.inf)
