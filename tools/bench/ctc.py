"""Time and memory of `asr_kernels.ctc_loss` on CPU, forward and backward, beside PyTorch's.

    python tools/bench/ctc.py                         # every shape, 2 threads
    python tools/bench/ctc.py --threads 1 --shapes 8,300,60,500

The peer is torch.nn.functional.ctc_loss on the log_softmax of the same logits. Both must first agree with
it in float64 or nothing is printed (losses to 1e-4; gradients, by their norm, to 1e-5, the peer's to 1e-3, as
it adds up in float32). The contestants take turns; times are medians and include the allocation of the
gradient; memory is the peak resident size of one call above the size before it, as a multiple of the logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from measure import extra_memory, over_shapes, turns
from torch import Tensor

from asr_kernels import ctc_loss

SHAPES = "32,60,24,30 8,300,60,500 8,300,60,500,uneven"


class Problem(NamedTuple):
    logits: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor


Loss = Callable[[Problem], Tensor]


def make(B: int, T: int, U: int, V: int, uneven: bool) -> Problem:
    """Standard normal logits; uneven lengths fall evenly from the full size to a fifth of it."""
    torch.manual_seed(0)
    logits = torch.randn(B, T, V, requires_grad=True)
    share = torch.linspace(1, 0.2, B) if uneven else torch.ones(B)
    frames, labels = (share * T).round().int(), (share * U).round().int()
    return Problem(logits, torch.randint(1, V, (B, U)), frames, labels)


def ours(problem: Problem) -> Tensor:
    return ctc_loss(*problem, reduction="sum")


def torch_loss(problem: Problem) -> Tensor:
    log_probs = problem.logits.log_softmax(-1).transpose(0, 1)
    return torch.nn.functional.ctc_loss(log_probs, *problem[1:], reduction="sum")


CONTESTANTS: dict[str, Loss] = {"asr_kernels": ours, "PyTorch": torch_loss}


def step(loss: Loss, problem: Problem) -> tuple[float, Tensor]:
    problem.logits.grad = None
    value = loss(problem)
    value.backward()
    return float(value.detach()), problem.logits.grad


def check(name: str, loss: Loss, problem: Problem, expected: tuple[float, Tensor]) -> None:
    """Exit unless loss and gradient are those of float64."""
    value, grad = step(loss, problem)
    difference = float((grad - expected[1]).norm() / expected[1].norm())
    tolerance = 1e-5 if loss is ours else 1e-3
    if not (abs(value - expected[0]) <= 1e-4 * abs(expected[0]) and difference <= tolerance):
        sys.exit(f"{name} is wrong: loss {value} for {expected[0]}, gradient off by {difference:.1e}")


def compare(shape: str, repeats: int) -> None:
    problem = make(*map(int, shape.split(",")[:4]), uneven=shape.endswith("uneven"))
    expected = step(torch_loss, problem._replace(logits=problem.logits.detach().double().requires_grad_()))
    for name, loss in CONTESTANTS.items():
        check(name, loss, problem, expected)
    steps = [partial(loss, problem) for loss in CONTESTANTS.values()]
    times = turns(steps, [problem.logits], repeats)
    size = problem.logits.numel() * 4
    print(f"\nB,T,U,V = {shape}: logits {size / 1e6:.1f} MB, {torch.get_num_threads()} threads")
    for name, time, one in zip(CONTESTANTS, times, steps, strict=True):
        memory = extra_memory(one, [problem.logits])
        print(
            f"  {name:14}{1e3 * time:8.1f} ms  ours is {times[0] / time:.2f}x that"
            f"  extra memory {memory / 1e6:6.1f} MB = {memory / size:.2f}x the logits",
            flush=True,
        )


if __name__ == "__main__":
    over_shapes(compare, __doc__, "B,T,U,V[,uneven]", SHAPES, repeats=31)
