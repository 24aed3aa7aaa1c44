"""Time and memory of pruned transducer training on CPU, forward and backward, beside its peers.

    python tools/bench/pruned.py                      # every shape, 2 threads
    python tools/bench/pruned.py --threads 1 --shapes 8,300,60,500,256

One step from encoder (B, T, D) and predictor (B, U+1, D) to the gradients of both and of all weights: am =
Linear(encoder) and lm = Linear(predictor), their smoothed simple loss, bounds of 5 label positions, and the
loss of the joiner Linear(tanh(encoder + predictor)) within them. The peer is the same algorithm in PyTorch
(plain_pruned.py); k2 and fast_rnnt themselves join where they are installed.

Ours within its own bounds must first agree with the peer in float64 within the same bounds (both losses and
every gradient to 1e-5; peers to 1e-3) or nothing is printed. The contestants take turns; times are medians;
memory is the peak resident size of one call above the size before it. Printed too: how much of the occupation
the bounds keep, and what the pruned loss exceeds the exact one by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import plain_pruned
import torch
from measure import clear, compiled_peers, extra_memory, k2_options, over_shapes, turns
from torch import Tensor
from torch.nn import functional

from asr_kernels import fused_pruned_rnnt_loss, fused_rnnt_loss, pruning_bounds, simple_rnnt_loss

SHAPES = "32,60,24,30,128 8,200,40,128,256 8,300,60,500,256"
S = 5
LM_SCALE = 0.25
SIMPLE_SCALE = 0.5


class Problem(NamedTuple):
    encoder: Tensor
    predictor: Tensor
    weight: Tensor
    bias: Tensor
    am_weight: Tensor
    am_bias: Tensor
    lm_weight: Tensor
    lm_bias: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return list(self[:8])

    @property
    def joiner(self) -> tuple[Tensor, ...]:
        return self[:4]

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return self.logit_lengths, self.target_lengths

    def am(self) -> Tensor:
        return functional.linear(self.encoder, self.am_weight, self.am_bias)

    def lm(self) -> Tensor:
        return functional.linear(self.predictor, self.lm_weight, self.lm_bias)

    def cast(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> Problem:
        """Fresh leaves; targets and lengths stay where they are."""
        inputs = (x.detach().to(device, dtype).requires_grad_() for x in self.inputs)
        return Problem(*inputs, self.targets, *self.lengths)


class Losses(NamedTuple):
    simple: Tensor
    pruned: Tensor
    ranges: Tensor  # (B, T, S)
    label: Tensor  # occupations by the simple loss, (B, T, U)
    blank: Tensor  # and (B, T, U+1)

    @property
    def total(self) -> Tensor:
        return SIMPLE_SCALE * self.simple + self.pruned

    @property
    def kept(self) -> float:
        """Share of the occupation within the ranges."""
        occupation = self.blank.detach() + functional.pad(self.label.detach(), (0, 1))
        return float(occupation.gather(2, self.ranges).sum() / occupation.sum())


Contestant = Callable[..., Losses]


def make(B: int, T: int, U: int, V: int, D: int) -> Problem:
    """Labels are heard at random frames: each symbol has a code, in which frames and weights speak."""
    torch.manual_seed(0)
    targets = torch.randint(1, V, (B, U))
    codes = torch.randn(V, D).sign()
    heard = torch.zeros(B, T, dtype=torch.int64)
    heard.scatter_(1, torch.rand(B, T).argsort(1)[:, :U].sort(1).values, targets)
    inputs = (
        codes[heard] + torch.randn(B, T, D),
        torch.randn(B, U + 1, D),
        *(4 * codes / D, torch.zeros(V)),
        *(4 * codes / D, torch.zeros(V)),
        *(torch.randn(V, D) / D, torch.zeros(V)),
    )
    lengths = torch.full((B,), T), torch.full((B,), U)
    return Problem(*(x.requires_grad_() for x in inputs), targets, *lengths)


def ours(problem: Problem, ranges: Tensor | None = None) -> Losses:
    """The step; `ranges` in place of its own bounds."""
    labels = problem.targets, *problem.lengths
    simple = simple_rnnt_loss(problem.am(), problem.lm(), *labels, lm_scale=LM_SCALE, reduction="sum")
    if ranges is None:
        ranges = pruning_bounds(simple.label_occupation, simple.blank_occupation, *problem.lengths, S)
    pruned = fused_pruned_rnnt_loss(
        *problem.joiner, problem.targets, ranges, *problem.lengths, reduction="sum"
    )
    return Losses(simple.loss, pruned, ranges, simple.label_occupation, simple.blank_occupation)


def plain(problem: Problem, ranges: Tensor | None = None) -> Losses:
    scores = plain_pruned.simple_scores(problem.am(), problem.lm(), problem.targets, LM_SCALE)
    simple, occupation = plain_pruned.loss_and_occupation(scores, *problem.lengths)
    if ranges is None:
        ranges = plain_pruned.pruning_bounds(occupation, *problem.lengths, S)
    within = plain_pruned.pruned_scores(*problem.joiner, problem.targets, ranges)
    pruned = plain_pruned.plain_lattice_loss(*within, *problem.lengths).sum()
    return Losses(simple, pruned, ranges, occupation.label, occupation.blank)


def compiled(library: ModuleType, problem: Problem, ranges: Tensor | None = None) -> Losses:
    """By k2 or fast_rnnt, whose interfaces are the same."""
    common = k2_options(problem.targets, *problem.lengths)
    simple, (label, blank) = library.rnnt_loss_smoothed(
        lm=problem.lm(),
        am=problem.am(),
        lm_only_scale=LM_SCALE,
        am_only_scale=0.0,
        return_grad=True,
        **common,
    )
    if ranges is None:
        ranges = library.get_rnnt_prune_ranges(
            px_grad=label, py_grad=blank, boundary=common["boundary"], s_range=S
        )
    am, lm = library.do_rnnt_pruning(am=problem.encoder, lm=problem.predictor, ranges=ranges)
    logits = functional.linear(torch.tanh(am + lm), problem.weight, problem.bias)
    pruned = library.rnnt_loss_pruned(logits=logits, ranges=ranges, **common)
    T = problem.encoder.shape[1]
    return Losses(simple, pruned, ranges, label[..., :T].transpose(1, 2), blank.transpose(1, 2))


def contestants() -> dict[str, Contestant]:
    """Whoever is installed; the first is ours."""
    peers = {name: partial(compiled, library) for name, library in compiled_peers().items()}
    return {"asr_kernels": ours, "plain PyTorch": plain, **peers}


def step(contestant: Contestant, problem: Problem, ranges: Tensor | None) -> tuple[Losses, list[Tensor]]:
    clear(problem.inputs)
    losses = contestant(problem, ranges)
    losses.total.backward()
    return losses, [x.grad for x in problem.inputs]


def check(name: str, contestant: Contestant, problem: Problem, expected: Problem) -> Losses:
    """Exit unless losses and gradients (norm) within the contestant's bounds are those of float64."""
    tolerance = 1e-5 if contestant is ours else 1e-3
    found = contestant(problem)
    losses, grads = step(contestant, problem, found.ranges)
    wanted, wanted_grads = step(plain, expected, found.ranges)
    pairs = [
        (losses.simple, wanted.simple),
        (losses.pruned, wanted.pruned),
        *zip(grads, wanted_grads, strict=True),
    ]
    errors = [float(((x.double() - y).norm() / y.norm()).detach()) for x, y in pairs]
    if not max(errors) <= tolerance:
        sys.exit(f"{name} is wrong: losses and gradients off by {' '.join(f'{x:.0e}' for x in errors)}")
    return found


