"""Time and memory of `asr_kernels.fused_rnnt_loss` on CPU, forward and backward, beside the unfused way.

    python tools/bench/fused.py                       # every shape, 2 threads
    python tools/bench/fused.py --threads 1 --shapes 8,300,60,500,256

The peer is Linear(tanh(encoder + predictor)) and the vectorised PyTorch loss of measure.py on its logits, all
gradients by autograd. Ours must first agree with it in float64 (loss and every gradient to 1e-5) or nothing
is printed. Times are medians; memory is the peak resident size of one call above the size before it. The
floor is the matrix products (logits for all nodes forward; again, and the gradients of both factors, for
those with an occupation backward) at the speed at which this process multiplies matrices.

The first problem is a model before training, whose lattice is occupied all over. The second is one that is
half trained: labels are heard on two frames each but blurred by noise, so that paths stay near them. On it
the backward pass also leaves out nodes (`skip_below`); printed with the share of nodes that it visits and
the error (relative norm, all gradients together) that this makes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from measure import clear, extra_memory, over_shapes, plain_rnnt_loss, seconds
from torch import Tensor

from asr_kernels import fused_rnnt_loss, rnnt_loss

SHAPES = "32,60,24,30,128 8,200,40,128,256 8,300,60,500,256"
SKIPS = (1e-8, 1e-6, 1e-4)
# What is left out in any case, nine orders under the rounding of float32.
NEGLIGIBLE = 1e-16


class Problem(NamedTuple):
    encoder: Tensor
    predictor: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return list(self[:4])

    @property
    def nodes(self) -> int:
        return self.encoder.shape[0] * self.encoder.shape[1] * self.predictor.shape[1]


def untrained(B: int, T: int, U: int, V: int, D: int) -> Problem:
    torch.manual_seed(0)
    inputs = torch.randn(B, T, D), torch.randn(B, U + 1, D), torch.randn(V, D) / D**0.5, torch.zeros(V)
    return _problem(inputs, torch.randint(1, V, (B, U)))


def half_trained(B: int, T: int, U: int, V: int, D: int) -> Problem:
    """Each symbol has a random code: frames and label counts speak in codes, the output layer listens."""
    torch.manual_seed(0)
    targets = torch.randint(1, V, (B, U))
    codes = torch.randn(V, D).sign()
    # Labels are heard at random frames, in order, each on two; blank on the others.
    start = torch.rand(B, T - 1).argsort(1)[:, :U].sort(1).values[..., None]
    heard = torch.zeros(B, T, dtype=torch.int64)
    heard.scatter_(1, start[..., 0], targets).scatter_(1, start[..., 0] + 1, targets)
    encoder = codes[heard] + torch.randn(B, T, D)
    # The label that is out speaks against itself.
    predictor = 0.3 * torch.randn(B, U + 1, D)
    predictor[:, 1:] -= codes[targets]
    bias = torch.zeros(V)
    bias[0] = 4.0
    return _problem((encoder, predictor, 8 * codes / D, bias), targets)


def _problem(inputs: tuple[Tensor, ...], targets: Tensor) -> Problem:
    B, T, U = *inputs[0].shape[:2], targets.shape[1]
    lengths = torch.full((B,), T), torch.full((B,), U)
    return Problem(*(x.requires_grad_() for x in inputs), targets, *lengths)


def ours(problem: Problem, skip_below: float = 0.0) -> Tensor:
    return fused_rnnt_loss(*problem, skip_below=skip_below, reduction="sum")


def logits(problem: Problem) -> Tensor:
    hidden = torch.tanh(problem.encoder[:, :, None] + problem.predictor[:, None])
    return torch.nn.functional.linear(hidden, problem.weight, problem.bias)


def unfused(problem: Problem) -> Tensor:
    return plain_rnnt_loss(logits(problem), *problem[4:])


def exact(problem: Problem) -> tuple[float, list[Tensor]]:
    """Loss and gradients by the peer in float64, an utterance at a time to bound its memory."""
    inputs = [x.detach().double().requires_grad_() for x in problem.inputs]
    total = 0.0
    for b in range(len(problem.targets)):
        one = slice(b, b + 1)
        shared, own = inputs[2:], (x[one] for x in problem[4:])
        loss = unfused(Problem(inputs[0][one], inputs[1][one], *shared, *own))
        loss.backward()
        total += loss.item()
    return total, [x.grad for x in inputs]


def check(problem: Problem, expected: tuple[float, list[Tensor]]) -> None:
    """Exit unless loss and each gradient (norm) are within 1e-5 of float64, the peer 1e-3."""
    for loss, tolerance in ((ours, 1e-5), (unfused, 1e-3)):
        value, grads = step(partial(loss, problem), problem)
        errors = [error([x], [y]) for x, y in zip(grads, expected[1], strict=True)]
        if not (abs(value - expected[0]) <= tolerance * abs(expected[0]) and max(errors) <= tolerance):
            sys.exit(f"{loss.__name__} is wrong: loss {value} for {expected[0]}, gradients off by {errors}")


def step(loss: Callable[[], Tensor], problem: Problem) -> tuple[float, list[Tensor]]:
    clear(problem.inputs)
    value = loss()
    value.backward()
    return value.item(), [x.grad for x in problem.inputs]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference, relative, of all together."""
    pairs = list(zip(found, expected, strict=True))
    return float(
        (sum((x - y).square().sum() for x, y in pairs) / sum(y.square().sum() for _, y in pairs)).sqrt()
    )


