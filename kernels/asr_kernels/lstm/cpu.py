"""The whole sequence in one call, step by step: the path of the CPU, which serves every device.

The equations are those of reference.py, rearranged so that a step is one matrix product and a few operations
in place (arithmetic.py), on arrays allocated before the loop::

    forward     preactivations_t = x_t + b + h_{t-1} R   for all gates at once, in place of x
    backward    dh_{t-1} = d preactivations_t R^T (+ what h_{t-1} does directly)
    after it    dR = sum_t h_{t-1}^T d preactivations_t      one product, as for the other parameters

Arrays are time-major, (T, gates, heads, B, D), so that the operands of every step are contiguous; where
lengths differ, streams are sorted and a step takes the rows that have frames left (steps.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.lstm.arithmetic import Leaves, arithmetic
from asr_kernels.lstm.cell import Cell, CellState, leaf_of
from asr_kernels.lstm.steps import Steps


class Parameters(NamedTuple):
    """What a cell has beside its inputs, in the dtype of the computation; see `Cell.parameter_shapes`."""

    weight: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    gate_weight: Tensor | None


class Trace(NamedTuple):
    """The outcome, and what the backward pass needs of it."""

    y: Tensor
    """(B, T, heads, D) in the dtype of the computation."""
    state: CellState
    saved: tuple[Tensor, ...]
    """Activations (T, gates, heads, B, D), what the arithmetic keeps beside, and the leaves' history."""


class Gradients(NamedTuple):
    """At what `Function.forward` took."""

    x: Tensor
    parameters: Parameters
    state: CellState


def forward(cell: Cell, x: Tensor, parameters: Parameters, state: CellState, steps: Steps) -> Trace:
    """From x (B, T, heads, gates, D) of any floating dtype; the others in that of the computation."""
    weight, bias, peepholes, gate_weight = parameters
    B, _, H, G, D = x.shape
    S, E = steps.count, G - (cell.kind == "gru")
    own = arithmetic(cell, _by_gate(peepholes))
    gates = weight.new_empty(S, G, H, B, D)
    gates.copy_(steps.arrange(x).permute(0, 3, 2, 1, 4))
    aside = weight.new_zeros(S, own.aside, H, B, D)
    if bias is not None:
        by_gate = bias.transpose(0, 1)[:, :, None]
        gates[:, :E] += by_gate[:E]
        if cell.kind == "gru":
            aside += by_gate[E:]
    history = {leaf: weight.new_zeros(S + 1, H, B, D) for leaf in cell.leaves}
    for leaf, values in history.items():
        values[0] = steps.sort(leaf_of(state, leaf))
    matrices = weight.permute(2, 0, 3, 1).contiguous().transpose(2, 3)  # (G, H, in, out), fastest like this
    shown = _Shown(B)
    for t, n in enumerate(steps.rows):
        before, after = ({leaf: shown(v, n)[u] for leaf, v in history.items()} for u in (t, t + 1))
        own_gates, own_aside = shown(gates, n)[t], shown(aside, n)[t]
        _add_product(own_gates[:E], before["h"], matrices[:E])
        if cell.kind == "gru":
            _add_product(own_aside, before["h"], matrices[E:])
        if gate_weight is not None:
            _feed(cell, own_gates, before, gate_weight)
        own.forward(own_gates, own_aside, before, after)
    y = steps.restore(history["h"][1:].transpose(1, 2))
    final = CellState(**{leaf: steps.last(values) for leaf, values in history.items()})
    return Trace(y, final, (gates, aside, *history.values()))


def backward(
    cell: Cell,
    parameters: Parameters,
    saved: tuple[Tensor, ...],
    steps: Steps,
    grad_y: Tensor,
    grad_state: CellState,
) -> Gradients:
    """From the gradients at y (B, T, heads, D) and at the last state."""
    gates, aside, *leaves = saved
    history = dict(zip(cell.leaves, leaves, strict=True))
    S, G, H, B, D = gates.shape
    own = arithmetic(cell, _by_gate(parameters.peepholes))
    grads, extra = own.factors(gates, aside, history)
    dy = steps.arrange(grad_y).transpose(1, 2)  # (S, H, B, D)
    matrices = parameters.weight.permute(0, 2, 3, 1).reshape(H, G * D, D)  # (H, gates x out, in)
    contiguous = torch.contiguous_format
    future = {
        leaf: steps.sort(leaf_of(grad_state, leaf)).clone(memory_format=contiguous) for leaf in cell.leaves
    }
    beside = grads.new_zeros(
        S, H, B, G, D
    )  # the recurrent product's, with the gates of a unit's head together
    shown = _Shown(B)
    for t in reversed(range(S)):
        n = steps.rows[t]
        here = {leaf: value[:, :n] for leaf, value in future.items()}
        before, after = ({leaf: shown(v, n)[u] for leaf, v in history.items()} for u in (t, t + 1))
        at = {name: shown(value, n)[t] for name, value in extra.items()}
        own_grads = shown(grads, n)[t]
        here["h"] += shown(dy, n)[t]
        own.back(own_grads, shown(gates, n)[t], at, before, after, here)
        if parameters.gate_weight is not None:
            _feed_back(cell, own_grads, here, parameters.gate_weight)
        row = beside[t, :, :n].copy_(own_grads[:G].permute(1, 2, 0, 3))
        here["h"].baddbmm_(row.flatten(2), matrices, beta=own.direct)
    return Gradients(
        steps.restore(_at_inputs(cell, beside, grads).transpose(1, 2)),
        _at_parameters(cell, parameters, beside, history),
        CellState(**{leaf: steps.unsort(value) for leaf, value in future.items()}),
    )


