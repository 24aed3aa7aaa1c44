"""Newton's method over time against the sequential loop, and the parallel solution of linear recurrences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from asr_kernels import Cell, CellState, newton_rnn, recurrence
from asr_kernels.lstm import linear

CELLS = {
    "lstm": Cell(),
    "lstm, peepholes": Cell(peepholes=True, coupled=True),
    "lstm, no gates but f": Cell(input_gate=False, output_gate=False, output_activation=False),
    "gru": Cell("gru"),
    "elman": Cell("elman"),
}


def inputs_of(
    cell: Cell, B: int, T: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, weight, bias, peepholes if there are, and the leaves of the state."""
    rng = torch.Generator().manual_seed(seed)
    G, P = len(cell.gates), len(cell.peephole_gates)
    shapes = [(B, T, G, D), (G, D), (G, D), *([(P, D)] if P else []), *([(B, D)] * len(cell.leaves))]
    return [
        torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    ]


def split(cell: Cell, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    n = 3 + bool(cell.peephole_gates)
    return inputs[:3], inputs[3] if n == 4 else None, inputs[n:]


def in_parallel(cell: Cell, inputs: list[Tensor], **options: Any) -> tuple[list[Tensor], Any]:
    (x, weight, bias), peepholes, leaves = split(cell, inputs)
    state = CellState(**dict(zip(cell.leaves, leaves, strict=True)))
    found = newton_rnn(cell, x, weight, bias, state, peepholes=peepholes, **options)
    return [found.y, *(leaf for leaf in found.state if leaf is not None)], found


def one_by_one(cell: Cell, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """`recurrence` with as many heads as there are units."""
    (x, weight, bias), peepholes, leaves = split(cell, inputs)
    state = CellState(**dict(zip(cell.leaves, (leaf[..., None] for leaf in leaves), strict=True)))
    found = recurrence(
        cell,
        x.transpose(2, 3)[..., None],
        weight.T[:, None, :, None],
        bias.T[..., None],
        state,
        peepholes=None if peepholes is None else peepholes.T[..., None],
        backend="reference",
        **options,
    )
    return [found.y[..., 0], *(leaf[..., 0] for leaf in found.state if leaf is not None)]


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    total = sum(
        (output.double() * torch.randn(output.shape, generator=rng, dtype=torch.float64)).sum()
        for output in outputs
    )
    assert isinstance(total, Tensor)
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def agree(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [30, 0, 41]])
def test_converges_to_the_sequential_loop(name: str, reverse: bool, lengths: list[int] | None) -> None:
    cell = CELLS[name]
    options = {"lengths": None if lengths is None else torch.tensor(lengths), "reverse": reverse}
    inputs = inputs_of(cell, 3, 41, 5)
    wanted = one_by_one(cell, inputs, **options)
    wanted += gradients(wanted, inputs)
    outputs, found = in_parallel(cell, inputs, **options)
    largest = max(float(x.detach().abs().max()) for x in outputs)
    assert found.residual <= 1e-12 * max(1.0, largest)
    assert 2 <= found.iterations < 32
    agree([*outputs, *gradients(outputs, inputs)], wanted, 1e-9)

    short = [x.detach().float().requires_grad_() for x in inputs]
    outputs, _ = in_parallel(cell, short, **options)
    agree([*outputs, *gradients(outputs, short)], wanted, 1e-5)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_padding_is_never_seen(name: str) -> None:
    cell, lengths = CELLS[name], torch.tensor([2, 5, 0])
    inputs = inputs_of(cell, 3, 5, 2)
    padding = torch.arange(5) >= lengths[:, None]
    poisoned = [
        inputs[0].detach().masked_fill(padding[..., None, None], math.nan).requires_grad_(),
        *inputs[1:],
    ]
    wanted, _ = in_parallel(cell, inputs, lengths=lengths)
    outputs, _ = in_parallel(cell, poisoned, lengths=lengths)
    agree([*outputs, *gradients(outputs, poisoned)], [*wanted, *gradients(wanted, inputs)], 0.0)
    assert not outputs[0][padding].any()


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("T", [0, 1, 2])
def test_few_frames(name: str, T: int) -> None:
    cell = CELLS[name]
    inputs = inputs_of(cell, 2, T, 3)
    outputs, _ = in_parallel(cell, inputs)
    wanted = one_by_one(cell, inputs)
    agree([*outputs, *gradients(outputs, inputs)], [*wanted, *gradients(wanted, inputs)], 1e-12)


@pytest.mark.parametrize("name", ["lstm, peepholes", "gru"])
def test_gradcheck(name: str) -> None:
    cell = CELLS[name]
    inputs = inputs_of(cell, 1, 3, 2)
    assert torch.autograd.gradcheck(lambda *x: tuple(in_parallel(cell, list(x))[0]), inputs)


def test_what_did_not_converge_says_so() -> None:
    inputs = inputs_of(Cell("gru"), 1, 40, 3)
    exact, full = in_parallel(Cell("gru"), inputs)
    _, short = in_parallel(Cell("gru"), inputs, max_iterations=2)
    assert short.iterations == 2
    assert full.residual < 1e-12 < 1e-6 < short.residual
    assert torch.equal(in_parallel(Cell("gru"), inputs, max_iterations=full.iterations)[0][0], exact[0])


def test_half_precision() -> None:
    inputs = inputs_of(Cell("gru"), 2, 9, 3, dtype=torch.bfloat16)
    outputs, found = in_parallel(Cell("gru"), inputs)
    assert found.y.dtype == torch.bfloat16
    assert outputs[1].dtype == torch.float32
    wanted = one_by_one(Cell("gru"), [x.detach().float() for x in inputs])
    torch.testing.assert_close(outputs[0].float(), wanted[0], rtol=0, atol=5e-3)


def test_differentiates_once() -> None:
    inputs = inputs_of(Cell("gru"), 1, 3, 2)
    (grad,) = torch.autograd.grad(in_parallel(Cell("gru"), inputs)[0][0].sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiates twice only"):
        grad.sum().backward()


def test_a_stream_that_is_no_number_leaves_the_others_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 50, 3, 2, generator=rng), torch.randn(3, 2, generator=rng)
    x[0, 3] = torch.nan
    found = newton_rnn(Cell("gru"), x, weight)
    assert found.iterations > 2
    assert found.residual != found.residual
    torch.testing.assert_close(found.y[1], newton_rnn(Cell("gru"), x[1:], weight).y[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_iterations": 2.5}, "max_iterations an integer"),
        ({"cell": Cell("slstm")}, r"expected a cell of kind lstm, gru or elman .*found Cell\('slstm'\)"),
        ({"cell": Cell(gate_recurrence=True)}, "without gate_recurrence"),
        ({"weight": torch.zeros(3, 4)}, r"expected weight of shape \(4, 2\), found \(3, 4\)"),
        ({"x": torch.zeros(1, 3, 2, 2)}, r"expected x of shape \(B, T, 4, D\) for the gates i, f, z, o"),
        (
            {"max_iterations": 0},
            "max_iterations an integer from 1 on, found None and 0",
        ),
        ({"tolerance": -1.0}, "expected tolerance > 0"),
        (
            {"state": CellState(torch.zeros(1, 1, 2), torch.zeros(1, 2))},
            r"expected state.h of shape \(1, 2\)",
        ),
    ],
)
def test_wrong_inputs(change: dict[str, Any], message: str) -> None:
    given = {"cell": Cell(), "x": torch.zeros(1, 3, 4, 2), "weight": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=message) as raised:
        newton_rnn(**given | change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("T", [0, 1, 2, 3, 7, 8, 9])
def test_linear_recurrences(K: int, T: int) -> None:
    rng = torch.Generator().manual_seed(K)
    a = torch.randn(T, 2, K, K, 3, generator=rng, dtype=torch.float64)
    b = torch.randn(T, 2, K, 3, generator=rng, dtype=torch.float64)
    found, s = linear.solve(a, b), torch.zeros(2, K, 3, dtype=torch.float64)
    for t in range(T):
        s = torch.einsum("bijd,bjd->bid", a[t], s) + b[t]
        torch.testing.assert_close(found[t], s)
