"""Time and memory of `asr_kernels.recurrence` on CPU, forward and backward, beside torch.nn.

    python tools/bench/lstm.py                    # 1 thread, 8 streams of 300 frames, 256 units
    python tools/bench/lstm.py --shape 1,300,256 --repeats 51

All start from the layer's input: `recurrence` behind a projection by torch.nn.functional.linear, and
`recurrent_layer`, which may leave a cell to the library that the module runs in. With 4 heads of 64 units the
peer is one torch.nn module per head, as no peer has several. Outputs and gradients must first agree with the
module's in float64, or nothing is printed (to 1e-4 of the largest). `newton_rnn`, for diagonal weights,
stands beside the sequential loop over the same cell, `recurrence` with a head per unit. The contestants take
turns; times are medians and include the allocation of the gradients; memory is the peak resident size of one
call above the size before it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from measure import extra_memory, in_turn, turns
from torch import Tensor, nn

from asr_kernels import Cell, newton_rnn, recurrence, recurrent_layer

Layer = Callable[[Tensor], Tensor]
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU}


def peer(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """One module per head, side by side."""
    return torch.cat([module(x)[0] for module in modules], dim=-1)


def ours(cell: Cell, modules: Sequence[nn.Module], free: bool, x: Tensor) -> Tensor:
    """The same with the weights of all heads together; `free` to choose a library."""
    H, G, D = len(modules), len(cell.gates), modules[0].hidden_size
    one = modules[0]
    if H == 1:
        projection, shift = one.weight_ih_l0, one.bias_ih_l0
        weight, bias = one.weight_hh_l0[None], one.bias_hh_l0[None]
    else:
        projection = torch.cat([m.weight_ih_l0 for m in modules])
        shift = torch.cat([m.bias_ih_l0 for m in modules])
        weight = torch.stack([m.weight_hh_l0 for m in modules])
        bias = torch.stack([m.bias_hh_l0 for m in modules])
    weight, bias = weight.view(H, G, D, D).permute(0, 3, 1, 2), bias.view(H, G, D)
    if free:
        return recurrent_layer(cell, x, projection, shift, weight, bias).y.flatten(2)
    projected = nn.functional.linear(x, projection, shift).view(*x.shape[:2], H, G, D)
    return recurrence(cell, projected, weight, bias).y.flatten(2)


def outcome(layer: Layer, x: Tensor, parameters: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    y = layer(x)
    total = (y * weights.to(y.dtype)).sum()
    return [y.detach(), *torch.autograd.grad(total, [x, *parameters])]


def check(
    layers: dict[str, Layer], x: Tensor, parameters: Sequence[Tensor], wanted: list[Tensor], weights: Tensor
) -> None:
    """Exit unless outputs and all gradients are those of float64."""
    for name, layer in layers.items():
        found = outcome(layer, x, parameters, weights)
        for a, b in zip(found, wanted, strict=True):
            error = float((a.double() - b).abs().max() / b.abs().max())
            if not error <= 1e-4:
                sys.exit(f"{name} is wrong: off by {error:.1e} of the largest")


def compare(kind: str, B: int, T: int, units: int, heads: int, repeats: int) -> None:
    torch.manual_seed(0)
    D = units // heads
    modules = nn.ModuleList(MODULES[kind](units, D, batch_first=True) for _ in range(heads))
    x = torch.randn(B, T, units, requires_grad=True)
    parameters = list(modules.parameters())
    cell = Cell("lstm" if kind == "lstm" else "gru")
    layers: dict[str, Layer] = {
        "recurrence": partial(ours, cell, modules, False),
        "recurrent_layer": partial(ours, cell, modules, True),
        MODULES[kind].__name__: partial(peer, modules),
    }
    exact, weights = deepcopy(modules).double(), torch.randn(B, T, units)
    x64 = x.detach().double().requires_grad_()
    wanted = outcome(partial(peer, exact), x64, list(exact.parameters()), weights)
    check(layers, x, parameters, wanted, weights)

    inputs = [x, *parameters]
    steps = [partial(lambda layer: layer(x).sum(), layer) for layer in layers.values()]
    times = turns(steps, inputs, repeats)
    with torch.no_grad():
        forward = in_turn(repeats, *(partial(layer, x) for layer in layers.values()))
    print(f"\n{kind}, {heads} heads of {D}, B,T = {B},{T}, {torch.get_num_threads()} threads")
    for name, time, alone, step in zip(layers, times, forward, steps, strict=True):
        memory = extra_memory(step, inputs)
        print(
            f"  {name:16}{1e3 * time:8.1f} ms, recurrence is {times[0] / time:.2f}x that;  forward alone "
            f"{1e3 * alone:7.1f} ms, {forward[0] / alone:.2f}x;  extra memory {memory / 1e6:6.1f} MB",
            flush=True,
        )


def compare_newton(kind: str, B: int, T: int, units: int, repeats: int) -> None:
    torch.manual_seed(0)
    cell = Cell("lstm" if kind == "lstm" else "gru")
    G = len(cell.gates)
    x = torch.randn(B, T, G, units, requires_grad=True)
    weight = torch.randn(G, units, requires_grad=True)

    def parallel() -> Tensor:
        return newton_rnn(cell, x, weight).y

    def sequential() -> Tensor:
        return recurrence(cell, x.transpose(2, 3)[..., None], weight.T[:, None, :, None]).y[..., 0]

    difference = float((parallel() - sequential()).detach().abs().max())
    if not difference <= 1e-5:
        sys.exit(f"newton_rnn is wrong: off by {difference:.1e}")
    found = newton_rnn(cell, x, weight)
    times = turns([lambda: parallel().sum(), lambda: sequential().sum()], [x, weight], repeats)
    print(
        f"\n{kind}, diagonal, {units} units, B,T = {B},{T}: newton_rnn {1e3 * times[0]:.1f} ms "
        f"({found.iterations} iterations, residual {found.residual:.1e}), "
        f"sequential loop {1e3 * times[1]:.1f} ms: {times[0] / times[1]:.2f}x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="8,300,256", help="B,T,units")
    parser.add_argument("--heads", default="1 4", help="numbers of heads, separated by spaces")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    B, T, units = map(int, arguments.shape.split(","))
    for kind in MODULES:
        for heads in map(int, arguments.heads.split()):
            compare(kind, B, T, units, heads, arguments.repeats)
    for kind in MODULES:
        compare_newton(kind, B, T, units, max(3, arguments.repeats // 4))


if __name__ == "__main__":
    main()
