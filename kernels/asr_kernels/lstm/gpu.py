"""The whole sequence in one launch, in Triton: the recurrent weights of a head are loaded once and stay on chip.

The equations are those of reference.py (forward) and arithmetic.py (backward). A program has one head and
some streams, and walks over the frames; its state and the head's weights, D x D per gate, stay in registers.
Heads do not see each other, so nothing passes between programs: the idea of FlashRNN (Poeppel et al. 2024).
The smallest block of rows that a tensor core takes gives the most programs, so blocks grow only where heads
and streams fill the GPU anyway.

Every cell is put into four slots i, f, z, o, each a gate's index or -1: the GRU's r, z, n are i, f, z and the
Elman cell is z alone. The backward kernel writes the gradients at the preactivations; what sums over frames
and streams (weights, biases, peepholes) is then one product or reduction each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_kernels.dispatch import interpreted
from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.cpu import Gradients, Parameters, Trace
from asr_kernels.lstm.steps import Steps

# Numbers that differ from batch to batch; Triton would compile anew for those that are multiples of 16.
_VARYING = ["B", "T", "steps"]

# Streams of a program: what the tensor cores take at least, and at most; programs that fill a GPU.
_FEWEST_ROWS, _MOST_ROWS = 16, 32
_PROGRAMS = 132


def forward(cell: Cell, x: Tensor, parameters: Parameters, state: CellState, steps: Steps) -> Trace:
    """From x (B, T, heads, gates, D), weights of any dtype shorter than float64, the others in float32."""
    weight, bias, peepholes, _ = parameters
    B, T, H, G, D = x.shape
    new = x.new_empty if steps.even else x.new_zeros  # beyond the lengths nothing is written

    def allocate(*shape: int, there: bool = True) -> Tensor:
        return new(shape if there else (1,), dtype=torch.float32)

    kind, slstm = cell.kind, cell.kind == "slstm"
    y, gates = allocate(B, T, H, D), allocate(B, T, H, G, D)
    aside = allocate(B, T, H, D, there=kind in ("gru", "slstm"))
    c, n = allocate(B, T, H, D, there="c" in cell.leaves), allocate(B, T, H, D, there=slstm)
    first = _all_leaves(cell, state, y)
    last = [x.new_empty(B, H, D, dtype=torch.float32) if leaf in cell.leaves else y for leaf in "hcnm"]
    matrices = _matrices(weight)
    grid, options = _launch(cell, B, H, D)
    _forward_kernel[grid](
        x, matrices, bias.contiguous() if bias is not None else y, _slots(cell, peepholes, y), *first,
        steps.ends, y, gates, aside, c, n, *last,
        B, T, steps.count, H, *x.stride(), G=G, BIAS=bias is not None, REVERSE=steps.reverse, **options,
    )  # fmt: skip
    leaves = {leaf: value for leaf, value in zip("hcnm", last, strict=True) if leaf in cell.leaves}
    return Trace(y, CellState(**leaves), (y, gates, aside, c, n, *first))


def backward(
    cell: Cell,
    parameters: Parameters,
    saved: tuple[Tensor, ...],
    steps: Steps,
    grad_y: Tensor,
    grad_state: CellState,
) -> Gradients:
    """From the gradients at y (B, T, heads, D) and at the last state."""
    y, gates, aside, c, n, h0, c0, n0, _ = saved
    B, T, H, G, D = gates.shape
    grads = (torch.empty if steps.even else torch.zeros)(
        (B, T, H, G + (cell.kind == "gru"), D), dtype=torch.float32, device=y.device
    )
    future = _all_leaves(cell, grad_state, y)
    past = [
        torch.empty_like(leaf) if name in cell.leaves else y
        for name, leaf in zip("hcnm", future, strict=True)
    ]
    grid, options = _launch(cell, B, H, D)
    _backward_kernel[grid](
        _matrices(parameters.weight), _slots(cell, parameters.peepholes, y), h0, c0, n0, steps.ends,
        y, gates, aside, c, n, grad_y.contiguous(), *future, grads, *past,
        B, T, steps.count, H, G=G, E=grads.shape[3], REVERSE=steps.reverse, **options,
    )  # fmt: skip
    leaves = {name: leaf for name, leaf in zip("hcnm", past, strict=True) if name in cell.leaves}
    at_x = grads[:, :, :, [0, 1, 3]] if cell.kind == "gru" else grads
    return Gradients(at_x, _at_parameters(cell, parameters, saved, steps, grads), CellState(**leaves))


def _at_parameters(
    cell: Cell, parameters: Parameters, saved: tuple[Tensor, ...], steps: Steps, grads: Tensor
) -> Parameters:
    """Sums over all frames and streams."""
    weight, bias, peepholes, _ = parameters
    y, _, _, c, _, h0, c0, *_ = saved
    H, D, G, _ = weight.shape
    by_head = grads[:, :, :, :G].permute(2, 0, 1, 3, 4).reshape(H, -1, G * D)
    before = _before(y, h0, steps).permute(2, 3, 0, 1).reshape(H, D, -1)
    at_weight = (before @ by_head).view(H, D, G, D).to(weight.dtype)
    at_bias = None if bias is None else by_head.sum(dim=1).view(H, G, D)
    if peepholes is None:
        return Parameters(at_weight, at_bias, None, None)
    seen = {"o": c, "i": _before(c, c0, steps)}
    seen["f"] = seen["i"]
    each = [(grads[:, :, :, cell.gates.index(g)] * seen[g]).sum(dim=(0, 1)) for g in cell.peephole_gates]
    return Parameters(at_weight, at_bias, torch.stack(each, dim=1), None)


def _before(history: Tensor, first: Tensor, steps: Steps) -> Tensor:
    """(B, T, heads, D): what stood before each frame, where `first` stood before the first one."""
    if not steps.reverse:
        return torch.cat((first[:, None], history[:, :-1]), dim=1)[:, : history.shape[1]]
    shifted = torch.cat((history[:, 1:], first[:, None]), dim=1)[:, : history.shape[1]]
    frame = torch.arange(history.shape[1], device=history.device)
    start = (frame == steps.ends[:, None] - 1)[:, :, None, None]
    return torch.where(start, first[:, None], shifted)


def _all_leaves(cell: Cell, state: CellState, unused: Tensor) -> list[Tensor]:
    """h, c, n, m, contiguous; some tensor where the cell has none."""
    found = [getattr(state, leaf) for leaf in "hcnm"]
    return [unused if leaf is None else leaf.contiguous() for leaf in found]


def _matrices(weight: Tensor) -> Tensor:
    """(heads, gates, D, D) from unit to unit."""
    if interpreted() and weight.dtype == torch.bfloat16:
        weight = weight.float()  # whose products in bfloat16 the interpreter gets wrong
    return weight.permute(0, 2, 1, 3).contiguous()


def _slots(cell: Cell, peepholes: Tensor | None, unused: Tensor) -> Tensor:
    """(heads, 3, D): the peepholes of i, f and o."""
    if peepholes is None:
        return unused
    slots = peepholes.new_zeros(peepholes.shape[0], 3, peepholes.shape[2])
    slots[:, ["ifo".index(gate) for gate in cell.peephole_gates]] = peepholes
    return slots


def _launch(cell: Cell, B: int, H: int, D: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and compile-time options that both kernels share."""
    rows = _FEWEST_ROWS
    while rows < _MOST_ROWS and H * triton.cdiv(B, 2 * rows) >= _PROGRAMS:
        rows *= 2
    width = max(16, triton.next_power_of_2(D))
    names = {"gru": ("r", "z", "n", ""), "elman": ("", "", "h", "")}.get(cell.kind, ("i", "f", "z", "o"))
    slots = [cell.gates.index(name) if name in cell.gates else -1 for name in names]
    options = dict(zip(("I", "F", "Z", "O"), slots, strict=True)) | {
        "KIND": cell.kind,
        "PEEPHOLES": cell.peepholes,
        "COUPLED": cell.coupled,
        "SQUASH_IN": cell.input_activation,
        "SQUASH_OUT": cell.output_activation,
        "EXP_FORGET": cell.exponential_forget,
        "D": D,
        "WIDTH": width,
        "ROWS": rows,
        "num_warps": 4 if width <= 32 else 8,
    }
    return (H, triton.cdiv(B, rows)), options


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _matrix(weight, head, gate, G: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr):
    """(WIDTH, WIDTH) weights of a gate, from row to column, or the other way."""
    k = tl.arange(0, WIDTH)[:, None]
    d = tl.arange(0, WIDTH)[None, :]
    at = weight + (head * G + gate).to(tl.int64) * D * D
    at += d * D + k if TURNED else k * D + d
    return tl.load(at, mask=(k < D) & (d < D), other=0.0)


