"""`recurrence`: check the inputs, then the cell over the whole sequence; README.md tells the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.dispatch import Backend
from asr_kernels.lstm import reference
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.cpu import Parameters
from asr_kernels.lstm.function import recurrence as fast_recurrence
from asr_kernels.lstm.steps import Steps

# The widest head whose recurrent weights gpu.py keeps on chip.
WIDEST_ON_CHIP = 128


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
            "cpu", which runs on every device, for what the Triton kernels do not do: heads wider than 128,
            gate_recurrence, float64.

    Returns:
        Recurrence(y, state). All arithmetic is in float32 (float64 for float64 `x`); only the Triton kernels
        round h to the dtype of `weight` before the product, as cuDNN does. Any chunking in time with the
        state passed on gives what the whole sequence gives. The gradient is exactly zero beyond the lengths.

    Raises:
        ValueError: a shape, dtype, length or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    given = {"weight": weight, "bias": bias, "peepholes": peepholes, "gate_weight": gate_weight}
    _check(cell, x, given)
    ends = _lengths(lengths, x)
    if not isinstance(reverse, bool):
        raise ValueError(f"expected reverse True or False, found {reverse!r}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = _state(cell, state, x, dtype)
    chosen = _choose(cell, x, backend)
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


def _choose(cell: Cell, x: Tensor, backend: str | None) -> Backend:
    chosen = dispatch.choose(backend, x)
    if chosen != "triton":
        return chosen
    fits = x.shape[-1] <= WIDEST_ON_CHIP and not cell.gate_recurrence and x.dtype != torch.float64
    if backend == "triton" and not fits:
        raise ValueError(
            f"expected heads of at most {WIDEST_ON_CHIP} units, no gate_recurrence and no float64 for "
            f'backend="triton", found {x.shape[-1]} units of {x.dtype}: leave the choice to backend=None'
        )
    return "triton" if fits else "cpu"


def _check(cell: Cell, x: Tensor, given: dict[str, Tensor | None]) -> None:
    if not isinstance(cell, Cell):
        raise ValueError(f"expected cell as an asr_kernels.Cell, found {type(cell).__name__}")
    names = ", ".join(cell.gates)
    G = len(cell.gates)
    checks.floats("x", x, f"(B, T, heads, {G}, D) for the gates {names}", (None, None, None, G, None))
    if 0 in (x.shape[0], x.shape[2], x.shape[4]):
        raise ValueError(f"expected x with B, heads, D >= 1, found {tuple(x.shape)}")
    shapes = cell.parameter_shapes(x.shape[2], x.shape[4])
    for name, tensor in given.items():
        if tensor is None:
            if name in shapes and name != "bias":
                raise ValueError(f"expected {name} of shape {shapes[name]} for {cell}, found None")
            continue
        if name not in shapes:
            raise ValueError(
                f"expected no {name}, which {cell} does not have: leave it out or change the cell"
            )
        checks.floats(name, tensor, str(shapes[name]), shapes[name])
        _same_device(name, tensor, x)


def _lengths(lengths: Tensor | None, x: Tensor) -> list[int]:
    B, T = x.shape[:2]
    if lengths is None:
        return [T] * B
    checks.integers("lengths", lengths, (B,))
    return checks.lengths("lengths", lengths, T)


def _state(cell: Cell, state: CellState | None, x: Tensor, dtype: torch.dtype) -> CellState:
    B, _, H, _, D = x.shape
    if state is None:
        return cell.initial_state(B, H, D, device=x.device, dtype=dtype)
    if not isinstance(state, CellState):
        raise ValueError(f"expected state as an asr_kernels.CellState or None, found {type(state).__name__}")
    leaves: dict[str, Tensor] = {}
    for name, leaf in state._asdict().items():
        if (leaf is not None) != (name in cell.leaves):
            found = ", ".join(n for n, value in state._asdict().items() if value is not None)
            raise ValueError(f"expected a state of {', '.join(cell.leaves)}, found {found or 'nothing'}")
        if leaf is not None:
            checks.floats(f"state.{name}", leaf, f"{(B, H, D)}", (B, H, D))
            _same_device(f"state.{name}", leaf, x)
            leaves[name] = leaf.to(dtype)
    return CellState(**leaves)


def _same_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"expected {name} on {x.device}, where x is, found {tensor.device}: move it")
