"""The whole sequence in one launch, in Triton: a head's recurrent weights are loaded once and stay on chip.

The equations are those of reference.py (forward) and arithmetic.py (backward), the kernels in jit.py. The
backward kernel writes the gradients at the preactivations; what sums over frames and streams (weights,
biases, peepholes) is then one product or reduction each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from asr_kernels.dispatch import interpreted
from asr_kernels.lstm import jit
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.cpu import Gradients, Parameters, Trace
from asr_kernels.lstm.steps import Steps

# Streams of a program: the fewest that the tensor cores take, for the most programs.
_ROWS = 16


def forward(cell: Cell, x: Tensor, parameters: Parameters, state: CellState, steps: Steps) -> Trace:
    """From x (B, T, heads, gates, D), weights of any dtype shorter than float64, the others in float32."""
    weight, bias, peepholes, _ = parameters
    B, T, H, G, D = x.shape
    new = x.new_empty if steps.even else x.new_zeros  # beyond the lengths nothing is written

    def allocate(*shape: int, there: bool = True) -> Tensor:
        return new(shape if there else (1,), dtype=torch.float32)

    if sum(size * stride for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True)) >= 1 << 31:
        x = x.contiguous()  # within a frame the kernel counts in 32 bits
    kind, slstm = cell.kind, cell.kind == "slstm"
    y, gates = allocate(B, T, H, D), allocate(B, T, H, G, D)
    aside = allocate(B, T, H, D, there=kind in ("gru", "slstm"))
    c, n = allocate(B, T, H, D, there="c" in cell.leaves), allocate(B, T, H, D, there=slstm)
    first = _all_leaves(cell, state, y)
    last = [x.new_empty(B, H, D, dtype=torch.float32) if leaf in cell.leaves else y for leaf in "hcnm"]
    grid, options = _launch(cell, B, H, D)
    jit.forward_kernel[grid](
        x, _matrices(weight), y if bias is None else bias.contiguous(), _slots(cell, peepholes, y), *first,
        steps.ends, y, gates, aside, c, n, *last,
        B, T, steps.count, H, *x.stride(), G=G, BIAS=bias is not None, REVERSE=steps.reverse, **options,
    )  # fmt: skip
    leaves = {leaf: value for leaf, value in zip("hcnm", last, strict=True) if leaf in cell.leaves}
    return Trace(y, CellState(**leaves), (y, gates, aside, c, n, *first))


def backward(
    cell: Cell,
    parameters: Parameters,
    saved: tuple[Tensor, ...],
    steps: Steps,
    grad_y: Tensor,
    grad_state: CellState,
) -> Gradients:
    """From the gradients at y (B, T, heads, D) and at the last state."""
    y, gates, aside, c, n, h0, c0, n0, _ = saved
    B, T, H, G, D = gates.shape
    grads = (torch.empty if steps.even else torch.zeros)(
        (B, T, H, G + (cell.kind == "gru"), D), dtype=torch.float32, device=y.device
    )
    future = _all_leaves(cell, grad_state, y)
    past = [
        torch.empty_like(leaf) if name in cell.leaves else y
        for name, leaf in zip("hcnm", future, strict=True)
    ]
    grid, options = _launch(cell, B, H, D)
    jit.backward_kernel[grid](
        _matrices(parameters.weight, turned=True), _slots(cell, parameters.peepholes, y),
        h0, c0, n0, steps.ends, y, gates, aside, c, n, grad_y.contiguous(), *future, grads, *past,
        B, T, steps.count, H, G=G, E=grads.shape[3], REVERSE=steps.reverse, **options,
    )  # fmt: skip
    leaves = {name: leaf for name, leaf in zip("hcnm", past, strict=True) if name in cell.leaves}
    at_x = grads[:, :, :, [0, 1, 3]] if cell.kind == "gru" else grads
    return Gradients(at_x, _at_parameters(cell, parameters, saved, steps, grads), CellState(**leaves))


def _at_parameters(
    cell: Cell, parameters: Parameters, saved: tuple[Tensor, ...], steps: Steps, grads: Tensor
) -> Parameters:
    """Sums over all frames and streams."""
    weight, bias, peepholes, _ = parameters
    y, _, _, c, _, h0, c0, *_ = saved
    H, D, G, _ = weight.shape
    by_head = grads[:, :, :, :G].permute(2, 0, 1, 3, 4).reshape(H, -1, G * D)
    before = _before(y, h0, steps).permute(2, 3, 0, 1).reshape(H, D, -1)
    at_weight = (before @ by_head).view(H, D, G, D).to(weight.dtype)
    at_bias = None if bias is None else by_head.sum(dim=1).view(H, G, D)
    if peepholes is None:
        return Parameters(at_weight, at_bias, None, None)
    seen = {"o": c, "i": _before(c, c0, steps)}
    seen["f"] = seen["i"]
    each = [(grads[:, :, :, cell.gates.index(g)] * seen[g]).sum(dim=(0, 1)) for g in cell.peephole_gates]
    return Parameters(at_weight, at_bias, torch.stack(each, dim=1), None)


def _before(history: Tensor, first: Tensor, steps: Steps) -> Tensor:
    """(B, T, heads, D): what stood before each frame, where `first` stood before the first one."""
    if not steps.reverse:
        return torch.cat((first[:, None], history[:, :-1]), dim=1)[:, : history.shape[1]]
    shifted = torch.cat((history[:, 1:], first[:, None]), dim=1)[:, : history.shape[1]]
    frame = torch.arange(history.shape[1], device=history.device)
    start = (frame == steps.ends[:, None] - 1)[:, :, None, None]
    return torch.where(start, first[:, None], shifted)


def _all_leaves(cell: Cell, state: CellState, unused: Tensor) -> list[Tensor]:
    """h, c, n, m, contiguous; some tensor where the cell has none."""
    found = [getattr(state, leaf) for leaf in "hcnm"]
    return [unused if leaf is None else leaf.contiguous() for leaf in found]


def _matrices(weight: Tensor, *, turned: bool = False) -> Tensor:
    """(heads, gates, D, D) from unit to unit, or turned around."""
    if interpreted() and weight.dtype == torch.bfloat16:
        weight = weight.float()  # whose products in bfloat16 the interpreter gets wrong
    return weight.permute((0, 2, 3, 1) if turned else (0, 2, 1, 3)).contiguous()


def _slots(cell: Cell, peepholes: Tensor | None, unused: Tensor) -> Tensor:
    """(heads, 3, D): the peepholes of i, f and o."""
    if peepholes is None:
        return unused
    slots = peepholes.new_zeros(peepholes.shape[0], 3, peepholes.shape[2])
    slots[:, ["ifo".index(gate) for gate in cell.peephole_gates]] = peepholes
    return slots


def _launch(cell: Cell, B: int, H: int, D: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and compile-time options that both kernels share."""
    width = max(16, triton.next_power_of_2(D))
    names = {"gru": ("r", "z", "n", ""), "elman": ("", "", "h", "")}.get(cell.kind, ("i", "f", "z", "o"))
    slots = [cell.gates.index(name) if name in cell.gates else -1 for name in names]
    options = dict(zip(("I", "F", "Z", "O"), slots, strict=True)) | {
        "KIND": cell.kind,
        "PEEPHOLES": cell.peepholes,
        "COUPLED": cell.coupled,
        "SQUASH_IN": cell.input_activation,
        "SQUASH_OUT": cell.output_activation,
        "EXP_FORGET": cell.exponential_forget,
        "D": D,
        "WIDTH": width,
        "ROWS": _ROWS,
        "num_warps": 4 if width <= 32 else 8,
        "num_stages": 1,  # the weights leave no shared memory to load frames ahead
    }
    return (H, triton.cdiv(B, _ROWS)), options
