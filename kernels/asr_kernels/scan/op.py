"""`linear_scan` and `log_linear_scan`: first-order linear recurrences over time; see README.md."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.autograd import once
from asr_kernels.scan import cpu, reference


class Scan(NamedTuple):
    """What a scan gives."""

    h: Tensor
    """(B, T, ...) in the dtype of b, logarithms in float32 at least; 0 beyond the lengths, of both."""
    state: Tensor
    """(B, ...) the last h of each stream, float32 (or as wide as the widest input): pass it on as h0."""


@dispatch.entry_point
def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Scan:
    """h_t = a_t h_{t-1} + b_t for every channel, real or complex (Blelloch 1990; Martin and Cundy 2018).

    Args:
        a: decay, of the shape of b or one that broadcasts to it.
        b: (B, T, ...) float32, float64, bfloat16, float16, complex64 or complex128.
        h0: (B, ...) the state before the first frame; None for zeros.
        lengths: (B,) int32 or int64 frames of each stream; its state stays as it is from there on.
        reverse: from the last frame of each stream to the first: h_t = a_t h_{t+1} + b_t.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide.

    Returns:
        All states and the last one. Sums are kept in float32, or as wide as the widest input. A stream in
        pieces, each with the state of the one before, gives what the whole gives. Gradients reach a, b and
        h0, also from the state.

    Raises:
        ValueError: a shape, dtype or length that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    return _scan(a, b, h0, lengths, reverse, backend, log=False)


@dispatch.entry_point
def log_linear_scan(
    log_a: Tensor,
    log_b: Tensor,
    log_h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Scan:
    """log h_t of h_t = a_t h_{t-1} + b_t with nothing negative, in logarithms throughout (Heinsen 2023).

    Whatever the size of a, b and h, nothing overflows or is lost: -inf is zero; +inf is not a number here.
    Arguments, results and errors are those of `linear_scan`, real numbers only; without `log_h0` the state
    before is zero, -inf.
    """
    return _scan(log_a, log_b, log_h0, lengths, reverse, backend, log=True)


def _scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    backend: str | None,
    *,
    log: bool,
) -> Scan:
    _check(a, b, h0, reverse, log)
    nothing, one = (-torch.inf, 0.0) if log else (0.0, 1.0)
    dtypes = [x.dtype for x in (a, b, h0) if x is not None]
    wide = functools.reduce(torch.promote_types, dtypes, torch.float32)
    if h0 is None:
        h0 = b.new_full((b.shape[0], *b.shape[2:]), nothing, dtype=wide)
    valid = checks.valid_frames(lengths, b)
    if valid is not None:
        valid = valid.view(*valid.shape, *(1,) * (b.ndim - 2))
        a, b = a.expand_as(b).masked_fill(~valid, one), b.masked_fill(~valid, nothing)
    B, D = b.shape[0], math.prod(b.shape[2:])
    # An expanded `a` stays a view without memory of its own, where it can.
    flat = a.expand_as(b).reshape(*b.shape[:2], D), b.reshape(*b.shape[:2], D), h0.to(wide).reshape(B, D)
    chosen = dispatch.choose_narrow(backend, b, wide)
    if chosen == "reference":
        h, state = reference.scan(flat[0].to(wide), flat[1].to(wide), flat[2], reverse=reverse, log=log)
        h = h.to(wide if log else b.dtype)
    else:
        h, state = _Scan.apply(*flat, reverse, log, chosen)
    h = h.view(b.shape)
    return Scan(h if valid is None else h.masked_fill(~valid, 0.0), state.view(B, *b.shape[2:]))


