"""Time and memory of `asr_kernels.linear_scan` on CPU, forward and backward, beside what PyTorch offers.

    python tools/bench/scan.py                                  # every shape, 2 threads
    python tools/bench/scan.py --threads 1 --shapes 8,1000,256

Peers: a loop over frames under autograd, which unbind takes apart (with indexing its backward is quadratic);
the log-space form of Heinsen 2023, two cumulative sums; and a parallel scan by doubling (Hillis and Steele
1986). Inputs are positive, as logarithms need. All must agree with a loop in float64, values and gradients
to 1e-3 of the largest, ours to 1e-5, before a time is printed. Contestants take turns; times are medians,
memory is the peak resident size of a call above that before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from measure import extra_memory, over_shapes, turns
from torch import Tensor

from asr_kernels import linear_scan, log_linear_scan

SHAPES = "8,1000,256 16,400,512 1,3000,256"


class Problem(NamedTuple):
    a: Tensor
    b: Tensor
    weights: Tensor
    """Of the states in the loss."""


Contestant = Callable[[Problem], Tensor]


def make(B: int, T: int, D: int) -> Problem:
    """Decays as of a trained gate, from 0.5 on."""
    torch.manual_seed(0)
    a, b = 0.5 + 0.5 * torch.rand(B, T, D), torch.rand(B, T, D) + 0.01
    return Problem(a.requires_grad_(), b.requires_grad_(), torch.randn(B, T, D))


def ours(problem: Problem) -> Tensor:
    return linear_scan(problem.a, problem.b).h


def ours_in_logarithms(problem: Problem) -> Tensor:
    return log_linear_scan(problem.a.log(), problem.b.log()).h.exp()


def loop(problem: Problem) -> Tensor:
    state, states = torch.zeros_like(problem.b[:, 0]), []
    for a, b in zip(problem.a.unbind(1), problem.b.unbind(1), strict=True):
        state = torch.addcmul(b, a, state)
        states.append(state)
    return torch.stack(states, dim=1)


def heinsen(problem: Problem) -> Tensor:
    decay = problem.a.log().cumsum(dim=1)
    return (decay + (problem.b.log() - decay).logcumsumexp(dim=1)).exp()


def doubling(problem: Problem) -> Tensor:
    a, h, step = problem.a, problem.b, 1
    while step < h.shape[1]:
        h = torch.cat((h[:, :step], torch.addcmul(h[:, step:], a[:, step:], h[:, :-step])), dim=1)
        a = torch.cat((a[:, :step], a[:, step:] * a[:, :-step]), dim=1)
        step *= 2
    return h


CONTESTANTS: dict[str, Contestant] = {
    "linear_scan": ours,
    "loop over frames": loop,
    "Heinsen, log-space": heinsen,
    "doubling": doubling,
    "log_linear_scan": ours_in_logarithms,
}


def total(contestant: Contestant, problem: Problem) -> Tensor:
    return (contestant(problem) * problem.weights).sum()


def step(contestant: Contestant, problem: Problem) -> list[Tensor]:
    h = contestant(problem)
    return [h.detach(), *torch.autograd.grad((h * problem.weights).sum(), (problem.a, problem.b))]


def check(name: str, contestant: Contestant, problem: Problem, expected: list[Tensor]) -> None:
    """Exit unless states and gradients are those of float64."""
    tolerance = 1e-5 if contestant is ours else 1e-3
    for what, found, exact in zip(("h", "dL/da", "dL/db"), step(contestant, problem), expected, strict=True):
        difference = float((found - exact).abs().max() / exact.abs().max())
        if not difference <= tolerance:
            sys.exit(f"{name} is wrong: {what} off by {difference:.1e}")


def compare(shape: str, repeats: int) -> None:
    problem = make(*map(int, shape.split(",")))
    exact = Problem(*(x.detach().double().requires_grad_() for x in problem))
    expected = step(loop, exact)
    for name, contestant in CONTESTANTS.items():
        check(name, contestant, problem, expected)
    inputs, steps = [problem.a, problem.b], [partial(total, c, problem) for c in CONTESTANTS.values()]
    times, size = turns(steps, inputs, repeats), problem.b.numel() * 4
    print(f"\nB,T,D = {shape}: states {size / 1e6:.1f} MB, {torch.get_num_threads()} threads")
    for name, time, one in zip(CONTESTANTS, times, steps, strict=True):
        memory = extra_memory(one, inputs)
        print(
            f"  {name:20}{1e3 * time:8.1f} ms  ours is {time / times[0]:5.2f} times as fast"
            f"  extra memory {memory / 1e6:6.1f} MB = {memory / size:.1f}x the states",
            flush=True,
        )


if __name__ == "__main__":
    over_shapes(compare, __doc__, "B,T,D", SHAPES, repeats=15)
