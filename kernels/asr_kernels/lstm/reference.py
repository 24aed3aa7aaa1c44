"""The cells as the papers write them, frame after frame in plain torch; this is the definition.

With z~, i~, ... the preactivations, that is x_t + R h_{t-1} + b, * elementwise products, p the peepholes::

    lstm    i = sigma(i~ + p_i * c_{t-1})           (Greff et al. 2017, section II)
            f = sigma(f~ + p_f * c_{t-1})
            c = f * c_{t-1} + i * tanh(z~)
            o = sigma(o~ + p_o * c)
            h = o * tanh(c)
      variants: i, f or o = 1; f = 1 - i; no tanh; a + sum_g Q_g g_{t-1} inside i, f and o (g = i, f, o)

    gru     r = sigma(r~)    z = sigma(z~)          (torch.nn.GRU)
            n = tanh(x_n + r * (R_n h_{t-1} + b_n))
            h = (1 - z) * n + z * h_{t-1}

    elman   h = tanh(h~)                            (Elman 1990)

    slstm   log f = log sigma(f~), or f~            (Beck et al. 2024, equations 8 to 17)
            m = max(log f + m_{t-1}, i~)
            c = exp(log f + m_{t-1} - m) * c_{t-1} + exp(i~ - m) * tanh(z~)
            n = exp(log f + m_{t-1} - m) * n_{t-1} + exp(i~ - m)
            h = sigma(o~) * c / n

Departure: where n_{t-1} = 0 nothing was seen, and m_{t-1} counts as -inf. Zero is then a state like any
other, and c / n is finite whatever the first gates are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels.lstm.cell import Cell, CellState, leaf_of


def recurrence(
    cell: Cell,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: CellState,
    peepholes: Tensor | None,
    gate_weight: Tensor | None,
    lengths: list[int],
    reverse: bool,
) -> tuple[Tensor, CellState]:
    """y (B, T, heads, D) and the last state, from inputs of one dtype; see the public function."""
    B, T = x.shape[:2]
    ends = torch.tensor(lengths, dtype=torch.int64, device=x.device)
    valid = torch.arange(T, device=x.device) < ends[:, None]
    x = torch.where(valid[..., None, None, None], x, 0.0)
    y: list[Tensor] = [x.new_zeros(B, *x.shape[2:3], x.shape[4])] * T
    for t in reversed(range(T)) if reverse else range(T):
        inside = valid[:, t, None, None]
        recurrent = torch.einsum("bhk,hkgd->bhgd", leaf_of(state, "h"), weight)
        recurrent = recurrent if bias is None else recurrent + bias
        new = advance(cell, x[:, t], recurrent, state, peepholes, gate_weight)
        kept = {leaf: torch.where(inside, leaf_of(new, leaf), leaf_of(state, leaf)) for leaf in cell.leaves}
        state = CellState(**kept)
        y[t] = torch.where(inside, leaf_of(state, "h"), 0.0)
    if T == 0:
        copies = {leaf: leaf_of(state, leaf).clone() for leaf in cell.leaves}
        return x.new_zeros(B, 0, x.shape[2], x.shape[4]), CellState(**copies)
    return torch.stack(y, dim=1), state


def advance(
    cell: Cell,
    x: Tensor,
    recurrent: Tensor,
    state: CellState,
    peepholes: Tensor | None = None,
    gate_weight: Tensor | None = None,
) -> CellState:
    """The state one frame on, from the two parts (..., heads, gates, D) of the preactivations."""
    if cell.kind == "lstm":
        return _lstm(cell, x + recurrent, state, peepholes, gate_weight)
    if cell.kind == "gru":
        r, z = (x + recurrent)[..., :2, :].sigmoid().unbind(-2)
        n = torch.tanh(x[..., 2, :] + r * recurrent[..., 2, :])
        return CellState(h=(1 - z) * n + z * leaf_of(state, "h"))
    if cell.kind == "elman":
        return CellState(h=torch.tanh(x + recurrent).squeeze(-2))
    return _slstm(cell, x + recurrent, state)


def _lstm(
    cell: Cell, total: Tensor, state: CellState, peepholes: Tensor | None, gate_weight: Tensor | None
) -> CellState:
    pre = dict(zip(cell.gates, total.unbind(-2), strict=True))
    before = leaf_of(state, "c")
    if gate_weight is not None:
        last = torch.stack([leaf_of(state, gate) for gate in cell.recurrent_gates], dim=-2)
        fed = torch.einsum("bhnk,hnkmd->bhmd", last, gate_weight)
        for gate, part in zip(cell.recurrent_gates, fed.unbind(-2), strict=True):
            pre[gate] = pre[gate] + part
    peeps = {} if peepholes is None else dict(zip(cell.peephole_gates, peepholes.unbind(-2), strict=True))

    def sigmoid(name: str, c: Tensor) -> Tensor:
        if name not in pre:
            return torch.ones_like(c)
        return torch.sigmoid(pre[name] + peeps[name] * c if name in peeps else pre[name])

    i, f = sigmoid("i", before), sigmoid("f", before)
    f = 1 - i if cell.coupled else f
    c = f * before + i * (torch.tanh(pre["z"]) if cell.input_activation else pre["z"])
    o = sigmoid("o", c)
    h = o * (torch.tanh(c) if cell.output_activation else c)
    gates = {"i": i, "f": f, "o": o}
    return CellState(h=h, c=c, **{name: gates[name] for name in cell.recurrent_gates})


def _slstm(cell: Cell, total: Tensor, state: CellState) -> CellState:
    i, f, z, o = total.unbind(-2)
    c, n, m = (leaf_of(state, leaf) for leaf in ("c", "n", "m"))
    log_f = f if cell.exponential_forget else functional.logsigmoid(f)
    old = log_f + torch.where(n == 0, float("-inf"), m)
    # torch.maximum would share the gradient of a tie.
    m = torch.where(old >= i, old, i)
    keep, take = torch.exp(old - m), torch.exp(i - m)
    c = keep * c + take * torch.tanh(z)
    n = keep * n + take
    return CellState(h=torch.sigmoid(o) * c / n, c=c, n=n, m=m)
