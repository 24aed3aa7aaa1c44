"""Linear recurrences: values and gradients against a loop in numpy, pieces, lengths, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_kernels import linear_scan, log_linear_scan

BACKENDS = ["reference", "cpu"]
SHAPES = [(2, 1, 3), (3, 7, 5), (1, 40, 1), (2, 33, 4, 2), (4, 5)]


def loop(a: np.ndarray, b: np.ndarray, h: np.ndarray, reverse: bool = False) -> np.ndarray:
    """The recurrence, element by element."""
    out = np.zeros(b.shape, np.result_type(a, b, h))
    order = range(b.shape[1])[::-1] if reverse else range(b.shape[1])
    for t in order:
        h = a[:, t] * h + b[:, t]
        out[:, t] = h
    return out


def problem(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Decays within the unit circle, inputs, and a state; leaves."""
    rng = torch.Generator().manual_seed(seed)
    b = torch.randn(shape, dtype=dtype, generator=rng)
    h0 = torch.randn((shape[0], *shape[2:]), dtype=dtype, generator=rng)
    a = torch.rand(shape, dtype=torch.float64, generator=rng).to(dtype)
    if dtype.is_complex:
        a = a * torch.exp(1j * 6 * torch.rand(shape, dtype=torch.float64, generator=rng)).to(dtype)
    return [x.requires_grad_() for x in (a, b, h0)]


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor], seed: int = 9) -> list[Tensor]:
    """Of a random weighing of both outputs."""
    rng = torch.Generator().manual_seed(seed)
    wide = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in outputs]
    weights = [torch.randn(x.shape, dtype=x.dtype, generator=rng) for x in wide]
    total = sum((x * w.conj()).sum().real for x, w in zip(wide, weights, strict=True))
    return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_those_of_a_loop(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, reverse: bool
) -> None:
    a, b, h0 = problem(shape, dtype)
    found = linear_scan(a, b, h0, reverse=reverse, backend=backend)
    expected = loop(*(x.detach().numpy() for x in (a, b, h0)), reverse=reverse)
    np.testing.assert_allclose(found.h.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.state.detach().numpy(), expected[:, 0 if reverse else -1], rtol=1e-12)
    begun = linear_scan(a, b, reverse=reverse, backend=backend).h
    assert torch.equal(begun, linear_scan(a, b, torch.zeros_like(h0), reverse=reverse, backend=backend).h)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("dtype", "log"), [(torch.float64, False), (torch.float64, True), (torch.complex128, False)]
)
def test_gradients_are_differences(dtype: torch.dtype, log: bool, reverse: bool) -> None:
    inputs = problem((2, 5, 3), dtype)
    op = log_linear_scan if log else linear_scan
    assert torch.autograd.gradcheck(lambda *x: op(*x, reverse=reverse, backend="cpu"), inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("dtype", "log"),
    [(torch.complex64, False), *product((torch.float32, torch.float16, torch.bfloat16), (False, True))],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_path_equals_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, log: bool, reverse: bool
) -> None:
    inputs = problem(shape, dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = [x.detach().to(wide).requires_grad_() for x in inputs]
    op = log_linear_scan if log else linear_scan
    found = op(*inputs, reverse=reverse, backend="cpu")
    expected = op(*exact, reverse=reverse, backend="reference")
    assert found.h.dtype == (torch.float32 if log else dtype)
    assert found.state.dtype == (torch.complex64 if dtype.is_complex else torch.float32)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-5)
    pairs = [*zip(found, expected, strict=True)]
    pairs += zip(gradients(found, inputs), gradients(expected, exact), strict=True)
    for ours, theirs in pairs:
        assert float((ours.to(wide) - theirs).detach().abs().max()) <= tolerance * (
            1 + float(theirs.detach().abs().max())
        )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_give_the_whole(backend: str, log: bool) -> None:
    op = log_linear_scan if log else linear_scan
    a, b, h0 = problem((2, 30, 3), torch.float64)
    whole, parts, state, start = op(a, b, h0, backend=backend), [], h0, 0
    for size in (1, 0, 7, 13, 9):
        piece = op(a[:, start : start + size], b[:, start : start + size], state, backend=backend)
        parts, state, start = [*parts, piece.h], piece.state, start + size
    pieces = torch.cat(parts, dim=1), state
    for ours, theirs in zip(pieces, whole, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(gradients(pieces, [a, b, h0]), gradients(whole, [a, b, h0]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend: str, log: bool, reverse: bool) -> None:
    op, lengths = log_linear_scan if log else linear_scan, torch.tensor([9, 0, 4])
    a, b, h0 = problem((3, 9, 2), torch.float64)
    with torch.no_grad():
        for x in (a, b):
            for row, length in enumerate(lengths.tolist()):
                x[row, length:] = torch.nan
    found = op(a, b, h0, lengths=lengths, reverse=reverse, backend=backend)
    grads = gradients(found, [a, b, h0])
    for row, length in enumerate(lengths.tolist()):
        alone = op(a[row : row + 1, :length], b[row : row + 1, :length], h0[row : row + 1], reverse=reverse)
        torch.testing.assert_close(found.h[row, :length], alone.h[0])
        torch.testing.assert_close(found.state[row], alone.state[0])
        assert float(found.h[row, length:].detach().abs().sum()) == 0
        assert all(float(grad[row, length:].abs().sum()) == 0 for grad in grads[:2])
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decays_of_other_shapes_and_kinds(backend: str) -> None:
    """One per channel, real ones of complex states, inputs of any strides."""
    _, b, h0 = problem((2, 6, 3), torch.complex128)
    a = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    found = linear_scan(a, b, h0, backend=backend)
    expected = linear_scan(a.to(b.dtype).expand_as(b).clone(), b, h0, backend="reference")
    torch.testing.assert_close(found.h, expected.h)
    for ours, theirs in zip(gradients(found, [a, b]), gradients(expected, [a, b]), strict=True):
        torch.testing.assert_close(ours, theirs)
    turned = b.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not turned.is_contiguous()
    torch.testing.assert_close(linear_scan(a, turned, h0, backend=backend).h, found.h)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logarithms_of_any_size(backend: str, dtype: torch.dtype) -> None:
    """Decays of e^-300 a frame, inputs from nothing to e^500: no state could be kept as a number."""
    rng = np.random.default_rng(0)
    log_a = rng.choice([0.0, -1e-6, -300.0, -np.inf], (3, 50, 4))
    log_b = rng.choice([-np.inf, -500.0, 0.0, 500.0], (3, 50, 4), p=[0.7, 0.1, 0.1, 0.1])
    log_h0 = rng.choice([-np.inf, 200.0], (3, 4))
    with np.errstate(all="ignore"):
        expected, before = np.empty_like(log_b), log_h0.astype(np.longdouble)
        for t in range(50):
            before = np.logaddexp(log_a[:, t] + before, log_b[:, t])
            expected[:, t] = before
    inputs = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (log_a, log_b, log_h0)]
    found = log_linear_scan(*inputs, backend=backend)
    np.testing.assert_allclose(found.h.detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    shown = found.h.masked_fill(found.h == -torch.inf, 0.0)
    grads = torch.autograd.grad(shown.sum(), inputs)
    assert all(bool(grad.isfinite().all()) for grad in grads)
    # Each state that there is hands its gradient to what it is made of, in shares that sum to one.
    assert float(grads[1].sum() + grads[2].sum()) == pytest.approx(float((found.h != -torch.inf).sum()))


def test_a_state_of_nothing_in_logarithms() -> None:
    begun = log_linear_scan(torch.zeros(1, 3, 1), torch.tensor([[[-torch.inf], [2.0], [2.0]]])).h
    np.testing.assert_allclose(begun.flatten().numpy(), [-np.inf, 2.0, 2.0 + np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("op", [linear_scan, log_linear_scan])
@pytest.mark.parametrize("constant", [False, True])
def test_it_differentiates_once(op: Callable[..., Any], constant: bool) -> None:
    """Also where the gradient that comes in is a constant."""
    a, b, h0 = problem((1, 4, 2), torch.float64)
    h = op(a, b, h0).h
    (grad,) = torch.autograd.grad(h.sum() if constant else h.square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiates twice only"):
        grad.square().sum().backward()
    for start in ([a, b, h0], [a, b]):
        assert torch.autograd.gradgradcheck(lambda *x: op(*x, backend="reference"), start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_returned_is_not_what_was_given(backend: str) -> None:
    nothing, h0 = torch.zeros(1, 0, 2), torch.zeros(1, 2)
    linear_scan(nothing, nothing, h0, backend=backend).state.fill_(7)
    assert not h0.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_is_as_wide_as_the_widest_input(backend: str) -> None:
    a, b = torch.ones(1, 3, 2), torch.zeros(1, 3, 2)
    fine = torch.full((1, 2), 1 + 1e-12, dtype=torch.float64)
    found = linear_scan(a, b, fine, backend=backend)
    assert found.h.dtype == torch.float32
    assert torch.equal(found.state, fine)
    assert linear_scan(a.bfloat16(), b.bfloat16(), backend=backend).state.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(2, 4, 2)}, r"expected a that broadcasts to \(2, 5, 3\), found \(2, 4, 2\)"),
        ({"a": torch.zeros(1, 2, 5, 3)}, "expected a that broadcasts"),
        ({"a": torch.zeros(2, 5, 3, dtype=torch.complex64)}, "expected a as real as b, found complex"),
        ({"b": torch.zeros(3)}, r"expected b of shape \(B, T, ...\), found \(3,\)"),
        ({"b": torch.zeros(2, 5, 3, dtype=torch.int64)}, "expected b of a floating dtype, found torch.int64"),
        ({"h0": torch.zeros(2, 4)}, r"expected h0 of shape \(2, 3\), found \(2, 4\)"),
        ({"lengths": torch.tensor([5, 6])}, r"expected lengths within \[0, 5\], found 6 for utterance 1"),
        ({"lengths": torch.tensor([5.0, 5.0])}, "expected lengths of dtype int32 or int64"),
        ({"reverse": "no"}, "expected reverse True or False, found 'no'"),
        ({"a": 0.5}, "expected a as a tensor, found float"),
        ({"h0": torch.zeros(2, 3, device="meta")}, "expected h0 on cpu, where b is, found meta: move it"),
        ({"backend": "fast"}, "expected a backend among reference, cpu, triton, found 'fast'"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    arguments = {"a": torch.zeros(2, 5, 3), "b": torch.zeros(2, 5, 3), "h0": None, **change}
    with pytest.raises(ValueError, match=message):
        linear_scan(**arguments)


def test_logarithms_are_of_real_numbers() -> None:
    with pytest.raises(ValueError, match=r"expected log_b of a floating dtype, found torch\.complex64"):
        log_linear_scan(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3, dtype=torch.complex64))
