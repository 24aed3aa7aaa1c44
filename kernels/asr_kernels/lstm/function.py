"""The recurrence as autograd sees it, for the paths with a backward pass of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asr_kernels.autograd import once
from asr_kernels.dispatch import Backend
from asr_kernels.lstm import cpu
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.steps import Steps


def recurrence(
    cell: Cell,
    x: Tensor,
    parameters: cpu.Parameters,
    state: CellState,
    steps: Steps,
    backend: Backend,
) -> tuple[Tensor, CellState]:
    """y in the dtype of the computation, which is that of the state, and the last state."""
    leaves = [getattr(state, leaf) for leaf in cell.leaves]
    # Without elements, but of x and the state: for second derivatives to raise without keeping them.
    anchor = torch.cat([tensor[:0].flatten() for tensor in (x, *leaves)])
    y, *last = _Recurrence.apply(cell, steps, backend, anchor, x, *parameters, *leaves)
    return y, CellState(**dict(zip(cell.leaves, last, strict=True)))


class _Recurrence(torch.autograd.Function):
    """apply(cell, steps, backend, anchor, x, *parameters, *leaves): (y, *leaves)."""

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, steps: Steps, backend: Backend, anchor: Tensor, *tensors: Any
    ) -> tuple[Tensor, ...]:
        x, parameters, leaves = tensors[0], cpu.Parameters(*tensors[1:5]), tensors[5:]
        state = CellState(**dict(zip(cell.leaves, leaves, strict=True)))
        trace = _kernels(backend).forward(cell, x, parameters, state, steps)
        ctx.save_for_backward(anchor, *parameters, *trace.saved)
        ctx.options = cell, steps, backend, x.dtype
        return trace.y, *(getattr(trace.state, leaf) for leaf in cell.leaves)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cell, steps, backend, dtype = ctx.options
        anchor, *rest = ctx.saved_tensors
        parameters, saved = cpu.Parameters(*rest[:4]), tuple(rest[4:])
        grad_state = CellState(**dict(zip(cell.leaves, grads[1:], strict=True)))
        with torch.no_grad(), torch.autocast(grads[0].device.type, enabled=False):
            found = _kernels(backend).backward(cell, parameters, saved, steps, grads[0], grad_state)
        state = (getattr(found.state, leaf) for leaf in cell.leaves)
        results: list[Tensor | None] = [found.x.to(dtype), *found.parameters, *state]
        return None, None, None, None, *once(results, anchor, *parameters, *grads)


def _kernels(backend: Backend) -> Any:
    if backend == "triton":
        from asr_kernels.lstm import gpu  # triton is imported where it is used

        return gpu
    return cpu
