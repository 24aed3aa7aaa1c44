"""What follows from chunk to chunk in the delta rule (delta_cpu.py), and all that does::

    U_c = X_c - W_c S_c        S_{c+1} = l_c S_c + K_c^T U_c

Backwards, with the gradients from outside at every U_c and S_c and G_{c+1} the one at S_{c+1}::

    dX_c = dU_c + K_c G_{c+1}    G_c = dS_c + l_c G_{c+1} - W_c^T dX_c
    dW_c = -dX_c S_c^T           dK_c = U_c G_{c+1}^T         dl_c = sum(G_{c+1} * S_c)

In Triton each direction is one launch, in which a program keeps some columns of a head's state on chip; the
last line is three products for all chunks at once. Elsewhere it is a loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr_kernels.dispatch import Backend

WIDEST = 128
"""Keys of a head that the Triton kernels keep on chip, at most."""


class Chained(NamedTuple):
    """What comes out."""

    updates: Tensor
    """U (n, B, H, M, V)."""
    befores: Tensor
    """S before every chunk (n, B, H, K, V)."""
    state: Tensor
    """And behind the last (B, H, K, V)."""


def chain(
    fresh: Tensor, stale: Tensor, keys: Tensor, last: Tensor, state: Tensor, backend: Backend
) -> Chained:
    """From X (n, B, H, M, V), W and K (n, B, H, M, K), l (n, B, H), n at least 1, and S_0 (B, H, K, V)."""
    if backend == "triton":
        return Chained(*_Chain.apply(fresh, stale, keys, last, state))
    turned, factors = keys.mT, last[..., None, None]
    updates, befores = [], []
    for c in range(len(fresh)):
        befores.append(state)
        updates.append(fresh[c] - stale[c] @ state)
        state = factors[c] * state + turned[c] @ updates[c]
    return Chained(torch.stack(updates), torch.stack(befores), state)


class _Chain(torch.autograd.Function):
    """apply(fresh, stale, keys, last, state): Chained, in float32."""

    @staticmethod
    def forward(
        ctx: Any, fresh: Tensor, stale: Tensor, keys: Tensor, last: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from asr_kernels.attention import chain_gpu  # triton is imported where it is used

        fresh, stale, keys, last, state = (x.contiguous() for x in (fresh, stale, keys, last, state))
        found = chain_gpu.forward(fresh, stale, keys, last, state)
        ctx.save_for_backward(stale, keys, last, *found[:2])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        from asr_kernels.attention import chain_gpu

        stale, keys, last, updates, befores = ctx.saved_tensors
        at_fresh, behind, at_state = chain_gpu.backward(
            stale, keys, last, *(grad.contiguous() for grad in grads)
        )
        at_stale, at_keys = -(at_fresh @ befores.mT), updates @ behind.mT
        return at_fresh, at_stale, at_keys, (behind * befores).sum(dim=(-2, -1)), at_state
