"""Scans, linear attention and recurrent layers, and their peers, on a GPU; gpu.py measures.

The gradient of the outputs is given, random, so that a step holds nothing but the op, forward and backward.
Scans are in float32, as decays are; all else is in bfloat16, decays excepted. Floors are what has to pass
through memory at least once, and for recurrent layers the matrix products besides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import lstm
import scan
import torch
from gpu import (
    BANDWIDTH,
    FLOPS,
    Contestant,
    Group,
    Problem,
    Row,
    Shape,
    compared,
    exact,
    half,
    rows_of,
    step,
)
from torch import Tensor, nn

from asr_kernels import Cell, delta_rule, gated_linear_attention, linear_scan, use_backend

SHAPES: dict[str, tuple[Shape, ...]] = {
    "scan": ((16, 2048, 1024), (16, 400, 512)),
    "decay per channel": ((8, 1024, 8, 64, 64), (16, 400, 4, 64, 64)),
    "decay per head": ((8, 1024, 8, 64, 64), (16, 400, 4, 64, 64)),
    "delta rule": ((8, 1024, 8, 64, 64),),
    "lstm": ((16, 500, 1, 512), (16, 500, 1, 1024)),
    "lstm, several heads": ((16, 500, 4, 128), (16, 500, 8, 128)),
    "gru, several heads": ((16, 500, 4, 128),),
}
SMOKE: dict[str, Shape] = {
    "scan": (2, 9, 4),
    "decay per channel": (1, 9, 1, 16, 16),
    "decay per head": (1, 9, 1, 16, 16),
    "delta rule": (1, 9, 1, 16, 16),
    "lstm": (2, 5, 1, 8),
    "lstm, several heads": (2, 5, 2, 8),
    "gru, several heads": (2, 5, 2, 8),
}


class Scan(NamedTuple):
    a: Tensor
    b: Tensor
    grad: Tensor


class Attention(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor | None
    grad: Tensor


class Layer(NamedTuple):
    modules: nn.ModuleList
    x: Tensor
    grad: Tensor


class Given(torch.autograd.Function):
    """apply(y, grad): a zero whose gradient at y is `grad`, at no cost."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


def rows(smoke: bool) -> list[Row]:
    return rows_of(GROUPS, {group: (shape,) for group, shape in SMOKE.items()} if smoke else SHAPES)


# -- Problems ----------------------------------------------------------------------------------------------


def make_scan(shape: Shape, _: str, device: str) -> Scan:
    problem = scan.make(*shape)
    a, b, weights = (x.detach().to(device) for x in problem)
    return Scan(a.requires_grad_(), b.requires_grad_(), weights)


def make_attention(kind: str, shape: Shape, _: str, device: str) -> Attention:
    B, T, H, K, V = shape
    torch.manual_seed(0)
    dtype = half(device)
    q, k, v, grad = (torch.randn(B, T, H, n) for n in (K, K, V, V))
    # As of trained gates: memories of a few to some hundred frames.
    decay = -torch.rand(B, T, H, K).square() if kind == "decay per channel" else -0.1 * torch.rand(B, T, H)
    beta = torch.rand(B, T, H).to(device, dtype).requires_grad_() if kind == "delta rule" else None
    q, k = q / K**0.5, k if beta is None else nn.functional.normalize(k, dim=-1)
    q, k, v = (x.to(device, dtype).requires_grad_() for x in (q, k, v))
    return Attention(q, k, v, decay.to(device).requires_grad_(), beta, grad.to(device, dtype))


def make_layer(kind: str, shape: Shape, _: str, device: str) -> Layer:
    B, T, H, D = shape
    torch.manual_seed(0)
    modules = nn.ModuleList(lstm.MODULES[kind](H * D, D, batch_first=True) for _ in range(H))
    x, grad = (torch.randn(B, T, H * D).to(device, half(device)) for _ in range(2))
    return Layer(modules.to(device, half(device)), x.requires_grad_(), grad)


# -- Contestants: the outputs ------------------------------------------------------------------------------

Op = Callable[[Problem], Tensor]
Make = Callable[[Shape, str, str], Problem]


def ours_scan(problem: Scan) -> Tensor:
    return linear_scan(problem.a, problem.b).h


def ours_gated(problem: Attention) -> Tensor:
    return gated_linear_attention(*problem[:4]).y


def ours_delta(problem: Attention) -> Tensor:
    q, k, v, log_decay, beta, _ = problem
    return delta_rule(q, k[:, :, None], v[:, :, None], beta[:, :, None], log_decay).y


def matrix_products(problem: Attention) -> Tensor:
    """Our chunkwise path in PyTorch's operations."""
    return gated_linear_attention(*problem[:4], backend="cpu").y


