"""Checks of what the recurrences are given; every failure is a ValueError of one line."""

from __future__ import annotations

import torch
from torch import Tensor

from asr_kernels import checks
from asr_kernels.lstm.cell import Cell, CellState


def computed(x: Tensor) -> torch.dtype:
    """The dtype of all arithmetic on this input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_x(cell: Cell, x: Tensor, dims: str) -> None:
    """`dims` are those of x as the message shows them, with its gates next to last."""
    if not isinstance(cell, Cell):
        raise ValueError(f"expected cell as an asr_kernels.Cell, found {type(cell).__name__}")
    G, rank = len(cell.gates), dims.count(",") + 1
    shown = f"{dims.replace('gates', str(G))} for the gates {', '.join(cell.gates)}"
    checks.floats("x", x, shown, (*(None,) * (rank - 2), G, None))
    if x.shape[:1].numel() * x.shape[2:].numel() == 0:
        raise ValueError(f"expected x of shape {shown}, none of them 0 but T, found {tuple(x.shape)}")


def check_parameters(
    cell: Cell, x: Tensor, given: dict[str, Tensor | None], shapes: dict[str, tuple[int, ...]]
) -> None:
    """All that the cell needs is there, in these shapes, and nothing else; the bias may be missing."""
    for name, tensor in given.items():
        if tensor is None:
            if name in shapes and name != "bias":
                raise ValueError(f"expected {name} of shape {shapes[name]} for {cell}, found None")
            continue
        if name not in shapes:
            raise ValueError(f"expected no {name}, as {cell} has none: leave it out or change the cell")
        checks.floats(name, tensor, str(shapes[name]), shapes[name])
        checks.same_device("x", x, **{name: tensor})


def ends(lengths: Tensor | None, reverse: bool, B: int, T: int) -> list[int]:
    """The frames of each stream."""
    checks.flag("reverse", reverse)
    if lengths is None:
        return [T] * B
    checks.integers("lengths", lengths, (B,))
    return checks.lengths("lengths", lengths, T)


def state_of(cell: Cell, state: CellState | None, x: Tensor, shape: tuple[int, ...]) -> CellState:
    """The state given, or the start, in the dtype of the computation."""
    dtype = computed(x)
    if state is None:
        return CellState(**{leaf: x.new_zeros(shape, dtype=dtype) for leaf in cell.leaves})
    if not isinstance(state, CellState):
        raise ValueError(f"expected state as an asr_kernels.CellState or None, found {type(state).__name__}")
    leaves: dict[str, Tensor] = {}
    for name, leaf in state._asdict().items():
        if (leaf is not None) != (name in cell.leaves):
            found = ", ".join(n for n, value in state._asdict().items() if value is not None)
            raise ValueError(f"expected a state of {', '.join(cell.leaves)}, found {found or 'nothing'}")
        if leaf is not None:
            checks.floats(f"state.{name}", leaf, str(shape), shape)
            checks.same_device("x", x, **{f"state.{name}": leaf})
            leaves[name] = leaf.to(dtype)
    return CellState(**leaves)
