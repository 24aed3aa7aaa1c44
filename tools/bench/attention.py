"""Time and memory of linear attention on CPU, forward and backward, beside the loop over frames.

    python tools/bench/attention.py                          # 2 threads
    python tools/bench/attention.py --threads 1 --picture kernels/asr_kernels/attention/linear.svg

The peer is backend="reference", the definition, with autograd. Both must first give the loss and gradients
of float64 or nothing is printed (to 1e-5 of their norm). They take turns; times are medians; memory is the
peak resident size of one call above the size before it. Then T doubles from 1000 to 32000, for one stream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import extra_memory, seconds, turns
from torch import Tensor

from asr_kernels import delta_rule, gated_linear_attention

BACKENDS = ("cpu", "reference")
LENGTHS = [1000 * 2**n for n in range(6)]
Inputs = dict[str, Tensor]


class Case(NamedTuple):
    op: Callable[..., Any]
    inputs: Inputs

    def __call__(self, backend: str) -> Tensor:
        y, state = self.op(**self.inputs, backend=backend)
        return y.square().sum() + state.square().sum()

    def gradients(self, backend: str) -> Inputs:
        """Of every input; and the loss itself."""
        loss = self(backend)
        grads = torch.autograd.grad(loss, list(self.inputs.values()))
        return {"loss": loss.detach(), **dict(zip(self.inputs, grads, strict=True))}


def gated(B: int, T: int, H: int, K: int, V: int, *, channel: bool, bonus: bool) -> Case:
    torch.manual_seed(0)
    decay = -torch.rand(B, T, H, *((K,) if channel else ())).square()
    inputs = {"q": torch.randn(B, T, H, K), "k": torch.randn(B, T, H, K), "v": torch.randn(B, T, H, V)}
    inputs |= {"log_decay": decay, **({"bonus": torch.randn(H, K)} if bonus else {})}
    return Case(gated_linear_attention, {name: x.requires_grad_() for name, x in inputs.items()})


def delta(B: int, T: int, H: int, K: int, V: int, *, steps: int) -> Case:
    torch.manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(B, T, steps, H, K), dim=-1)
    inputs = {"q": torch.randn(B, T, H, K), "k": k, "v": torch.randn(B, T, steps, H, V)}
    inputs |= {"beta": torch.rand(B, T, steps, H), "log_decay": -0.1 * torch.rand(B, T, H)}
    return Case(delta_rule, {name: x.requires_grad_() for name, x in inputs.items()})


MAKERS: dict[str, Callable[..., Case]] = {
    "gated, per head": partial(gated, channel=False, bonus=False),
    "gated, per channel": partial(gated, channel=True, bonus=False),
    "gated, per channel, bonus": partial(gated, channel=True, bonus=True),
    "delta rule, 1 step": partial(delta, steps=1),
    "delta rule, 2 steps": partial(delta, steps=2),
}


def check(name: str, make: Callable[..., Case]) -> None:
    """Exit unless both give the loss and the gradients of float64."""
    case = make(2, 150, 2, 64, 64)
    exact = Case(case.op, {n: x.detach().double().requires_grad_() for n, x in case.inputs.items()})
    wanted = exact.gradients("reference")
    for backend in BACKENDS:
        for what, grad in case.gradients(backend).items():
            off = float((grad - wanted[what]).norm() / wanted[what].norm())
            if not off <= 1e-5:
                sys.exit(f"{name}, {backend}, is wrong: {what} is off by {off:.1e}")
    print(f"  {name}: loss and gradients are those of float64 to 1e-5")


def compare(name: str, make: Callable[..., Case], shape: list[int], repeats: int) -> None:
    case = make(*shape)
    inputs = list(case.inputs.values())
    size = sum(x.numel() for x in inputs) * 4
    times = turns([partial(case, backend) for backend in BACKENDS], inputs, repeats)
    print(f"\n{name}, B,T,H,K,V = {shape}: inputs {size / 1e6:.1f} MB, {torch.get_num_threads()} threads")
    for backend, time in zip(BACKENDS, times, strict=True):
        memory = extra_memory(partial(case, backend), inputs, 3)
        print(
            f"  {backend:10}{1e3 * time:9.1f} ms  cpu is {time / times[0]:.1f}x as fast  "
            f"extra memory {memory / 1e6:7.1f} MB = {memory / size:.1f}x the inputs",
            flush=True,
        )


def sweep(repeats: int) -> dict[str, list[float]]:
    """Seconds of one stream as T doubles."""
    found: dict[str, list[float]] = {}
    for name, make in MAKERS.items():
        found[name] = []
        print(f"\n{name}, B,H,K,V = 1,4,64,64")
        for T in LENGTHS:
            case = make(1, T, 4, 64, 64)
            inputs = list(case.inputs.values())
            found[name].append(seconds(partial(case, "cpu"), inputs, repeats))
            memory = extra_memory(partial(case, "cpu"), inputs, 1)
            print(
                f"  T = {T:6} {1e3 * found[name][-1]:9.1f} ms = {1e6 * found[name][-1] / T:6.1f} us a frame, "
                f"extra memory {memory / T / 1e3:5.1f} kB a frame",
                flush=True,
            )
    return found


def draw(times: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in times.items():
        axes.loglog(LENGTHS, values, marker="o", label=name)
    axes.loglog(LENGTHS, [values[0] * T / LENGTHS[0] for T in LENGTHS], "k:", label="linear")
    axes.set(xlabel="frames", ylabel="seconds, forward and backward", title="B, H, K, V = 1, 4, 64, 64")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="4,1000,4,64,64", help="B,T,H,K,V of the comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--picture", type=Path, help="where to save a plot of time over T")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, make in MAKERS.items():
        check(name, make)
    for name, make in MAKERS.items():
        compare(name, make, [int(n) for n in arguments.shape.split(",")], arguments.repeats)
    times = sweep(min(3, arguments.repeats))
    if arguments.picture:
        draw(times, arguments.picture)


if __name__ == "__main__":
    main()
