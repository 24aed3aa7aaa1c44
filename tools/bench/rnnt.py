"""Time and memory of `asr_kernels.rnnt_loss` on CPU, forward and backward, beside its peers in one process.

    python tools/bench/rnnt.py                        # every shape, 2 threads
    python tools/bench/rnnt.py --threads 1 --shapes 8,300,60,500

Each contestant must first agree with float64 or nothing is printed (float32 lattices, as the peers have
them, are only good to about 1e-3 at these lengths; ours must be good to 1e-5). Times are medians and
include the allocation of the gradient; memory is the peak resident size of one call above the size before
it (VmHWM after a reset through /proc/self/clear_refs), as a multiple of the logits. Peers: torchaudio, k2
and fast_rnnt, where installed, and the plain vectorised PyTorch that one would write first (one anti-diagonal
at a time, gradient by autograd), which costs what k2's C++ does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from measure import compiled_peers, extra_memory, k2_options, over_shapes, plain_rnnt_loss, seconds
from torch import Tensor

from asr_kernels import rnnt_loss

SHAPES = "32,60,24,30 8,200,40,128 8,300,60,500 8,300,60,500,uneven"


class Problem(NamedTuple):
    logits: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor


Loss = Callable[[Problem], Tensor]


def make(B: int, T: int, U: int, V: int, uneven: bool) -> Problem:
    """Standard normal logits; uneven lengths fall evenly from the full size to a fifth of it."""
    torch.manual_seed(0)
    logits = torch.randn(B, T, U + 1, V, requires_grad=True)
    share = torch.linspace(1, 0.2, B) if uneven else torch.ones(B)
    frames, labels = (share * T).round().int(), (share * U).round().int()
    return Problem(logits, torch.randint(1, V, (B, U), dtype=torch.int32), frames, labels)


def ours(problem: Problem) -> Tensor:
    return rnnt_loss(*problem, reduction="sum")


def plain(problem: Problem) -> Tensor:
    return plain_rnnt_loss(*problem)


def torchaudio_loss(problem: Problem) -> Tensor:
    import torchaudio

    return torchaudio.functional.rnnt_loss(*problem, blank=0, reduction="sum")


def k2_loss(library: ModuleType, problem: Problem) -> Tensor:
    return library.rnnt_loss(logits=problem.logits, **k2_options(*problem[1:]))


def step(loss: Loss, problem: Problem) -> float:
    problem.logits.grad = None
    value = loss(problem)
    value.backward()
    return float(value.detach())


def check(name: str, loss: Loss, problem: Problem, expected: float, expected_grad: Tensor) -> None:
    """Exit unless the loss is within 1e-4 of float64 and the gradient (norm) within 1e-5, peers 1e-3."""
    tolerance = 1e-5 if loss is ours else 1e-3
    value = step(loss, problem)
    difference = (problem.logits.grad - expected_grad).norm() / expected_grad.norm()
    if not (abs(value - expected) <= 1e-4 * abs(expected) and difference <= tolerance):
        sys.exit(f"{name} is wrong: loss {value} for {expected}, gradient off by {float(difference):.1e}")


def compare(shape: str, repeats: int) -> None:
    problem = make(*map(int, shape.split(",")[:4]), uneven=shape.endswith("uneven"))
    contestants: dict[str, Loss] = {"asr_kernels": ours, "plain PyTorch": plain}
    if importlib.util.find_spec("torchaudio"):
        contestants["torchaudio"] = torchaudio_loss
    contestants |= {name: partial(k2_loss, library) for name, library in compiled_peers().items()}
    exact = problem._replace(logits=problem.logits.detach().double().requires_grad_())
    expected = step(plain, exact)
    expected_grad = exact.logits.grad.float()
    del exact
    for name, loss in contestants.items():
        check(name, loss, problem, expected, expected_grad)
    del expected_grad
    fewer = {"torchaudio": max(3, repeats // 5)}
    times = {
        name: seconds(partial(loss, problem), [problem.logits], fewer.get(name, repeats))
        for name, loss in contestants.items()
    }
    size = problem.logits.numel() * 4
    print(f"\nB,T,U,V = {shape}: logits {size / 1e6:.1f} MB, {torch.get_num_threads()} threads")
    for name, loss in contestants.items():
        memory = extra_memory(partial(loss, problem), [problem.logits])
        print(
            f"  {name:14}{1e3 * times[name]:9.1f} ms  {times[name] / times['asr_kernels']:6.1f}x ours"
            f"  extra memory {memory / 1e6:7.1f} MB = {memory / size:.2f}x the logits",
            flush=True,
        )


if __name__ == "__main__":
    over_shapes(compare, __doc__, "B,T,U,V[,uneven]", SHAPES, repeats=15)