def _check(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, log: bool) -> None:
    allowed = checks.FLOATS if log else (*checks.FLOATS, torch.complex64, torch.complex128)
    names = ("log_a", "log_b", "log_h0") if log else ("a", "b", "h0")
    checks.flag("reverse", reverse)
    checks.tensors(**dict(zip(names, (a, b, h0), strict=True)))
    checks.same_device(names[1], b, **dict(zip(names, (a, b, h0), strict=True)))
    for name, x in zip(names, (a, b, h0), strict=True):
        if x is not None and x.dtype not in allowed:
            raise ValueError(f"expected {name} of a floating dtype, found {x.dtype}")
        if x is not None and x.is_complex() > b.is_complex():
            raise ValueError(f"expected {name} as real as {names[1]}, found complex: make {names[1]} complex")
    if b.ndim < 2:
        raise ValueError(f"expected {names[1]} of shape (B, T, ...), found {tuple(b.shape)}")
    if a.ndim > b.ndim or any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"expected {names[0]} that broadcasts to {tuple(b.shape)}, found {tuple(a.shape)}")
    state = (b.shape[0], *b.shape[2:])
    if h0 is not None and h0.shape != state:
        raise ValueError(f"expected {names[2]} of shape {state}, found {tuple(h0.shape)}")


class _Scan(torch.autograd.Function):
    """h (B, T, D) in the dtype of b and the last state (B, D), from a, b (B, T, D) and h0 (B, D)."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, h0: Tensor, reverse: bool, log: bool, backend: dispatch.Backend
    ) -> tuple[Tensor, Tensor]:
        ctx.reverse, ctx.backend, ctx.dtype = reverse, backend, b.dtype
        if b.shape[1] == 0:
            h, state = torch.empty_like(b, dtype=h0.dtype if log else b.dtype), h0.clone()
        elif backend == "triton":
            from asr_kernels.scan import gpu  # triton is imported where it is used

            h, state = gpu.scan(a, b, h0, reverse=reverse, log=log)
        else:
            found = cpu.scan(*(_array(x, h0.dtype) for x in (a, b, h0)), reverse=reverse, log=log)
            whole = torch.from_numpy(found).to(b.device)
            # Shares are differences of logarithms, of which half precision would leave two digits.
            h, state = whole if log else whole.to(b.dtype), whole[:, 0 if reverse else -1].clone()
        ctx.save_for_backward(a, b if log else None, h0, h)
        return h, state

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        a, b, h0, h = ctx.saved_tensors
        with torch.no_grad():
            found = _gradients(ctx, a, b, h0, h, grad_h, grad_state)
        return (*once(found, a, b, h0, grad_h, grad_state), None, None, None)


def _gradients(
    ctx: Any, a: Tensor, b: Tensor | None, h0: Tensor, h: Tensor, grad_h: Tensor, grad_state: Tensor
) -> list[Tensor | None]:
    """Of a, b and h0, each in its dtype."""
    wanted = ctx.needs_input_grad[0]
    if h.shape[1] == 0:
        return [torch.zeros_like(a), torch.zeros_like(a, dtype=ctx.dtype), grad_state]
    found: tuple[Tensor | None, ...]
    if ctx.backend == "triton":
        from asr_kernels.scan import gpu

        found = gpu.gradients(a, b, h, h0, grad_h, grad_state, reverse=ctx.reverse, wanted_a=wanted)
    else:
        arrays = [_array(x, h0.dtype) for x in (h, h0, grad_h, grad_state)]
        if b is not None:
            ours = cpu.log_gradients(_array(a, h0.dtype), _array(b, h0.dtype), *arrays, reverse=ctx.reverse)
        else:
            ours = cpu.gradients(_array(a, h0.dtype), *arrays, reverse=ctx.reverse, wanted_a=wanted)
        found = tuple(None if x is None else torch.from_numpy(x).to(h.device) for x in ours)
    dtypes = a.dtype, ctx.dtype, h0.dtype
    return [None if x is None else _real_as(x, like).to(like) for x, like in zip(found, dtypes, strict=True)]


def _real_as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a real input is real."""
    return x.real if x.is_complex() and not dtype.is_complex else x


def _array(x: Tensor, dtype: torch.dtype) -> cpu.Array:
    array: cpu.Array = x.detach().to("cpu", dtype).resolve_conj().resolve_neg().numpy()
    return array
