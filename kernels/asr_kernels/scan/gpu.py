"""Scans in Triton: chunks of frames in parallel, in two passes, with the state before each chunk in between.

A program has some channels of one stream and walks over the frames of a chunk; the state stays in registers.

    chunks   each from nothing: its last state, and what it leaves of a state before it (the product of a)
    carry    from chunk to chunk: the state before each, and the last one
    states   each chunk again, from the state before it: all states are written

A scan of one chunk, or with enough streams and channels to fill the machine, needs the last pass alone. The
gradient is a scan the other way round whose decay is that of the frame treated before (cpu.py has the
equations); its last pass writes the gradient of `a` as well.

Numbers are real, complex (pairs, as torch.view_as_real lays them out) or logarithms; sums are float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["T", "D", "frames", "chunks"]

# Channels of a program, a warp that waits for no other; frames of a chunk; frames that are on their way from
# memory while one is treated.
_CHANNELS, _FRAMES, _STAGES = 32, 64, 16
# Programs that keep a large GPU's memory busy (132 multiprocessors of the H100, 4 KB on their way for each of
# 4 programs): then chunks bring nothing.
_ENOUGH = 512


class Gradients(NamedTuple):
    """Of the inputs of a scan."""

    a: Tensor | None
    b: Tensor
    h0: Tensor


def scan(a: Tensor, b: Tensor, h0: Tensor, *, reverse: bool, log: bool) -> tuple[Tensor, Tensor]:
    """h (B, T, D) and the last state (B, D) from a, b (B, T, D), T at least 1, and h0 (B, D)."""
    a = a.to(b.dtype) if b.is_complex() else a
    h = torch.empty(b.shape, dtype=h0.dtype if log else b.dtype, device=b.device)
    last = torch.empty(h0.shape, dtype=h0.dtype, device=h0.device)
    _run(_Frames(a, b, h), h0, last, reverse=reverse, log=log)
    return h, last


def gradients(
    a: Tensor,
    b: Tensor | None,
    h: Tensor,
    h0: Tensor,
    grad_h: Tensor,
    grad_last: Tensor,
    *,
    reverse: bool,
    wanted_a: bool,
) -> Gradients:
    """From dL/dh (B, T, D) and that of the last state (B, D); of logarithms if b is there."""
    if b is not None:
        return _log_gradients(a, b, h, h0, grad_h, grad_last, reverse)
    a = a.to(h.dtype) if h.is_complex() else a
    grad_b = torch.empty(h.shape, dtype=h0.dtype, device=h.device)
    grad_a = torch.empty_like(grad_b) if wanted_a else None
    last = torch.empty(h0.shape, dtype=h0.dtype, device=h.device)
    _run(
        _Frames(a, grad_h, grad_b, h if wanted_a else None, grad_a),
        grad_last, last, reverse=not reverse, before=h0, gradient=True,
    )  # fmt: skip
    return Gradients(grad_a, grad_b, last)


def _log_gradients(
    a: Tensor, b: Tensor, h: Tensor, h0: Tensor, grad_h: Tensor, grad_last: Tensor, reverse: bool
) -> Gradients:
    """The scan of the shares; see cpu.py."""
    wide = h0.dtype
    before = torch.cat((h[:, 1:], h0[:, None]) if reverse else (h0[:, None], h[:, :-1]), dim=1)
    nothing = h == -torch.inf
    share = torch.exp(a.to(wide) + before - h).masked_fill_(nothing, 0.0)
    rest = torch.exp(b.to(wide) - h).masked_fill_(nothing, 0.0)
    found = gradients(share, None, h, h0, grad_h, grad_last, reverse=reverse, wanted_a=False)
    return Gradients(share.mul_(found.b), rest.mul_(found.b), found.h0)


class _Frames(NamedTuple):
    """Everything of shape (B, T, D)."""

    a: Tensor
    b: Tensor
    out: Tensor
    h: Tensor | None = None
    """The states, for the gradient of a."""
    grad_a: Tensor | None = None


def _run(
    frames: _Frames,
    start: Tensor,
    last: Tensor,
    *,
    reverse: bool,
    log: bool = False,
    before: Tensor | None = None,
    gradient: bool = False,
) -> None:
    """Launch the passes; `last` becomes the last state or, of a gradient, that of the state before."""
    B, T, D = frames.b.shape
    kind = "log" if log else "complex" if frames.b.is_complex() else "real"
    pairs = 2 if kind == "complex" else 1
    a, b, out, h, grad_a = (None if x is None else _pairs(x) for x in frames)
    assert a is not None
    assert b is not None
    assert out is not None
    start, last = _pairs(start).contiguous(), _pairs(last)
    if h is not None:
        h = h.contiguous()
    if before is not None:
        before = _pairs(before).contiguous()
    columns = triton.cdiv(D, _CHANNELS)
    few = columns * B < _ENOUGH and T > _FRAMES
    length = _FRAMES if few else T
    chunks = triton.cdiv(T, length)
    carried = start
    options: dict[str, Any] = {
        "REVERSE": reverse, "KIND": kind, "GRADIENT": gradient, "CHANNELS": _CHANNELS, "STAGES": _STAGES,
        "num_warps": 1,
    }  # fmt: skip
    grid, sizes = (chunks, columns, B), (T, D, length, chunks)
    if few:
        ends = start.new_empty((2, B, chunks, D * pairs))
        carried = start.new_empty((B, chunks, D * pairs))
        _chunks_kernel[grid](a, b, ends[0], ends[1], *a.stride()[:3], *b.stride()[:3], *sizes, **options)
        _carry_kernel[(columns, B)](ends[0], ends[1], start, carried, *sizes, **options)
    _states_kernel[grid](
        a, b, carried, out, last, h, before, grad_a,
        *a.stride()[:3], *b.stride()[:3], *sizes, **options,
    )  # fmt: skip


def _pairs(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, (..., 2)."""
    x = x.resolve_conj().resolve_neg()  # gradients come as they are
    return torch.view_as_real(x) if x.is_complex() else x


