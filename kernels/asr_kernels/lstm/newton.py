"""Cells with diagonal recurrent weights, solved for all frames at once by Newton's method (ParaRNN).

With diagonal recurrent weights a unit sees only its own past, s_t = f(x_t, s_{t-1}), s = h for the GRU and
(h, c) for the LSTM. All T equations together are one system, and Newton's method for it solves, in iteration
k + 1, a *linear* recurrence with the Jacobians J_t = df/ds at the last iterate (Lim et al. 2024, "DEER";
Danieli et al. 2025, "ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for Large Language Models")::

    s^{k+1}_t = J_t s^{k+1}_{t-1} + (f(x_t, s^k_{t-1}) - J_t s^k_{t-1})

which linear.py solves for all frames, on a GPU in parallel over time; J_t is 1x1 (GRU, Elman) or 2x2 (LSTM).
The gradient follows from the implicit function theorem at the solution, whatever way led there: one linear
recurrence in reverse with the transposed Jacobians, g the gradient at s from outside, and one step of f
differentiated::

    lambda_t = g_t + J_{t+1}^T lambda_{t+1}         d loss = sum_t lambda_t^T df(x_t, s_{t-1})

The cell is reference.py's, so every cell that it knows is solved, but the sLSTM (four leaves) and
gate_recurrence (whose gates see other units). J comes from autograd: as units do not meet, the gradient of
the sum of a leaf over all units is that leaf's row of J.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr_kernels import dispatch
from asr_kernels.autograd import once
from asr_kernels.lstm import inputs, linear, reference
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.steps import Steps

_TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


class NewtonRecurrence(NamedTuple):
    """Outcome for a batch."""

    y: Tensor
    """(B, T, D) in the dtype of `x`: h of every frame, exactly zero beyond the lengths."""
    state: CellState
    """After the last frame of each stream, leaves (B, D), float32 or float64."""
    residual: float
    """Largest |s_t - f(x_t, s_{t-1})| of all frames and units: how well the recurrence is fulfilled.

    NaN if some unit of some stream is none; the others are right all the same.
    """
    iterations: int
    """Newton iterations that were made."""


@dispatch.entry_point
def newton_rnn(
    cell: Cell,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: CellState | None = None,
    *,
    peepholes: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    tolerance: float | None = None,
    max_iterations: int = 32,
) -> NewtonRecurrence:
    """Run a cell with diagonal recurrent weights over whole sequences, all frames at once.

    Args:
        cell: kind "lstm" (without gate_recurrence), "gru" or "elman".
        x: (B, T, gates, D) float32, float64, bfloat16 or float16: the input projections of `cell.gates`.
        weight: (gates, D) recurrent weights, from each unit to itself.
        bias: (gates, D) of the recurrent product, as in `recurrence`.
        state: what an earlier call returned, leaves (B, D); None is the start, zeros.
        peepholes: (P, D) for `cell.peephole_gates`; required where there are some.
        lengths: (B,) int32 or int64 frames of each stream; what lies beyond is ignored, whatever it is.
        reverse: from the last frame of each stream to its first.
        tolerance: iterations stop where the residual is at most this times the largest |s_t| (or times 1, if
            that is less); None is 1e-6, in float64 1e-12.
        max_iterations: and after this many, with what there is: see `residual`. T iterations are exact in
            exact arithmetic; weights of moderate size need about five.

    Returns:
        NewtonRecurrence(y, state, residual, iterations). y and the gradients are those of the sequential
        recurrence as far as `residual` is small; where it is not (or is NaN, from finite input), weights are
        so large that the linear recurrences explode, and the sequential loop is the way: `recurrence` with D
        heads of one unit.

    Raises:
        ValueError: a shape, dtype, length or option that does not fit.
        RuntimeError: on double backward.
    """
    inputs.check_x(cell, x, "(B, T, gates, D)")
    if cell.kind == "slstm" or cell.gate_recurrence:
        raise ValueError(f"expected a cell of kind lstm, gru or elman without gate_recurrence, found {cell}")
    B, T, G, D = x.shape
    shapes: dict[str, tuple[int, ...]] = {"weight": (G, D), "bias": (G, D)}
    if cell.peephole_gates:
        shapes["peepholes"] = (len(cell.peephole_gates), D)
    inputs.check_parameters(cell, x, {"weight": weight, "bias": bias, "peepholes": peepholes}, shapes)
    dtype = inputs.computed(x)
    limit = _TOLERANCES[dtype] if tolerance is None else tolerance
    if not limit > 0 or not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(
            f"expected tolerance > 0 and max_iterations an integer from 1 on, found {tolerance} and "
            f"{max_iterations}"
        )
    steps = Steps(inputs.ends(lengths, reverse, B, T), T, reverse, x.device)
    start = inputs.state_of(cell, state, x, (B, D))
    first = torch.stack([leaf for leaf in start if leaf is not None], dim=1)[steps.order]
    parameters = [p if p is None else p.to(dtype) for p in (weight, bias, peepholes)]
    equations = _Equations(cell, steps)
    s, residual, iterations = _Newton.apply(
        equations, limit, max_iterations, steps.arrange(x).to(dtype), first, *parameters
    )
    last = (s[-1] if len(s) > 0 else first)[steps.rank].unbind(1)  # a stream that has ended keeps its state
    return NewtonRecurrence(
        steps.restore(s[:, :, 0]).to(x.dtype),
        CellState(**dict(zip(cell.leaves, last, strict=True))),
        float(residual),
        int(iterations),
    )


class _Equations:
    """f of all frames at once, and its Jacobians."""

    def __init__(self, cell: Cell, steps: Steps) -> None:
        self._cell = cell
        step = torch.arange(steps.count, device=steps.device)[:, None]
        self._inside = (step < steps.ends[steps.order])[:, :, None, None]

    def f(self, x: Any, before: Any, *parameters: Any) -> Tensor:
        """States (S, B, K, D) from x (S, B, gates, D) and the states before; past its end a stream stays."""
        weight, bias, peepholes = parameters
        state = CellState(**dict(zip(self._cell.leaves, before.unbind(2), strict=True)))
        recurrent = before[:, :, :1] * weight
        recurrent = recurrent if bias is None else recurrent + bias
        new = reference.advance(self._cell, x, recurrent, state, peepholes)
        leaves = torch.stack([leaf for leaf in new if leaf is not None], dim=2)
        return torch.where(self._inside, leaves, before)

    def linearised(self, x: Tensor, before: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
        """f and its Jacobians (S, B, K, K, D) at the states before."""
        with torch.enable_grad():
            before = before.detach().requires_grad_()
            new = self.f(x.detach(), before, *(p if p is None else p.detach() for p in parameters))
            rows = [
                torch.autograd.grad(new[:, :, k].sum(), before, retain_graph=True)[0]
                for k in range(new.shape[2])
            ]
        return new.detach(), torch.stack(rows, dim=2)


class _Newton(torch.autograd.Function):
    """apply(equations, tolerance, max_iterations, x, first, *parameters): (s, residual, iterations)."""

    @staticmethod
    def forward(
        ctx: Any,
        equations: _Equations,
        tolerance: float,
        max_iterations: int,
        x: Tensor,
        first: Tensor,
        *parameters: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = equations.f(x, first.expand(len(x), *first.shape), *parameters)
        iterations, residual = 0, s.new_zeros(())
        while len(x) > 0:
            new, jacobians = equations.linearised(x, _before(s, first), *parameters)
            change = new - s
            residual = change.abs().max()
            if iterations == max_iterations or _settled(change, s, tolerance):
                break
            s = s + linear.solve(jacobians, change)
            iterations += 1
        count = torch.tensor(iterations)
        ctx.mark_non_differentiable(residual, count)
        ctx.save_for_backward(x, first, s, *parameters)
        ctx.equations = equations
        return s, residual, count

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, first, s, *parameters = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(grad_s.device.type, enabled=False):
            found = _Newton._gradients(ctx.equations, grad_s, x, first, s, *parameters)
        return None, None, None, *once(found, x, first, grad_s, *parameters)

    @staticmethod
    def _gradients(
        equations: _Equations, grad_s: Tensor, x: Tensor, first: Tensor, s: Tensor, *parameters: Any
    ) -> list[Tensor | None]:
        """At x, first and the parameters."""
        before = _before(s, first)
        _, jacobians = equations.linearised(x, before, *parameters)
        # In reverse the map into frame t is that of frame t + 1; the one into the last is never used.
        turned = jacobians.transpose(2, 3).roll(-1, dims=0).flip(0)
        multipliers = linear.solve(turned, grad_s.flip(0)).flip(0)
        with torch.enable_grad():
            leaves = [p if p is None else p.detach().requires_grad_() for p in (x, before, *parameters)]
            new = equations.f(*leaves)
            given = [leaf for leaf in leaves if leaf is not None]
            found = iter(torch.autograd.grad(new, given, multipliers, allow_unused=True))
        at_x, at_before, *rest = (None if leaf is None else next(found) for leaf in leaves)
        at_first = grad_s.new_zeros(first.shape) if at_before is None or len(x) == 0 else at_before[0]
        return [at_x, at_first, *rest]


def _settled(change: Tensor, s: Tensor, tolerance: float) -> bool:
    """Whether all units have come to rest, of those that are still numbers: they do not see the others."""
    size = torch.where(change.isfinite(), s, 0.0).abs().max().clamp(min=1.0)
    return bool(torch.where(change.isfinite(), change, 0.0).abs().max() <= tolerance * size)


def _before(s: Tensor, first: Tensor) -> Tensor:
    return torch.cat((first[None], s))[: len(s)]
