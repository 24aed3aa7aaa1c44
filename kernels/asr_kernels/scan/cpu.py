"""Scans in numpy: one vector operation or two per frame, over all streams and channels, written in place.

A parallel scan loses on a CPU: it reads everything more than once, and a frame of a batch is already as long
a vector as is needed. The previous frame is still in the first-level cache when the next is made of it.

The gradient G of the states is a scan the other way round; where it is complex, of conjugates::

    G_t = dL/dh_t + conj(a_{t+1}) G_{t+1}      dL/db_t = G_t      dL/da_t = G_t conj(h_{t-1})

In logarithms, with the shares w_t = exp(log a_t + log h_{t-1} - log h_t) and 1 - w_t of both terms::

    G_t = dL/dlog h_t + w_{t+1} G_{t+1}      dL/dlog b_t = (1 - w_t) G_t      dL/dlog a_t = w_t G_t
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Gradients(NamedTuple):
    """Of the inputs of a scan."""

    a: Array | None
    """(B, T, D), None if it is not wanted."""
    b: Array
    """(B, T, D)."""
    h0: Array
    """(B, D)."""


def scan(a: Array, b: Array, h0: Array, *, reverse: bool, log: bool) -> Array:
    """h (B, T, D), T at least 1; a and b may have any strides."""
    h = np.empty(b.shape, b.dtype)
    before, add = h0, _LogAdd(h0) if log else np.add
    step = np.add if log else np.multiply
    with np.errstate(all="ignore"):
        for a_t, b_t, h_t in zip(*(_frames(x, reverse) for x in (a, b, h)), strict=True):
            step(a_t, before, out=h_t)
            add(h_t, b_t, out=h_t)
            before = h_t
    return h


class _LogAdd:
    """log(exp(x) + exp(y)), of vector operations: numpy's own is twice as slow. -inf is zero; +inf gives NaN.

    log(1 + z) serves for log1p: z is at most 1, so it rounds by 1e-7 of the sum.
    """

    def __init__(self, like: Array) -> None:
        self._lesser, self._finite = np.empty_like(like), np.empty_like(like)
        self._lowest = np.finfo(like.dtype).min

    def __call__(self, x: Array, y: Array, out: Array) -> None:
        lesser = np.minimum(x, y, out=self._lesser)
        np.maximum(x, y, out=out)
        # -inf - -inf would be NaN.
        np.subtract(lesser, np.maximum(out, self._lowest, out=self._finite), out=lesser)
        np.exp(lesser, out=lesser)
        np.add(lesser, 1, out=lesser)
        np.add(out, np.log(lesser, out=lesser), out=out)


def gradients(
    a: Array, h: Array, h0: Array, grad_h: Array, grad_last: Array, *, reverse: bool, wanted_a: bool
) -> Gradients:
    """From dL/dh (B, T, D) and that of the last state (B, D), which comes on top."""
    conjugated = np.iscomplexobj(h)
    grad = np.empty(h.shape, h.dtype)
    grad_a = np.empty_like(grad) if wanted_a else None
    with np.errstate(all="ignore"):
        # Conjugates of G until the end: so neither a nor h has to be conjugated.
        after = grad_last.conj() if conjugated else grad_last
        weight = np.ones_like(after)
        for a_t, g_t, d_t in zip(*(_frames(x, not reverse) for x in (a, grad, grad_h)), strict=True):
            np.multiply(weight, after, out=g_t)
            np.add(g_t, d_t.conj() if conjugated else d_t, out=g_t)
            after, weight = g_t, a_t
        grad_h0 = weight * after
        if grad_a is not None:
            for g_t, _, before, out in _shifted(grad, h, h0, grad_a, reverse):
                np.multiply(g_t, before, out=out)
    for x in (grad, grad_h0, grad_a):
        if conjugated and x is not None:
            np.conjugate(x, out=x)
    return Gradients(grad_a, grad, grad_h0)


def log_gradients(
    a: Array, b: Array, h: Array, h0: Array, grad_h: Array, grad_last: Array, *, reverse: bool
) -> Gradients:
    """The same of a scan in logarithms."""
    share = np.empty_like(h)
    with np.errstate(all="ignore"):
        for a_t, h_t, before, out in _shifted(a, h, h0, share, reverse):
            np.add(a_t, before, out=out)
            np.subtract(out, h_t, out=out)
        np.exp(share, out=share)
        rest = np.exp(np.subtract(b, h))
        # Where the state is nothing there is no share: -inf - -inf.
        share[np.isneginf(h)] = rest[np.isneginf(h)] = 0.0
        found = gradients(share, h, h0, grad_h, grad_last, reverse=reverse, wanted_a=False)
        rest *= found.b
        share *= found.b
    return Gradients(share, rest, found.h0)


def _frames(x: Array, reverse: bool) -> Array:
    """(T, B, D) in the order in which they are treated."""
    by_time = x.transpose(1, 0, 2)
    return by_time[::-1] if reverse else by_time


def _shifted(
    a: Array, h: Array, h0: Array, out: Array, reverse: bool
) -> Iterator[tuple[Array, Array, Array, Array]]:
    """a, h, the h before and where to write: of the first frame, then of all others."""
    a, h, out = (x[:, ::-1] if reverse else x for x in (a, h, out))
    yield a[:, 0], h[:, 0], h0, out[:, 0]
    yield a[:, 1:], h[:, 1:], h[:, :-1], out[:, 1:]
