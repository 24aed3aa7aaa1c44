"""`recurrent_layer`: the input projection and the recurrence behind it, together.

What the libraries below PyTorch do at once, they do faster: a plain LSTM or GRU of one head is theirs,
wherever they are ahead of `recurrence` (README.md has the measurements). They take no projected input, which
is why this is an op of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels import dispatch
from asr_kernels.lstm import inputs, op
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.op import Recurrence, recurrence


def recurrent_layer(
    cell: Cell,
    x: Tensor,
    projection: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    state: CellState | None = None,
    *,
    peepholes: Tensor | None = None,
    gate_weight: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Recurrence:
    """Run a recurrent cell over x (B, T, F), projected by `projection` (heads * gates * D, F) and `shift`.

    `shift` is (heads * gates * D,). All else is as `recurrence` takes it, and raises the same errors. With
    backend=None, and none forced, a plain cell of one head, without lengths, may run in oneDNN or cuDNN: like
    `recurrence`, but in the dtype of x (or of autocast), h and c included, and without double backward.
    """
    if backend is None and lengths is None and not reverse and _library_is_ahead(cell, x, weight):
        return _library(cell, x, projection, shift, weight, bias, state)
    projected = functional.linear(x, projection, shift)
    H, D, G, _ = weight.shape
    return recurrence(
        cell,
        projected.view(*x.shape[:2], H, G, D),
        weight,
        bias,
        state,
        peepholes=peepholes,
        gate_weight=gate_weight,
        lengths=lengths,
        reverse=reverse,
        backend=backend,
    )


def _library_is_ahead(cell: Cell, x: Tensor, weight: Tensor) -> bool:
    """cuDNN is for what does not fit on chip (op.py).

    On the CPU oneDNN's LSTM orders the weights anew in every call, which does not pay for a few frames; the
    GRU is PyTorch's own, and ahead where nothing is to be learnt.
    """
    plain = cell in (Cell("lstm"), Cell("gru")) and len(weight) == 1 and x.numel() > 0
    if not plain or dispatch.forced() or x.dtype != weight.dtype or x.dtype == torch.float64:
        return False
    if x.is_cuda:
        return not op.on_chip(cell, x, weight)
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    learning = torch.is_grad_enabled()
    return (learning or x.shape[1] > op.FEW) if cell.kind == "lstm" else not learning


def _library(
    cell: Cell,
    x: Tensor,
    projection: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: CellState | None,
) -> Recurrence:
    _, D, G, _ = weight.shape
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    inputs.check_parameters(cell, x, {"weight": weight, "bias": bias}, cell.parameter_shapes(1, D))
    start = inputs.state_of(cell, state, x, (len(x), 1, D))
    none = weight.new_zeros(G * D)
    parameters = [
        projection,
        weight.view(D, G * D).t(),
        none if shift is None else shift,
        none if bias is None else bias.reshape(G * D),
    ]
    parameters = [p.to(dtype) for p in parameters]
    before = [leaf.transpose(0, 1).to(dtype).contiguous() for leaf in (start.h, start.c) if leaf is not None]
    options = (
        True,
        1,
        0.0,
        torch.is_grad_enabled(),
        False,
        True,
    )  # biases, layers, dropout, train, ways, batch first
    with torch.autocast(device, enabled=False):
        if cell.kind == "lstm":
            y, *last = torch.lstm(x.to(dtype), before, parameters, *options)
        else:
            y, *last = torch.gru(x.to(dtype), before[0], parameters, *options)
    leaves = [leaf.transpose(0, 1).to(inputs.computed(x)) for leaf in last]
    return Recurrence(y[:, :, None], CellState(*leaves))
