"""The gate arithmetic of cpu.py: forward in place, and the derivatives prepared for all frames at once.

A unit's preactivations meet those of others only through h, so nearly everything in the backward pass is a
product of what the forward pass left behind (`factors`, computed for all frames in a few large operations)
and of the gradients that come from the future (`back`, a few small operations per frame). For the LSTM, with
dh and dc the gradients at h_t and c_t::

    d o~ = dh * [tanh(c) o (1-o)]           dc += dh * [o (1 - tanh^2 c)] + p_o d o~
    d i~ = dc * [z i (1-i)]    d f~ = dc * [c_{t-1} f (1-f)]    d z~ = dc * [i (1-z^2)]
    dc_{t-1} = dc * f + p_i d i~ + p_f d f~

the GRU and the Elman cell have dh alone. The sLSTM's stabiliser has a gradient of its own: with
s = dm - (dc c + dn n), which goes to the larger of the two arguments of its maximum::

    dc += dh * [o/n]           dn -= dh * [h/n]                 d o~ = dh * [(c/n) o (1-o)]
    da = f' (dc c_{t-1} + dn n_{t-1}) (+ s)                     d i~ = i' (dc z + dn) (+ s)
    d f~ = da * [sigma(-f~)]   d z~ = dc * [i' (1-z^2)]         dm_{t-1} = da

Layouts: `gates` (E, heads, rows, D) of one frame or (T, E, heads, B, D) of all; leaves (heads, rows, D) or
(T+1, heads, B, D) with the state before the first frame in front.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels.lstm.cell import Cell

Leaves = dict[str, Tensor]


class Arithmetic(Protocol):
    """One kind of cell."""

    aside: int
    """Arrays (T, aside, heads, B, D) that it keeps beside the gates."""
    direct: int
    """1 where h_{t-1} enters the frame other than through the recurrent weights, else 0."""

    def forward(self, gates: Tensor, aside: Tensor, before: Leaves, after: Leaves) -> None:
        """Turn preactivations into activations in place, and write the state after the frame."""

    def factors(self, gates: Tensor, aside: Tensor, history: Leaves) -> tuple[Tensor, Leaves]:
        """(T, E, heads, B, D) that `back` turns into gradients, and what else it needs."""

    def back(
        self, grads: Tensor, gates: Tensor, extra: Leaves, before: Leaves, after: Leaves, future: Leaves
    ) -> None:
        """Turn factors into gradients, and the gradients of the state after the frame into those before it.

        Leaves out what flows through the recurrent weights: future["h"] is what h_{t-1} does directly where
        `direct`, else whatever it was.
        """


def arithmetic(cell: Cell, peepholes: Tensor | None) -> Arithmetic:
    """The arithmetic of the cell; peepholes (P, heads, 1, D)."""
    if cell.kind == "lstm":
        return _Lstm(cell, peepholes)
    if cell.kind == "slstm":
        return _Slstm(cell)
    return _Gru() if cell.kind == "gru" else _Elman()


class _Lstm:
    aside = direct = 0

    def __init__(self, cell: Cell, peepholes: Tensor | None) -> None:
        self._cell = cell
        self._at = {name: k for k, name in enumerate(cell.gates)}
        peeps = () if peepholes is None else peepholes.unbind(0)
        self._peeps = dict(zip(cell.peephole_gates, peeps, strict=True))

    def forward(self, gates: Tensor, aside: Tensor, before: Leaves, after: Leaves) -> None:
        cell, (c_, c, h) = self._cell, (before["c"], after["c"], after["h"])
        g = dict(zip(cell.gates, gates.unbind(0), strict=True))
        for name in ("i", "f"):
            if name in self._peeps:
                g[name].addcmul_(self._peeps[name], c_)
        if self._at["z"] > 0:
            gates[: self._at["z"]].sigmoid_()
        if cell.input_activation:
            g["z"].tanh_()
        if cell.coupled:
            torch.lerp(c_, g["z"], g["i"], out=c)
        else:
            torch.mul(c_, g["f"], out=c) if "f" in g else c.copy_(c_)
            c.addcmul_(g["i"], g["z"]) if "i" in g else c.add_(g["z"])
        torch.tanh(c, out=h) if cell.output_activation else h.copy_(c)
        if "o" in g:
            if "o" in self._peeps:
                g["o"].addcmul_(self._peeps["o"], c)
            h.mul_(g["o"].sigmoid_())
        for name in cell.recurrent_gates:
            after[name].copy_(g[name])

    def factors(self, gates: Tensor, aside: Tensor, history: Leaves) -> tuple[Tensor, Leaves]:
        cell, (c_, c) = self._cell, (history["c"][:-1], history["c"][1:])
        g = dict(zip(cell.gates, gates.unbind(1), strict=True))
        grads = torch.empty_like(gates)
        d = dict(zip(cell.gates, grads.unbind(1), strict=True))
        squashed = c.tanh() if cell.output_activation else c
        through = 1 - squashed * squashed if cell.output_activation else torch.ones_like(c)
        d["z"].copy_(1 - g["z"] * g["z"] if cell.input_activation else torch.ones_like(c))
        if "i" in g:
            d["z"].mul_(g["i"])
        source = {"i": g["z"] - c_ if cell.coupled else g["z"], "f": c_, "o": squashed}
        for name in ("i", "f", "o"):
            if name in g:
                torch.addcmul(g[name], g[name], g[name], value=-1, out=d[name])
                d[name].mul_(source[name])
        return grads, {"through": through.mul_(g["o"]) if "o" in g else through}

    def back(
        self, grads: Tensor, gates: Tensor, extra: Leaves, before: Leaves, after: Leaves, future: Leaves
    ) -> None:
        cell, dh, dc = self._cell, future["h"], future["c"]
        d = dict(zip(cell.gates, grads.unbind(0), strict=True))
        g = dict(zip(cell.gates, gates.unbind(0), strict=True))
        dc.addcmul_(dh, extra["through"])
        if "o" in d:
            d["o"].mul_(dh)
            self._fed(d, g, "o", future)
            if "o" in self._peeps:
                dc.addcmul_(self._peeps["o"], d["o"])
        grads[: self._at["z"] + 1].mul_(dc)
        if cell.coupled:
            dc.addcmul_(dc, g["i"], value=-1)
        elif "f" in g:
            dc.mul_(g["f"])
        for name in ("i", "f"):
            if name in d:
                self._fed(d, g, name, future)
                if name in self._peeps:
                    dc.addcmul_(self._peeps[name], d[name])

    def _fed(self, d: Leaves, g: Leaves, name: str, future: Leaves) -> None:
        """Add what comes back from the gates of the next frame."""
        if name in self._cell.recurrent_gates:
            d[name].addcmul_(future[name], g[name] * (1 - g[name]))


class _Gru:
    """Four gradients: r, z, R_n h (with its bias) and x_n; beside the gates R_n h is kept."""

    aside = direct = 1

    def forward(self, gates: Tensor, aside: Tensor, before: Leaves, after: Leaves) -> None:
        r, z, n = gates.unbind(0)
        gates[:2].sigmoid_()
        n.addcmul_(r, aside[0]).tanh_()
        torch.lerp(n, before["h"], z, out=after["h"])

    def factors(self, gates: Tensor, aside: Tensor, history: Leaves) -> tuple[Tensor, Leaves]:
        r, z, n = gates.unbind(1)
        T, _, *rest = gates.shape
        grads = gates.new_empty(T, 4, *rest)
        at_r, at_z, at_product, at_n = grads.unbind(1)
        at_n.copy_(1 - n * n).mul_(1 - z)
        torch.mul(at_n, r, out=at_product)
        torch.mul(at_product, aside[:, 0], out=at_r).mul_(1 - r)
        torch.sub(history["h"][:-1], n, out=at_z).mul_(z).mul_(1 - z)
        return grads, {}

    def back(
        self, grads: Tensor, gates: Tensor, extra: Leaves, before: Leaves, after: Leaves, future: Leaves
    ) -> None:
        grads.mul_(future["h"])
        future["h"].mul_(gates[1])


class _Elman:
    aside = direct = 0

    def forward(self, gates: Tensor, aside: Tensor, before: Leaves, after: Leaves) -> None:
        torch.tanh(gates[0], out=after["h"])

    def factors(self, gates: Tensor, aside: Tensor, history: Leaves) -> tuple[Tensor, Leaves]:
        h = history["h"][1:, None]
        return 1 - h * h, {}

    def back(
        self, grads: Tensor, gates: Tensor, extra: Leaves, before: Leaves, after: Leaves, future: Leaves
    ) -> None:
        grads[0].mul_(future["h"])


class _Slstm:
    """Beside the gates log f is kept; the gates become i', f', z and o."""

    aside, direct = 1, 0

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def forward(self, gates: Tensor, aside: Tensor, before: Leaves, after: Leaves) -> None:
        i, f, z, o = gates.unbind(0)
        c, n, m = (after[leaf] for leaf in ("c", "n", "m"))
        aside[0].copy_(f if self._cell.exponential_forget else functional.logsigmoid(f))
        torch.add(aside[0], before["m"].masked_fill(before["n"] == 0, float("-inf")), out=f)
        torch.maximum(f, i, out=m)
        i.sub_(m).exp_()
        f.sub_(m).exp_()
        z.tanh_()
        o.sigmoid_()
        torch.mul(before["c"], f, out=c).addcmul_(i, z)
        torch.addcmul(i, before["n"], f, out=n)
        torch.div(c, n, out=after["h"]).mul_(o)

    def factors(self, gates: Tensor, aside: Tensor, history: Leaves) -> tuple[Tensor, Leaves]:
        i, _, z, o = gates.unbind(1)
        c, n, h = (history[leaf][1:] for leaf in ("c", "n", "h"))
        grads = torch.empty_like(gates)
        d_i, d_f, d_z, d_o = grads.unbind(1)
        d_i.copy_(i)
        d_f.fill_(1.0) if self._cell.exponential_forget else d_f.copy_(-torch.expm1(aside[:, 0]))
        d_z.copy_(1 - z * z).mul_(i)
        torch.div(c, n, out=d_o).mul_(o).mul_(1 - o)
        return grads, {"by_c": o / n, "by_n": h / n}

    def back(
        self, grads: Tensor, gates: Tensor, extra: Leaves, before: Leaves, after: Leaves, future: Leaves
    ) -> None:
        d_i, d_f, d_z, d_o = grads.unbind(0)
        _, keep, z, _ = gates.unbind(0)
        dh, dc, dn, dm = (future[leaf] for leaf in ("h", "c", "n", "m"))
        d_o.mul_(dh)
        dc.addcmul_(dh, extra["by_c"])
        dn.addcmul_(dh, extra["by_n"], value=-1)
        d_z.mul_(dc)
        dm.addcmul_(dc, after["c"], value=-1).addcmul_(dn, after["n"], value=-1)
        old = keep == 1  # the forget gate's argument was the larger one
        d_i.mul_(torch.addcmul(dn, dc, z)).add_(dm.masked_fill(old, 0.0))
        dm.masked_fill_(~old, 0.0)
        dm.addcmul_(keep, (dc * before["c"]).addcmul_(dn, before["n"]))
        d_f.mul_(dm)
        dm.masked_fill_(before["n"] == 0, 0.0)
        dc.mul_(keep)
        dn.mul_(keep)
