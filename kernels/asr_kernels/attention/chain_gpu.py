"""The two walks of chain.py over the chunks, in Triton; a program has some columns of a head's state."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of a program, at most, and numbers of a state on chip: all rows are there, as products need them.
_COLUMNS, _NUMBERS = 32, 2048
_VARYING = ["chunks"]


def forward(
    fresh: Tensor, stale: Tensor, keys: Tensor, last: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """U, S before every chunk and behind the last, of contiguous float32 inputs; see chain.py for shapes."""
    befores = state.new_empty(len(fresh), *state.shape)
    updates, end = torch.empty_like(fresh), torch.empty_like(state)
    grid, options = _launch(keys, state)
    _forward_kernel[grid](fresh, stale, keys, last, state, updates, befores, end, len(fresh), **options)
    return updates, befores, end


def backward(
    stale: Tensor, keys: Tensor, last: Tensor, grad_updates: Tensor, grad_befores: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at X, at S behind every chunk, and at the first state."""
    at_fresh, behind = torch.empty_like(grad_updates), torch.empty_like(grad_befores)
    at_state = torch.empty_like(grad_state)
    grid, options = _launch(keys, grad_state)
    _backward_kernel[grid](
        stale, keys, last, grad_updates, grad_befores, grad_state, at_fresh, behind, at_state, len(keys),
        **options,
    )  # fmt: skip
    return at_fresh, behind, at_state


def _launch(keys: Tensor, state: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    B, H, K, V = state.shape
    M = keys.shape[-2]
    rows, width = (max(16, triton.next_power_of_2(n)) for n in (M, K))
    columns = max(16, min(_COLUMNS, _NUMBERS // width, triton.next_power_of_2(V)))
    options = {"M": M, "K": K, "V": V, "ROWS": rows, "WIDTH": width, "COLUMNS": columns}
    # Chunks are fetched ahead as far as the shared memory of small cards goes.
    options |= {"num_warps": 4, "num_stages": 3} if width <= 64 else {"num_warps": 8, "num_stages": 2}
    return (B * H, triton.cdiv(V, columns)), options


@triton.jit
def _block(x, at, size, width, ROWS: tl.constexpr, column):
    """(ROWS, columns) of a row-major matrix (size, width) at x + at; zeros outside."""
    row = tl.arange(0, ROWS)[:, None]
    inside = (row < size) & (column < width)[None, :]
    return tl.load(x + at + row * width + column[None, :], mask=inside, other=0.0)


@triton.jit
def _put(x, at, size, width, value, ROWS: tl.constexpr, column):
    row = tl.arange(0, ROWS)[:, None]
    inside = (row < size) & (column < width)[None, :]
    tl.store(x + at + row * width + column[None, :], value, mask=inside)


@triton.jit
def _dot(a, b):
    """Three products of TF32 have nearly the digits of float32."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    fresh, stale, keys, last, start, updates, befores, end, chunks,
    M: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (B H, blocks of V)."""
    head, heads = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    key, value = tl.arange(0, WIDTH), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    state = _block(start, head * K * V, K, V, WIDTH, value)
    for c in range(chunks):
        at = head + c * heads.to(tl.int64)
        _put(befores, at * K * V, K, V, state, WIDTH, value)
        w = _block(stale, at * M * K, M, K, ROWS, key)
        u = _block(fresh, at * M * V, M, V, ROWS, value) - _dot(w, state)
        _put(updates, at * M * V, M, V, u, ROWS, value)
        k = _block(keys, at * M * K, M, K, ROWS, key)
        state = tl.load(last + at) * state + _dot(tl.trans(k), u)
    _put(end, head * K * V, K, V, state, WIDTH, value)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kernel(
    stale, keys, last, grad_updates, grad_befores, grad_end, at_fresh, behind, at_start, chunks,
    M: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (B H, blocks of V)."""
    head, heads = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    key, value = tl.arange(0, WIDTH), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    grad = _block(grad_end, head * K * V, K, V, WIDTH, value)
    for step in range(chunks):
        at = head + (chunks - 1 - step) * heads.to(tl.int64)
        _put(behind, at * K * V, K, V, grad, WIDTH, value)
        k = _block(keys, at * M * K, M, K, ROWS, key)
        u = _block(grad_updates, at * M * V, M, V, ROWS, value) + _dot(k, grad)
        _put(at_fresh, at * M * V, M, V, u, ROWS, value)
        w = _block(stale, at * M * K, M, K, ROWS, key)
        outside = _block(grad_befores, at * K * V, K, V, WIDTH, value)
        grad = outside + tl.load(last + at) * grad - _dot(tl.trans(w), u)
    _put(at_start, head * K * V, K, V, grad, WIDTH, value)
