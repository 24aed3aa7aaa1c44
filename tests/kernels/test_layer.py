"""`recurrent_layer` gives what projection and `recurrence` give, whoever computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels import Cell, CellState, recurrence, recurrent_layer, use_backend

CELLS = {
    "lstm": Cell(),
    "peepholes": Cell(peepholes=True),
    "gates": Cell(gate_recurrence=True),
    "gru": Cell("gru"),
    "elman": Cell("elman"),
    "slstm": Cell("slstm"),
}
B, T, F, D = 3, 7, 5, 8


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of PyTorch's own layers."""
    calls: list[str] = []
    for name in ("lstm", "gru"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, _n=name, _r=real: (calls.append(_n), _r(*args))[1])
    return calls


def make(cell: Cell, heads: int, dtype: torch.dtype) -> tuple[dict[str, Any], list[Tensor]]:
    """Arguments of a layer, and those of them that have a gradient."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (0.6 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()

    G = len(cell.gates)
    given: dict[str, Any] = {"x": normal(B, T, F), "projection": normal(heads * G * D, F)}
    given |= {"shift": normal(heads * G * D)}
    given |= {name: normal(*shape) for name, shape in cell.parameter_shapes(heads, D).items()}
    state = {leaf: normal(B, heads, D).abs() for leaf in cell.leaves}
    leaves = [*given.values(), *state.values()]
    for leaf in leaves:
        leaf.retain_grad()
    return {**given, "state": CellState(**state)}, leaves


def outcome(result: Any, leaves: list[Tensor]) -> list[Tensor]:
    outputs = [result.y, *(leaf for leaf in result.state if leaf is not None)]
    total = sum((x.double() * torch.arange(1.0, x.numel() + 1).view(x.shape).sin()).sum() for x in outputs)
    return [x.detach() for x in outputs] + list(torch.autograd.grad(total, leaves))


def definition(cell: Cell, heads: int, **given: Any) -> Any:
    """The projection, then the definition."""
    x, projection, shift, weight = (given.pop(name) for name in ("x", "projection", "shift", "weight"))
    projected = functional.linear(x, projection, shift).view(B, -1, heads, len(cell.gates), D)
    return recurrence(cell, projected, weight, backend="reference", **given)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 0, 4])])
def test_values_and_gradients(name: str, heads: int, lengths: Tensor | None, library: list[str]) -> None:
    cell = CELLS[name]
    given, leaves = make(cell, heads, torch.float32)
    exact, exact_leaves = make(cell, heads, torch.float64)
    found = outcome(recurrent_layer(cell, **given, lengths=lengths), leaves)
    wanted = outcome(definition(cell, heads, **exact, lengths=lengths), exact_leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    assert library == (["lstm"] if name == "lstm" and heads == 1 and lengths is None else [])


@pytest.mark.parametrize(
    ("kind", "learning", "taken"),
    [("lstm", True, 4), ("gru", True, 0), ("lstm", False, 3), ("gru", False, 4)],
)
def test_pieces_give_the_whole(kind: str, learning: bool, taken: int, library: list[str]) -> None:
    """And which of them are left to a library: no frames are no work for it."""
    given, _ = make(Cell(kind), 1, torch.float32)
    x, state, pieces = torch.cat([given.pop("x")] * 3, dim=1), given.pop("state"), []
    with torch.set_grad_enabled(learning):
        whole = recurrent_layer(Cell(kind), x, **given, state=state)
        for piece in x.split((9, 0, 1, 11), dim=1):
            found = recurrent_layer(Cell(kind), piece, **given, state=state)
            pieces, state = [*pieces, found.y], found.state
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.y)
    torch.testing.assert_close(state, whole.state)
    assert library == [kind] * taken


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float64, {}),
        (torch.bfloat16, {}),
        (torch.float32, {"reverse": True}),
        (torch.float32, {"backend": "cpu"}),
    ],
)
def test_what_is_left_to_recurrence(dtype: torch.dtype, options: dict, library: list[str]) -> None:
    given, _ = make(Cell(), 1, dtype)
    found = recurrent_layer(Cell(), **given, **options)
    assert found.y.dtype == dtype
    assert found.state.c.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert not library


def test_a_forced_backend_and_autocast_are_obeyed(library: list[str]) -> None:
    given, _ = make(Cell(), 1, torch.float32)
    with use_backend("reference"):
        recurrent_layer(Cell(), **given)
    with torch.autocast("cpu", torch.bfloat16):
        assert recurrent_layer(Cell(), **given).y.dtype == torch.bfloat16
    assert not library


def test_mistakes_are_one_line() -> None:
    given, _ = make(Cell(), 1, torch.float32)
    with pytest.raises(ValueError, match=r"expected bias of shape .*\(1, 4, 8\).*, found"):
        recurrent_layer(Cell(), **{**given, "bias": torch.zeros(1, 3, 8)})
    with pytest.raises(ValueError, match=r"expected a state of h, c, found h"):
        recurrent_layer(Cell(), **{**given, "state": CellState(h=torch.zeros(B, 1, D))})
