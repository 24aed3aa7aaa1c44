"""The ops as differentiable functions on the chosen backend."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from asr_kernels.attention import cpu, delta_cpu, reference
from asr_kernels.attention.chain import WIDEST
from asr_kernels.attention.delta_cpu import Inputs
from asr_kernels.attention.reference import Attended
from asr_kernels.autograd import once
from asr_kernels.dispatch import Backend


def gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    bonus: Tensor | None,
    backend: Backend,
) -> Attended:
    """Gated linear attention of tensors of one dtype, float32 or float64 (triton: float32)."""
    if backend == "reference":
        return reference.gated_linear_attention(q, k, v, log_decay, state, bonus)
    return Attended(*_Gated.apply(q, k, v, log_decay, state, bonus, backend))


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    backend: Backend,
) -> Attended:
    """The delta rule of tensors of one dtype, float32 or float64 (triton: float32)."""
    if backend == "reference":
        return reference.delta_rule(q, k, v, beta, log_decay, state)
    if log_decay is None:
        log_decay = q.new_zeros(q.shape[:3])
    if q.shape[-1] > WIDEST:
        backend = "cpu"
    by_head = (x.transpose(2, 3) for x in (k, v, beta))
    return Attended(*_Delta.apply(q, *by_head, log_decay, state, backend))


class _Gated(torch.autograd.Function):
    """Keeps the inputs and one state per chunk; see cpu.py and gpu.py."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        state: Tensor,
        bonus: Tensor | None,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        attended, states = _kernels(backend).forward(q, k, v, log_decay, state, bonus)
        ctx.save_for_backward(q, k, v, log_decay, bonus, states)
        ctx.backend = backend
        return cast(tuple[Tensor, Tensor], tuple(attended))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(grad_y.device.type, enabled=False):
            grads = _kernels(ctx.backend).backward(*saved, grad_y, grad_state)
        return *once(grads, *saved[:5], grad_y, grad_state), None


class _Delta(torch.autograd.Function):
    """Keeps the inputs and one state per segment; see delta_cpu.py."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, state, ctx.backend = arguments
        attended, states = delta_cpu.forward(Inputs(*inputs), state, ctx.backend)
        ctx.save_for_backward(*inputs, states)
        return cast(tuple[Tensor, Tensor], tuple(attended))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(grad_y.device.type, enabled=False):
            grads, grad_state_in = delta_cpu.backward(
                Inputs(*inputs), states, grad_y, grad_state, ctx.backend
            )
        return *once((*grads, grad_state_in), *inputs, grad_y, grad_state), None


def _kernels(backend: Backend) -> Any:
    if backend == "triton":
        from asr_kernels.attention import gpu  # triton is imported where it is used

        return gpu
    return cpu