def _at_inputs(cell: Cell, beside: Tensor, grads: Tensor) -> Tensor:
    """Gradients (S, heads, B, gates, D) at x: those of the product, but for the GRU's candidate."""
    if cell.kind != "gru":
        return beside
    return torch.stack((*beside[..., :2, :].unbind(-2), grads[:, 3]), dim=-2)


def _at_parameters(cell: Cell, parameters: Parameters, beside: Tensor, history: Leaves) -> Parameters:
    """Sums over all steps and streams, each one product or reduction."""
    weight, bias, peepholes, gate_weight = parameters
    H, D, G, _ = weight.shape
    by_head = _flat(beside.flatten(3))
    at_weight = (_flat(history["h"][:-1]).transpose(1, 2) @ by_head).view(H, D, G, D)
    at_bias = None if bias is None else by_head.sum(dim=1).view(H, G, D)
    at_peepholes = at_gates = None
    if peepholes is not None:
        c = {"i": history["c"][:-1], "f": history["c"][:-1], "o": history["c"][1:]}
        each = [(beside[..., cell.gates.index(g), :] * c[g]).sum(dim=(0, 2)) for g in cell.peephole_gates]
        at_peepholes = torch.stack(each, dim=1)
    if gate_weight is not None:
        names = cell.recurrent_gates
        fed = torch.cat([_flat(history[name][:-1]) for name in names], dim=2)
        back = torch.cat([_flat(beside[..., cell.gates.index(name), :]) for name in names], dim=2)
        at_gates = (fed.transpose(1, 2) @ back).view(gate_weight.shape)
    return Parameters(at_weight, at_bias, at_peepholes, at_gates)


def _add_product(out: Tensor, h: Tensor, matrices: Tensor) -> None:
    """out (gates, heads, rows, D) += h (heads, rows, D) times matrices (gates, heads, D, D)."""
    fed = h.expand(len(out), *h.shape).reshape(-1, *h.shape[1:])  # a copy only where there are several heads
    out.flatten(0, 1).baddbmm_(fed, matrices.flatten(0, 1))


def _feed(cell: Cell, gates: Tensor, before: Leaves, gate_weight: Tensor) -> None:
    """Add what the gates of the frame before give to those of this one."""
    last = torch.stack([before[name] for name in cell.recurrent_gates])
    fed = torch.einsum("nhbk,hnkmd->mhbd", last, gate_weight)
    for name, part in zip(cell.recurrent_gates, fed.unbind(0), strict=True):
        gates[cell.gates.index(name)] += part


def _feed_back(cell: Cell, grads: Tensor, future: Leaves, gate_weight: Tensor) -> None:
    """The gradients of the gates of the frame before."""
    names = cell.recurrent_gates
    back = torch.stack([grads[cell.gates.index(name)] for name in names])
    for name, part in zip(names, torch.einsum("mhbd,hnkmd->nhbk", back, gate_weight).unbind(0), strict=True):
        future[name].copy_(part)


def _by_gate(peepholes: Tensor | None) -> Tensor | None:
    return None if peepholes is None else peepholes.transpose(0, 1)[:, :, None]


def _flat(values: Tensor) -> Tensor:
    """(heads, steps x B, D) of (steps, heads, B, D)."""
    S, H, B, D = values.shape
    return values.transpose(0, 1).reshape(H, S * B, D)


class _Shown:
    """shown(values, n): views of the first n streams of every frame of values (frames, ..., B, D).

    Made once for every n, since a view costs about as much as the arithmetic on it.
    """

    def __init__(self, batch: int) -> None:
        self._n = batch
        self._views: dict[int, tuple[Tensor, ...]] = {}

    def __call__(self, values: Tensor, n: int) -> tuple[Tensor, ...]:
        if n != self._n:
            self._n = n
            self._views.clear()
        if id(values) not in self._views:
            self._views[id(values)] = values[..., :n, :].unbind(0)
        return self._views[id(values)]
