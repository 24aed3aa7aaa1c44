"""The Triton scans against the CPU path in float64; test_triton.py runs this."""

from __future__ import annotations

import pytest
import torch
from test_scan import gradients, problem
from triton_support import DEVICE, HALF, INTERPRETED, poisoned

from asr_kernels import linear_scan, log_linear_scan
from asr_kernels.scan import gpu

# The interpreter reports numpy's warnings about the infinities that the kernels handle.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

__all__ = ["poisoned"]  # a fixture of every test here


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and blocks of channels from few numbers."""
    if INTERPRETED:
        monkeypatch.setattr(gpu, "_CHANNELS", 4)
        monkeypatch.setattr(gpu, "_FRAMES", 4)


def compare(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, reverse: bool, tolerance: float, **options: object
) -> None:
    """Values and all gradients."""
    op = log_linear_scan if kind == "log" else linear_scan
    inputs = [x.detach().to(DEVICE).requires_grad_() for x in problem(shape, dtype)]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = [x.detach().to("cpu", wide).requires_grad_() for x in inputs]
    found = op(*inputs, reverse=reverse, backend="triton", **options)
    expected = op(*exact, reverse=reverse, backend="cpu", **options)
    pairs = [*zip(found, expected, strict=True)]
    pairs += zip(gradients(tuple(x.cpu() for x in found), inputs), gradients(expected, exact), strict=True)
    for ours, theirs in pairs:
        difference = (ours.detach().to("cpu", wide) - theirs.detach()).abs().max()
        assert float(difference) <= tolerance * (1 + float(theirs.detach().abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex", "log"])
@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 11, 9), (2, 8, 4)])
def test_scans_equal_the_cpu_path(shape: tuple[int, ...], kind: str, reverse: bool, small: None) -> None:
    compare(shape, torch.complex64 if kind == "complex" else torch.float32, kind, reverse, 1e-5)


@pytest.mark.parametrize("kind", ["real", "complex", "log"])
def test_one_pass_is_enough_for_many_channels(
    kind: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_ENOUGH", 0)
    compare((2, 9, 3), torch.complex64 if kind == "complex" else torch.float32, kind, False, 1e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["real", "log"])
def test_half_precision(kind: str, dtype: torch.dtype, small: None) -> None:
    compare((2, 9, 5), dtype, kind, False, 2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_lengths(kind: str, small: None) -> None:
    dtype = torch.complex64 if kind == "complex" else torch.float32
    compare((3, 7, 3), dtype, kind, True, 1e-5, lengths=torch.tensor([7, 0, 3]))


def test_any_strides_and_one_decay_per_channel(small: None) -> None:
    _, b, h0 = (x.detach().to(DEVICE) for x in problem((2, 9, 5), torch.complex64))
    a = torch.tensor([0.9, 0.5j, 0.0, 1.0, -0.3], dtype=torch.complex64, device=DEVICE)
    turned = b.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    found = linear_scan(a, turned, h0, backend="triton").h
    torch.testing.assert_close(found, linear_scan(a, b, h0, backend="cpu").h)
    torch.testing.assert_close(
        linear_scan(a.real, b, h0, backend="triton").h, linear_scan(a.real, b, h0, backend="cpu").h
    )
    plain = linear_scan(a.conj(), b, h0, backend="triton").h
    torch.testing.assert_close(plain, linear_scan(a.conj().clone(), b, h0, backend="cpu").h)


def test_memory_with_the_other_sign(small: None) -> None:
    """The imaginary part of a conjugate is that of the number itself, marked to be read with a minus."""
    a, b, _ = (x.detach().to(DEVICE) for x in problem((2, 9, 4), torch.float32))
    found = []
    for backend in ("triton", "cpu"):
        h = linear_scan(a, b.requires_grad_(), backend=backend).h
        turned = torch.complex(torch.zeros_like(h), h).conj()
        (grad,) = torch.autograd.grad((turned * (1 + 2j)).real.sum(), b)
        again = linear_scan(a, torch.complex(b, b).detach().conj().imag, backend=backend).h
        found.append((grad, again))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_logarithms_of_nothing(small: None) -> None:
    log_b = torch.full((1, 9, 2), -torch.inf, device=DEVICE)
    log_b[:, 6, 0] = 300.0
    log_b.requires_grad_()
    found = log_linear_scan(torch.full((1, 9, 2), -200.0, device=DEVICE), log_b, backend="triton").h
    assert bool((found[:, :6] == -torch.inf).all())
    assert found[0, 6:, 0].tolist() == [300.0, 100.0, -100.0]
    (grad,) = torch.autograd.grad(found[0, 6:, 0].sum(), log_b)
    assert grad.abs().sum() == grad[0, 6, 0] == 3
