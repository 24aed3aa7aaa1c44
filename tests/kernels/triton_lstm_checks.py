"""The Triton kernels of recurrent cells against the float64 CPU path; test_triton.py runs this.

See triton_checks.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_lstm import CELLS, Inputs, agree, make, run
from torch import Tensor
from triton_support import DEVICE, HALF, poisoned

from asr_kernels import Cell, CellState, recurrence

__all__ = ["poisoned"]  # a fixture of every test here

ON_CHIP = {name: cell for name, cell in CELLS.items() if not cell.gate_recurrence}


def on_device(inputs: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
    def move(tensor: Tensor, to: torch.dtype) -> Tensor:
        return tensor.detach().to(DEVICE, to).requires_grad_()

    state = {n: move(leaf, torch.float32) for n, leaf in inputs.state._asdict().items() if leaf is not None}
    return Inputs(
        move(inputs.x, dtype), {k: move(p, dtype) for k, p in inputs.parameters.items()}, CellState(**state)
    )


def outcome(cell: Cell, inputs: Inputs, lengths: Tensor | None = None, **options: Any) -> Any:
    """By Triton, on the CPU again."""
    found = run(cell, inputs, lengths=lengths, backend="triton", **options)
    state = CellState(*(None if leaf is None else leaf.cpu() for leaf in found.state))
    return found._replace(y=found.y.cpu(), state=state, grads=[g.cpu() for g in found.grads])


@pytest.mark.parametrize("name", ON_CHIP)
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_cpu_path(name: str, reverse: bool) -> None:
    cell = ON_CHIP[name]
    for shape, lengths in (((3, 5, 2, 5), [3, 0, 5]), ((1, 1, 1, 1), None), ((2, 3, 1, 16), None)):
        inputs = make(cell, *shape, seed=1)
        ends = None if lengths is None else torch.tensor(lengths)
        wanted = run(cell, inputs, lengths=ends, reverse=reverse, backend="cpu")
        agree(outcome(cell, on_device(inputs), ends, reverse=reverse), wanted, 2e-5)


@pytest.mark.parametrize("name", ["peepholes", "gru", "elman", "slstm"])
def test_more_streams_than_a_program_takes_and_wide_heads(name: str) -> None:
    cell = ON_CHIP[name]
    for shape in ((19, 2, 1, 3), (1, 2, 1, 40)):
        inputs = make(cell, *shape, seed=2)
        for p in inputs.parameters.values():
            p.data /= math.sqrt(shape[-1])
        wanted = run(cell, inputs, backend="cpu")
        agree(outcome(cell, on_device(inputs)), wanted, 2e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["CIFG", "gru", "elman", "slstm"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """h is rounded before the product; the rest is float32."""
    cell = ON_CHIP[name]
    inputs = on_device(make(cell, 2, 4, 1, 6), dtype)
    exact = inputs.to(torch.float64)
    wanted = run(cell, Inputs(exact.x.cpu(), *_on_cpu(exact)), backend="cpu")
    found = outcome(cell, inputs)
    assert found.y.dtype == dtype
    agree(found, wanted, 2e-2 if dtype == torch.bfloat16 else 3e-3)


def _on_cpu(inputs: Inputs) -> tuple[dict[str, Tensor], CellState]:
    state = CellState(*(None if leaf is None else leaf.cpu() for leaf in inputs.state))
    return {k: p.cpu() for k, p in inputs.parameters.items()}, state


@pytest.mark.parametrize("name", ["peepholes", "gru", "slstm"])
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_never_seen(name: str, reverse: bool) -> None:
    cell, lengths = ON_CHIP[name], torch.tensor([2, 0, 4])
    inputs = on_device(make(cell, 3, 4, 1, 3, seed=3))
    wanted = outcome(cell, inputs, lengths, reverse=reverse)
    padding = torch.arange(4) >= lengths[:, None]
    outside = padding[..., None, None, None].to(DEVICE)
    found = outcome(
        cell, inputs._replace(x=inputs.x.detach().masked_fill(outside, math.nan).requires_grad_()), lengths,
        reverse=reverse,
    )  # fmt: skip
    agree(found, wanted, 0.0)
    assert not found.y[padding].any()
    assert not found.grads[0][padding].any()


@pytest.mark.parametrize("name", ["lstm", "gru", "elman", "slstm"])
def test_strides_no_bias_and_no_frames(name: str) -> None:
    cell = ON_CHIP[name]
    inputs = make(cell, 2, 3, 2, 4, seed=4)
    weight = {"weight": inputs.parameters["weight"]}
    moved = on_device(inputs._replace(parameters=weight))
    x = moved.x.detach().transpose(1, 4).contiguous().transpose(1, 4).requires_grad_()
    wanted = run(cell, inputs._replace(parameters=weight), backend="cpu")
    agree(outcome(cell, moved._replace(x=x)), wanted, 2e-5)
    empty = recurrence(cell, moved.x[:, :0], moved.parameters["weight"], state=moved.state, backend="triton")
    assert empty.y.shape == (2, 0, 2, 4)
    for leaf in cell.leaves:
        torch.testing.assert_close(getattr(empty.state, leaf), getattr(moved.state, leaf))


def test_extreme_gates_of_the_slstm() -> None:
    cell = Cell("slstm")
    x = torch.randn(9, 3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    extremes = torch.tensor([-3e4, 0.0, 3e4])
    x[:, :, 0, 0] = extremes.repeat(3)[:, None, None] * torch.tensor([1, -1, 1.0])[:, None]
    x[:, :, 0, 1] = extremes.repeat_interleave(3)[:, None, None]
    weight = torch.full((1, 2, 4, 2), 0.1)
    results = []
    for backend, device in (("triton", DEVICE), ("cpu", "cpu")):
        leaf = x.to(device).requires_grad_()
        found = recurrence(cell, leaf, weight.to(device), backend=backend)
        found.y.sum().backward()
        assert leaf.grad is not None
        results.append((found.y.detach().cpu(), leaf.grad.cpu()))
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", [Cell(gate_recurrence=True), Cell()])
def test_what_does_not_fit(cell: Cell) -> None:
    """Is refused where Triton is asked for."""
    inputs = on_device(make(cell, 1, 1, 1, 2 if cell.gate_recurrence else 65))
    with pytest.raises(ValueError, match=r"expected heads whose weights fit on chip, no gate_recurrence"):
        recurrence(cell, inputs.x, **inputs.parameters, backend="triton")
    if cell.gate_recurrence or DEVICE == "cuda":
        recurrence(cell, inputs.x, **inputs.parameters)