def flash(problem: Attention) -> Tensor:
    """flash-linear-attention's kernel of the same op."""
    ops = importlib.import_module("fla.ops")
    q, k, v, g, beta, _ = problem
    if beta is not None:
        return ops.chunk_gated_delta_rule(q, k, v, g=g, beta=beta, scale=1.0)[0]
    chunk = ops.chunk_gla if g.ndim == 4 else ops.chunk_simple_gla
    return chunk(q, k, v, g=g, scale=1.0)[0]


def ours_layer(kind: str, problem: Layer) -> Tensor:
    return lstm.ours(Cell("lstm" if kind == "lstm" else "gru"), problem.modules, True, problem.x)


def library(problem: Layer) -> Tensor:
    """cuDNN, a module per head."""
    return lstm.peer(problem.modules, problem.x)


# -- Floors, in seconds ------------------------------------------------------------------------------------


def scan_floor(shape: Shape) -> float:
    """Forward a and b are read and h is written; backward a, h and a gradient are read, and two written."""
    B, T, D = shape
    return 8 * 4 * B * T * D / BANDWIDTH


def attention_floor(kind: str, shape: Shape) -> float:
    """All inputs are read twice, and every output and every gradient passes once each way."""
    B, T, H, K, V = shape
    decay = 4 * K if kind == "decay per channel" else 4
    return B * T * H * (3 * (2 * (2 * K + V) + decay) + 2 * 2 * V) / BANDWIDTH


def layer_floor(gates: int, shape: Shape) -> float:
    """Three products each for the projection and the recurrence, and the projected input four times."""
    B, T, H, D = shape
    products = 3 * 2 * B * T * gates * H * D * (H * D + D) / FLOPS
    return products + 4 * 2 * B * T * gates * H * D / BANDWIDTH


# -- Groups ------------------------------------------------------------------------------------------------


def given(op: Op, problem: Problem) -> Tensor:
    return Given.apply(op(problem), problem.grad)


def dotted(op: Op, problem: Problem) -> Tensor:
    y = op(problem)
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y.to(wide) * problem.grad.to(wide)).sum()


def check(
    make: Make,
    definition: Op,
    dtype: Callable[[str], torch.dtype],
    shape: Shape,
    ops: dict[str, Op],
    name: str,
    device: str,
) -> float:
    """See Group.check."""
    problem = make(shape, "", device)
    wide = exact(problem)
    found = step(partial(dotted, ops[name], problem), problem)
    return compared(found, step(partial(dotted, definition, wide), wide), dtype(device))


def group(
    dimensions: str,
    make: Make,
    floor: Callable[[Shape], float],
    ops: dict[str, Op],
    definition: Op,
    checked: Shape,
    note: str = "",
    dtype: Callable[[str], torch.dtype] = half,
) -> Group:
    """Of the ops, the first is ours."""
    contestants = {
        name: Contestant(partial(given, op), floor, ours=not number, note="" if number else note)
        for number, (name, op) in enumerate(ops.items())
    }
    return Group(dimensions, contestants, make, partial(check, make, definition, dtype, checked, ops))


def attention_group(kind: str, ops: dict[str, Op], note: str = "") -> Group:
    definition = partial(by_reference, next(iter(ops.values())))
    make, floor = partial(make_attention, kind), partial(attention_floor, kind)
    return group("B, T, heads, keys, values", make, floor, ops, definition, (2, 70, 2, 16, 16), note)


def layer_group(kind: str, gates: int, checked: Shape) -> Group:
    ops: dict[str, Op] = {"recurrent_layer": partial(ours_layer, kind), "torch.nn": library}
    make, floor = partial(make_layer, kind), partial(layer_floor, gates)
    return group("B, T, heads, units of each", make, floor, ops, library, checked)


def by_reference(op: Op, problem: Problem) -> Tensor:
    with use_backend("reference"):
        return op(problem)


SCANS: dict[str, Op] = {
    "linear_scan": ours_scan,
    "doubling": scan.doubling,
    "Heinsen, log-space": scan.heinsen,
}
GATED: dict[str, Op] = {
    "gated_linear_attention": ours_gated,
    "matrix products": matrix_products,
    "flash-linear-attention": flash,
}
DELTA: dict[str, Op] = {"delta_rule": ours_delta, "flash-linear-attention": flash}
GROUPS = {
    "scan": group(
        "B, T, D",
        make_scan,
        scan_floor,
        SCANS,
        scan.loop,
        (3, 37, 5),
        "published: 0.18 ms forward alone at (8, 1024, 1536), accelerated-scan",
        lambda _: torch.float32,
    ),
    "decay per channel": attention_group(
        "decay per channel", GATED, "published: 1.7 ms at (8, 1024, 8, 64, 64), flash-linear-attention, GB200"
    ),
    "decay per head": attention_group("decay per head", GATED),
    "delta rule": attention_group("delta rule", DELTA),
    "lstm": layer_group("lstm", 4, (3, 9, 1, 16)),
    "lstm, several heads": layer_group("lstm", 4, (3, 9, 2, 16)),
    "gru, several heads": layer_group("gru", 3, (3, 9, 2, 16)),
}