@triton.jit
def _vector(source, row, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    return tl.load(source + row * D + d, mask=d < D, other=0.0)[None, :]


@triton.jit
def _product(h, matrix):
    """(ROWS, WIDTH) in float32; three products of TF32 have nearly the digits of float32."""
    return tl.dot(h.to(matrix.dtype), matrix, input_precision="tf32x3")


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    x, weight, bias, peepholes, h0, c0, n0, m0, ends, y, gates, aside, c_out, n_out,
    h_last, c_last, n_last, m_last,
    B, T, steps, H, stride_b, stride_t, stride_h, stride_g, stride_d,
    G: tl.constexpr, BIAS: tl.constexpr, REVERSE: tl.constexpr,
    I: tl.constexpr, F: tl.constexpr, Z: tl.constexpr, O: tl.constexpr,  # noqa: E741
    KIND: tl.constexpr, PEEPHOLES: tl.constexpr, COUPLED: tl.constexpr,
    SQUASH_IN: tl.constexpr, SQUASH_OUT: tl.constexpr, EXP_FORGET: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (heads, blocks of streams): y, the activations, the history of c and n, and the last state."""
    head = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)[None, :]
    real = (b < B)[:, None] & (d < D)
    end = tl.load(ends + b, mask=b < B, other=0)
    own = (b[:, None] * H + head) * D + d
    h = tl.load(h0 + own, mask=real, other=0.0)
    if KIND == "lstm" or KIND == "slstm":
        c = tl.load(c0 + own, mask=real, other=0.0)
    if KIND == "slstm":
        n = tl.load(n0 + own, mask=real, other=0.0)
        m = tl.load(m0 + own, mask=real, other=0.0)
    if I >= 0:
        w_i = _matrix(weight, head, I, G, D, WIDTH, False)
    if F >= 0:
        w_f = _matrix(weight, head, F, G, D, WIDTH, False)
    w_z = _matrix(weight, head, Z, G, D, WIDTH, False)
    if O >= 0:
        w_o = _matrix(weight, head, O, G, D, WIDTH, False)
    for s in range(steps):
        inside = (s < end)[:, None] & real
        frame = b * T + (end - 1 - s if REVERSE else s)
        at_x = (
            x + b[:, None] * stride_b + (frame - b * T)[:, None] * stride_t + head * stride_h + d * stride_d
        )
        at = (frame[:, None] * H + head) * D + d
        at_gates = gates + (frame[:, None] * H + head) * G * D + d
        if I >= 0:
            i = tl.load(at_x + I * stride_g, mask=inside, other=0.0).to(tl.float32)
        if F >= 0:
            f = tl.load(at_x + F * stride_g, mask=inside, other=0.0).to(tl.float32)
        z = tl.load(at_x + Z * stride_g, mask=inside, other=0.0).to(tl.float32)
        if O >= 0:
            o = tl.load(at_x + O * stride_g, mask=inside, other=0.0).to(tl.float32)
        if I >= 0:
            i += _product(h, w_i)
        if F >= 0:
            f += _product(h, w_f)
        by_z = _product(h, w_z)
        if O >= 0:
            o += _product(h, w_o)
        if BIAS:
            if I >= 0:
                i += _vector(bias, head * G + I, D, WIDTH)
            if F >= 0:
                f += _vector(bias, head * G + F, D, WIDTH)
            by_z += _vector(bias, head * G + Z, D, WIDTH)
            if O >= 0:
                o += _vector(bias, head * G + O, D, WIDTH)
        if KIND == "gru":
            i = tl.sigmoid(i)
            f = tl.sigmoid(f)
            z = _tanh(z + i * by_z)
            h = tl.where(inside, z + f * (h - z), h)
            tl.store(aside + at, by_z, mask=inside)
        else:
            z += by_z
        if KIND == "elman":
            z = _tanh(z)
            h = tl.where(inside, z, h)
        if KIND == "lstm":
            if SQUASH_IN:
                z = _tanh(z)
            if I >= 0:
                if PEEPHOLES:
                    i += _vector(peepholes, head * 3, D, WIDTH) * c
                i = tl.sigmoid(i)
            if F >= 0:
                if PEEPHOLES:
                    f += _vector(peepholes, head * 3 + 1, D, WIDTH) * c
                f = tl.sigmoid(f)
            add = z
            if I >= 0:
                add = i * z
            keep = c
            if F >= 0:
                keep = f * c
            if COUPLED:
                keep = (1 - i) * c
            c = tl.where(inside, keep + add, c)
            out = c
            if SQUASH_OUT:
                out = _tanh(c)
            if O >= 0:
                if PEEPHOLES:
                    o += _vector(peepholes, head * 3 + 2, D, WIDTH) * c
                o = tl.sigmoid(o)
                out = o * out
            h = tl.where(inside, out, h)
            tl.store(c_out + at, c, mask=inside)
        if KIND == "slstm":
            log_f = f
            if not EXP_FORGET:
                log_f = _log_sigmoid(f)
            tl.store(aside + at, log_f, mask=inside)
            old = tl.where(n == 0, float("-inf"), log_f + m)
            top = tl.maximum(old, i)
            f = tl.exp(old - top)
            i = tl.exp(i - top)
            z = _tanh(z)
            o = tl.sigmoid(o)
            c = tl.where(inside, f * c + i * z, c)
            n = tl.where(inside, f * n + i, n)
            m = tl.where(inside, top, m)
            h = tl.where(inside, o * c / tl.where(inside, n, 1.0), h)
            tl.store(c_out + at, c, mask=inside)
            tl.store(n_out + at, n, mask=inside)
        if I >= 0:
            tl.store(at_gates + I * D, i, mask=inside)
        if F >= 0:
            tl.store(at_gates + F * D, f, mask=inside)
        tl.store(at_gates + Z * D, z, mask=inside)
        if O >= 0:
            tl.store(at_gates + O * D, o, mask=inside)
        tl.store(y + at, h, mask=inside)
    tl.store(h_last + own, h, mask=real)
    if KIND == "lstm" or KIND == "slstm":
        tl.store(c_last + own, c, mask=real)
    if KIND == "slstm":
        tl.store(n_last + own, n, mask=real)
        tl.store(m_last + own, m, mask=real)


@triton.jit
def _load_before(history, first, at, at_first, s, inside):
    """Of the frame before, or the state before the first one."""
    earlier = tl.load(history + at, mask=inside & (s > 0), other=0.0)
    return earlier + tl.load(first + at_first, mask=inside & (s == 0), other=0.0)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kernel(
    weight, peepholes, h0, c0, n0, ends, y, gates, aside, c_in, n_in, grad_y,
    h_future, c_future, n_future, m_future, grads, h_past, c_past, n_past, m_past,
    B, T, steps, H,
    G: tl.constexpr, E: tl.constexpr, REVERSE: tl.constexpr,
    I: tl.constexpr, F: tl.constexpr, Z: tl.constexpr, O: tl.constexpr,  # noqa: E741
    KIND: tl.constexpr, PEEPHOLES: tl.constexpr, COUPLED: tl.constexpr,
    SQUASH_IN: tl.constexpr, SQUASH_OUT: tl.constexpr, EXP_FORGET: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (heads, blocks of streams): gradients (B, T, H, E, D) at the preactivations, and at the first state."""
    head = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)[None, :]
    real = (b < B)[:, None] & (d < D)
    end = tl.load(ends + b, mask=b < B, other=0)
    own = (b[:, None] * H + head) * D + d
    dh = tl.load(h_future + own, mask=real, other=0.0)
    if KIND == "lstm" or KIND == "slstm":
        dc = tl.load(c_future + own, mask=real, other=0.0)
    if KIND == "slstm":
        dn = tl.load(n_future + own, mask=real, other=0.0)
        dm = tl.load(m_future + own, mask=real, other=0.0)
    if I >= 0:
        w_i = _matrix(weight, head, I, G, D, WIDTH, True)
    if F >= 0:
        w_f = _matrix(weight, head, F, G, D, WIDTH, True)
    w_z = _matrix(weight, head, Z, G, D, WIDTH, True)
    if O >= 0:
        w_o = _matrix(weight, head, O, G, D, WIDTH, True)
    for back in range(steps):
        s = steps - 1 - back
        inside = (s < end)[:, None] & real
        frame = (b * T + (end - 1 - s if REVERSE else s))[:, None]
        at = (frame * H + head) * D + d
        at_before = at + (H * D if REVERSE else -H * D)
        at_gates = gates + (frame * H + head) * G * D + d
        if I >= 0:
            i = tl.load(at_gates + I * D, mask=inside, other=0.0)
        if F >= 0:
            f = tl.load(at_gates + F * D, mask=inside, other=0.0)
        z = tl.load(at_gates + Z * D, mask=inside, other=0.0)
        if O >= 0:
            o = tl.load(at_gates + O * D, mask=inside, other=0.0)
        g = dh + tl.load(grad_y + at, mask=inside, other=0.0)
        if KIND == "gru":
            h = _load_before(y, h0, at_before, own, s, inside)
            by_z = tl.load(aside + at, mask=inside, other=0.0)
            d_x = g * (1 - f) * (1 - z * z)
            d_z = d_x * i
            d_i = d_z * by_z * (1 - i)
            d_f = g * (h - z) * f * (1 - f)
            direct = g * f
        if KIND == "elman":
            d_z = g * (1 - z * z)
        if KIND == "lstm":
            c = tl.load(c_in + at, mask=inside, other=0.0)
            before = _load_before(c_in, c0, at_before, own, s, inside)
            out = c
            slope = 1.0
            if SQUASH_OUT:
                out = _tanh(c)
                slope = 1 - out * out
            new_dc = dc + g * slope
            if O >= 0:
                new_dc = dc + g * slope * o
                d_o = g * out * o * (1 - o)
                if PEEPHOLES:
                    new_dc += _vector(peepholes, head * 3 + 2, D, WIDTH) * d_o
            d_z = new_dc
            if I >= 0:
                d_z = new_dc * i
                gain = z
                if COUPLED:
                    gain = z - before
                d_i = new_dc * gain * i * (1 - i)
            if SQUASH_IN:
                d_z = d_z * (1 - z * z)
            past = new_dc
            if F >= 0:
                d_f = new_dc * before * f * (1 - f)
                past = new_dc * f
            if COUPLED:
                past = new_dc * (1 - i)
            if PEEPHOLES:
                if I >= 0:
                    past += _vector(peepholes, head * 3, D, WIDTH) * d_i
                if F >= 0:
                    past += _vector(peepholes, head * 3 + 1, D, WIDTH) * d_f
            dc = tl.where(inside, past, dc)
        if KIND == "slstm":
            c = tl.load(c_in + at, mask=inside, other=0.0)
            n = tl.load(n_in + at, mask=inside, other=1.0)
            c_before = _load_before(c_in, c0, at_before, own, s, inside)
            n_before = _load_before(n_in, n0, at_before, own, s, inside)
            log_f = tl.load(aside + at, mask=inside, other=0.0)
            d_o = g * (c / n) * o * (1 - o)
            new_dc = dc + g * o / n
            new_dn = dn - g * o * (c / n) / n
            d_z = new_dc * i * (1 - z * z)
            rest = dm - (new_dc * c + new_dn * n)
            d_old = f * (new_dc * c_before + new_dn * n_before) + tl.where(f == 1, rest, 0.0)
            d_i = i * (new_dc * z + new_dn) + tl.where(f == 1, 0.0, rest)
            d_f = d_old
            if not EXP_FORGET:
                d_f = d_old * (1 - tl.exp(log_f))
            dc = tl.where(inside, new_dc * f, dc)
            dn = tl.where(inside, new_dn * f, dn)
            dm = tl.where(inside, tl.where(n_before == 0, 0.0, d_old), dm)
        at_grads = grads + (frame * H + head) * E * D + d
        past_h = _product(d_z, w_z)
        if I >= 0:
            past_h += _product(d_i, w_i)
            tl.store(at_grads + I * D, d_i, mask=inside)
        if F >= 0:
            past_h += _product(d_f, w_f)
            tl.store(at_grads + F * D, d_f, mask=inside)
        if O >= 0:
            past_h += _product(d_o, w_o)
            tl.store(at_grads + O * D, d_o, mask=inside)
        tl.store(at_grads + Z * D, d_z, mask=inside)
        if KIND == "gru":
            past_h += direct
            tl.store(at_grads + G * D, d_x, mask=inside)
        dh = tl.where(inside, past_h, dh)
    tl.store(h_past + own, dh, mask=real)
    if KIND == "lstm" or KIND == "slstm":
        tl.store(c_past + own, dc, mask=real)
    if KIND == "slstm":
        tl.store(n_past + own, dn, mask=real)
        tl.store(m_past + own, dm, mask=real)
