"""`recurrence`: check the inputs, then the cell over the whole sequence; README.md tells the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels import dispatch
from asr_kernels.dispatch import Backend
from asr_kernels.lstm import inputs, reference
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.cpu import Parameters
from asr_kernels.lstm.function import recurrence as fast_recurrence
from asr_kernels.lstm.steps import Steps

# Shared memory that the kernels of gpu.py use for the weights at most, and for all else (as compiled).
_WEIGHT_BYTES, _OTHER_BYTES = 128 * 1024, 16 * 1024

FEW = 8
"""Frames of a call without gradients that go by the definition."""


class Recurrence(NamedTuple):
    """Outcome for a batch."""

    y: Tensor
    """(B, T, heads, D) in the dtype of `x`: h of every frame, exactly zero beyond the lengths."""
    state: CellState
    """After the last frame of each stream (the first one in reverse), float32 or float64."""


@dispatch.entry_point
def recurrence(
    cell: Cell,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: CellState | None = None,
    *,
    peepholes: Tensor | None = None,
    gate_weight: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Recurrence:
    """Run a recurrent cell over whole sequences; the equations are in reference.py.

    Args:
        cell: which cell, and which of its variants; names the gates and the leaves of the state.
        x: (B, T, heads, gates, D) float32, float64, bfloat16 or float16, any strides: the input projections
            W x_t of `cell.gates`, with the input's bias if there is one.
        weight: (heads, D, gates, D), from unit k of h_{t-1} to gate g of unit d; heads do not see each other,
            and one head is the ordinary dense recurrence.
        bias: (heads, gates, D), of the recurrent product: inside r * (...) for the GRU's candidate, and
            elsewhere as good as one of the input.
        state: what an earlier call returned, or `cell.initial_state(...)`; None is the start.
        peepholes: (heads, P, D) for `cell.peephole_gates`; required where there are some.
        gate_weight: (heads, N, D, N, D) for `cell.recurrent_gates`, from gate to gate; likewise.
        lengths: (B,) int32 or int64 frames of each stream; what lies beyond is ignored, whatever it is.
        reverse: from the last frame of each stream to its first.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide, and takes
            "cpu", which runs on every device, for what the Triton kernels do not do: heads of more than 128
            units (64 in float32), gate_recurrence, float64; or, in its place, the definition for a few
            frames of which no gradients are wanted.

    Returns:
        Recurrence(y, state). All arithmetic is in float32 (float64 for float64 `x`); only the Triton kernels
        round h to the dtype of `weight` before the product, as cuDNN does. Any chunking in time with the
        state passed on gives what the whole sequence gives. The gradient is exactly zero beyond the lengths.

    Raises:
        ValueError: a shape, dtype, length or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    inputs.check_x(cell, x, "(B, T, heads, gates, D)")
    B, T, H, _, D = x.shape
    given = {"weight": weight, "bias": bias, "peepholes": peepholes, "gate_weight": gate_weight}
    inputs.check_parameters(cell, x, given, cell.parameter_shapes(H, D))
    ends = inputs.ends(lengths, reverse, B, T)
    dtype = inputs.computed(x)
    state = inputs.state_of(cell, state, x, (B, H, D))
    chosen = _choose(cell, x, weight, backend)
    if T <= FEW:
        chosen = dispatch.choose_few(chosen, backend, x, *given.values(), *state)
    # The kernels take the weights as they are, to read half of them where they are half as long.
    parameters = Parameters(
        weight if chosen == "triton" else weight.to(dtype),
        *(p if p is None else p.to(dtype) for p in (bias, peepholes, gate_weight)),
    )
    if chosen == "reference":
        y, last = reference.recurrence(
            cell, x.to(dtype), *parameters[:2], state, *parameters[2:], ends, reverse
        )
    else:
        steps = Steps(ends, x.shape[1], reverse, x.device)
        y, last = fast_recurrence(cell, x, parameters, state, steps, chosen)
    return Recurrence(y.to(x.dtype), last)


def _choose(cell: Cell, x: Tensor, weight: Tensor, backend: str | None) -> Backend:
    chosen = dispatch.choose(backend, x)
    if chosen != "triton" or on_chip(cell, x, weight):
        return chosen
    if backend == "triton":
        raise ValueError(
            f"expected heads whose weights fit on chip, no gate_recurrence and no float64 for "
            f'backend="triton", '
            f"found {x.shape[-1]} units of {weight.dtype} for {cell}: leave the choice to backend=None"
        )
    return "cpu"


def on_chip(cell: Cell, x: Tensor, weight: Tensor) -> bool:
    """Whether gpu.py takes it: a head's matrices, padded to a power of two, in shared memory."""
    if cell.gate_recurrence or torch.float64 in (x.dtype, weight.dtype):
        return False
    width = max(16, 1 << (x.shape[-1] - 1).bit_length())
    size = 8 if weight.dtype == torch.float32 else 2  # float32 lies there as two numbers
    weights = len(cell.gates) * width * width * size
    if weights > _WEIGHT_BYTES or not x.is_cuda:
        return weights <= _WEIGHT_BYTES
    properties = torch.cuda.get_device_properties(x.device)
    there: int = getattr(properties, "shared_memory_per_block_optin")  # noqa: B009 (PyTorch's stubs lack it)
    return weights + _OTHER_BYTES <= there