def occupation(problem: Problem) -> Tensor:
    """(B, T, U+1), by the loss on logits with one more column of probability 1/2.

    Its gradient is half the occupation; it costs every path the same, so it changes no posterior.
    """
    with torch.no_grad():
        z = logits(problem)
        z = torch.cat((z, z.logsumexp(-1, keepdim=True)), -1)
    z.requires_grad_()
    rnnt_loss(z, *problem[4:], reduction="sum").backward()
    return 2 * z.grad[..., -1]


def matmul_rate(problem: Problem) -> float:
    """Multiplications and additions per second of a product like those of the joiner, the best of many."""
    weight = problem.weight.detach()
    hidden = torch.randn(4096, weight.shape[1])
    out = hidden @ weight.t()
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(hidden, weight.t(), out=out)
        times.append(time.perf_counter() - start)
    return 2 * len(hidden) * weight.numel() / min(times)


def compare(shape: str, repeats: int) -> None:
    sizes = [int(x) for x in shape.split(",")]
    problem = untrained(*sizes)
    check(problem, exact(problem))
    peer = seconds(partial(unfused, problem), problem.inputs, repeats)
    peer_memory = extra_memory(partial(unfused, problem), problem.inputs)
    time = seconds(partial(ours, problem), problem.inputs, repeats)
    memory = extra_memory(partial(ours, problem), problem.inputs)
    rate = matmul_rate(problem)
    visited = int((occupation(problem) > NEGLIGIBLE).sum())
    floor = 2 * (problem.nodes + 3 * visited) * problem.weight.numel() / rate
    print(f"\nB,T,U,V,D = {shape}, {torch.get_num_threads()} threads, products at {rate / 1e9:.0f} GFLOP/s")
    print(f"  unfused        {1e3 * peer:8.1f} ms                  extra memory {peer_memory / 1e6:7.1f} MB")
    print(
        f"  ours           {1e3 * time:8.1f} ms = {time / peer:.2f}x unfused"
        f"  extra memory {memory / 1e6:7.1f} MB = {memory / peer_memory:.3f}x unfused"
    )
    print(
        f"  floor          {1e3 * floor:8.1f} ms = {floor / time:.2f}x ours;"
        f" {visited / problem.nodes:.0%} of the nodes have an occupation",
        flush=True,
    )
    skipping(half_trained(*sizes), peer, repeats)


def skipping(problem: Problem, peer: float, repeats: int) -> None:
    expected = exact(problem)
    check(problem, expected)
    occupied = occupation(problem)
    per_label = expected[0] / float(problem.target_lengths.sum())
    print(f"  half trained, {per_label:.1f} nats per label:")
    for skip_below in (0.0, *SKIPS):
        loss = partial(ours, problem, skip_below)
        value, grads = step(loss, problem)
        assert abs(value - expected[0]) <= 1e-5 * abs(expected[0])
        time = seconds(loss, problem.inputs, repeats)
        share = (occupied > max(skip_below, NEGLIGIBLE)).double().mean()
        print(
            f"    skip_below {skip_below:<6g}{1e3 * time:8.1f} ms = {time / peer:.2f}x unfused"
            f"  {share:6.1%} of the nodes  gradient off by {error(grads, expected[1]):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    over_shapes(compare, __doc__, "B,T,U,V,D", SHAPES, repeats=5)