def exact(problem: Problem) -> float:
    """The joiner's loss over all paths, summed."""
    with torch.no_grad():
        return float(
            fused_rnnt_loss(*problem.joiner, problem.targets, *problem.lengths, reduction="sum").double()
        )


def compare(shape: str, repeats: int) -> None:
    problem = make(*map(int, shape.split(",")))
    expected = problem.cast(torch.float64)
    entries = contestants()
    found = {name: check(name, contestant, problem, expected) for name, contestant in entries.items()}
    whole = exact(problem)
    steps = [lambda entry=entry: entry(problem).total for entry in entries.values()]
    times = turns(steps, problem.inputs, repeats)
    print(f"\nB,T,U,V,D = {shape}, S = {S}, {torch.get_num_threads()} threads")
    for name, time, one in zip(entries, times, steps, strict=True):
        memory = extra_memory(one, problem.inputs)
        kept, pruned = found[name].kept, float(found[name].pruned.detach())
        print(
            f"  {name:14}{1e3 * time:8.1f} ms  ours is {times[0] / time:.2f}x that"
            f"  extra memory {memory / 1e6:6.1f} MB"
            f"  keeps {kept:.2%}, loss {pruned / whole - 1:+.2%} of exact",
            flush=True,
        )


if __name__ == "__main__":
    over_shapes(compare, __doc__, "B,T,U,V,D", SHAPES, repeats=15)