@triton.jit
def _load(x, offset, mask, KIND: tl.constexpr, NOTHING: tl.constexpr):
    """Real and imaginary part in float32; only complex numbers have the second."""
    real = tl.load(x + offset, mask=mask, other=NOTHING).to(tl.float32)
    if KIND == "complex":
        return real, tl.load(x + offset + 1, mask=mask, other=0.0).to(tl.float32)
    return real, real


@triton.jit
def _store(x, offset, real, imaginary, mask, KIND: tl.constexpr):
    tl.store(x + offset, real.to(x.dtype.element_ty), mask=mask)
    if KIND == "complex":
        tl.store(x + offset + 1, imaginary.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _times(a, ai, h, hi, KIND: tl.constexpr, CONJUGATE: tl.constexpr):
    """a h, or conj(a) h; the sum of logarithms."""
    if KIND == "complex":
        if CONJUGATE:
            return a * h + ai * hi, a * hi - ai * h
        return a * h - ai * hi, a * hi + ai * h
    if KIND == "log":
        return a + h, h
    return a * h, h


@triton.jit
def _plus(x, xi, y, yi, KIND: tl.constexpr):
    """x + y, of logarithms too."""
    if KIND == "log":
        most = tl.maximum(x, y)
        finite = tl.maximum(most, -3.0e38)
        return most + tl.log(1.0 + tl.exp(tl.minimum(x, y) - finite)), x
    return x + y, xi + yi


@triton.jit
def _place(frames, T, REVERSE: tl.constexpr):
    """How many frames this program's chunk has, the first in the order of the scan, and the step on."""
    first = tl.program_id(0) * frames
    count = tl.minimum(frames, T - first)
    if REVERSE:
        return count, T - 1 - first, -1
    return count, first, 1


@triton.jit
def _decay(
    a, offset, t, step, T, stride, mask,
    KIND: tl.constexpr, GRADIENT: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The decay with which the scan comes to frame t: of a gradient that of the frame before, at first 1."""
    if GRADIENT:
        begins = t == (T - 1 if REVERSE else 0)
        real, imaginary = _load(a, offset + (t - step).to(tl.int64) * stride, mask & (begins == 0), KIND, 0.0)
        return tl.where(begins, 1.0, real), imaginary
    return _load(a, offset + t.to(tl.int64) * stride, mask, KIND, 0.0)


@triton.jit(do_not_specialize=_VARYING)
def _chunks_kernel(
    a, b, products, ends, a_b, a_t, a_d, b_b, b_t, b_d, T, D, frames, chunks,
    REVERSE: tl.constexpr, KIND: tl.constexpr, GRADIENT: tl.constexpr,
    CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, blocks of channels, B): product of a and last state (B, chunks, D), from nothing."""
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    inside = d < D
    count, t, step = _place(frames, T, REVERSE)
    own_a, own_b = row * a_b + d.to(tl.int64) * a_d, row * b_b + d.to(tl.int64) * b_d
    one: tl.constexpr = 0.0 if KIND == "log" else 1.0
    nothing: tl.constexpr = float("-inf") if KIND == "log" else 0.0
    product = tl.full((CHANNELS,), one, tl.float32)
    product_i = tl.zeros((CHANNELS,), tl.float32)
    state = tl.full((CHANNELS,), nothing, tl.float32)
    state_i = tl.zeros((CHANNELS,), tl.float32)
    for _ in tl.range(0, count, num_stages=STAGES):
        decay, decay_i = _decay(a, own_a, t, step, T, a_t, inside, KIND, GRADIENT, REVERSE)
        x, x_i = _load(b, own_b + t.to(tl.int64) * b_t, inside, KIND, 0.0)
        product, product_i = _times(decay, decay_i, product, product_i, KIND, GRADIENT)
        state, state_i = _times(decay, decay_i, state, state_i, KIND, GRADIENT)
        state, state_i = _plus(state, state_i, x, x_i, KIND)
        t += step
    size: tl.constexpr = 2 if KIND == "complex" else 1
    out = ((row * chunks + tl.program_id(0)) * D + d) * size
    _store(products, out, product, product_i, inside, KIND)
    _store(ends, out, state, state_i, inside, KIND)


@triton.jit(do_not_specialize=_VARYING)
def _carry_kernel(
    products, ends, start, carried, T, D, frames, chunks,
    REVERSE: tl.constexpr, KIND: tl.constexpr, GRADIENT: tl.constexpr,
    CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels, B): the state before each chunk, (B, chunks, D)."""
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1).to(tl.int64)
    inside = d < D
    size: tl.constexpr = 2 if KIND == "complex" else 1
    state, state_i = _load(start, (row * D + d) * size, inside, KIND, 0.0)
    for chunk in range(chunks):
        own = ((row * chunks + chunk) * D + d) * size
        _store(carried, own, state, state_i, inside, KIND)
        product, product_i = _load(products, own, inside, KIND, 0.0)
        end, end_i = _load(ends, own, inside, KIND, 0.0)
        # The product is conjugated already.
        state, state_i = _times(product, product_i, state, state_i, KIND, False)
        state, state_i = _plus(state, state_i, end, end_i, KIND)


@triton.jit(do_not_specialize=_VARYING)
def _states_kernel(
    a, b, carried, out, last, h, before, grad_a, a_b, a_t, a_d, b_b, b_t, b_d, T, D, frames, chunks,
    REVERSE: tl.constexpr, KIND: tl.constexpr, GRADIENT: tl.constexpr,
    CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, blocks of channels, B): the states (B, T, D), and the last one (B, D).

    Of a gradient: that of b, of a (if it is wanted, from the states h and the one before them), and of h0.
    """
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    inside = d < D
    count, t, step = _place(frames, T, REVERSE)
    own_a, own_b = row * a_b + d.to(tl.int64) * a_d, row * b_b + d.to(tl.int64) * b_d
    size: tl.constexpr = 2 if KIND == "complex" else 1
    state, state_i = _load(carried, ((row * chunks + tl.program_id(0)) * D + d) * size, inside, KIND, 0.0)
    for _ in tl.range(0, count, num_stages=STAGES):
        decay, decay_i = _decay(a, own_a, t, step, T, a_t, inside, KIND, GRADIENT, REVERSE)
        x, x_i = _load(b, own_b + t.to(tl.int64) * b_t, inside, KIND, 0.0)
        state, state_i = _times(decay, decay_i, state, state_i, KIND, GRADIENT)
        state, state_i = _plus(state, state_i, x, x_i, KIND)
        own = ((row * T + t) * D + d) * size
        _store(out, own, state, state_i, inside, KIND)
        if GRADIENT and grad_a is not None:
            # The state that the forward scan came from lies where this scan goes on.
            ends = t == (0 if REVERSE else T - 1)
            g, g_i = _load(before, (row * D + d) * size, inside & ends, KIND, 0.0)
            p, p_i = _load(h, ((row * T + t + step) * D + d) * size, inside & (ends == 0), KIND, 0.0)
            p, p_i = tl.where(ends, g, p), tl.where(ends, g_i, p_i)
            p, p_i = _times(p, p_i, state, state_i, KIND, True)
            _store(grad_a, own, p, p_i, inside, KIND)
        t += step
    if tl.program_id(0) == chunks - 1:
        if GRADIENT:
            # dL/dh0 has passed the first decay as well.
            decay, decay_i = _load(a, own_a + (t - step).to(tl.int64) * a_t, inside, KIND, 0.0)
            state, state_i = _times(decay, decay_i, state, state_i, KIND, True)
        _store(last, (row * D + d) * size, state, state_i, inside, KIND)
