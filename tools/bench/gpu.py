"""How `tools/gpu_check` measures: contestants on a problem on a GPU, a row of its table each.

Before the time of a contestant is taken, once, its outcome and all gradients on a small problem must be those
of the definition in float64; at full size its loss and the norm of its gradients must be those of the
contestants before it. A step is forward and backward to all gradients; times are medians of CUDA events;
memory is the peak of what PyTorch allocates during a step above what it held before. What is measured, and
the floors beside the times, is in gpu_losses.py and gpu_sequences.py.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from measure import clear
from torch import Tensor, nn

Shape = tuple[int, ...]
Problem = Any
"""A NamedTuple. Its tensors that require a gradient, and its modules' parameters, are the inputs."""

Outcome = tuple[Tensor, list[Tensor]]
"""A loss and the gradients of all inputs."""

# Floors are arithmetic and traffic of an H100.
FLOPS, BANDWIDTH = 800e12, 3.0e12
# Relative errors of the loss and, by their norms, of gradients; what most are given is rounded to the dtype.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 3e-2)}


class Row(NamedTuple):
    group: str
    shape: Shape
    name: str


class Measured(NamedTuple):
    seconds: float
    memory: int | None
    """Bytes; None on a CPU."""
    loss: float
    norm: float
    """Of all gradients together."""


class Result(NamedTuple):
    seconds: float
    memory: int | None
    """Bytes; None on a CPU."""
    error: float
    """Largest relative error on the small problem."""
    floor: float | None
    note: str = ""


class Remark(NamedTuple):
    """What is known of a contestant on a problem only when it has run."""

    floor: float
    note: str


@dataclass(frozen=True)
class Contestant:
    loss: Callable[[Problem], Tensor]
    floor: Callable[[Shape], float]
    """In seconds."""
    ours: bool = False
    """Whether it is a kernel of this package, which has to be right."""
    problem: str = ""
    """Which kind of problem it gets, if its group has several."""
    note: str = ""
    """What to say beside the figures."""
    variants: Mapping[str, Callable[[Problem], Tensor]] = field(default_factory=dict)
    """Ways to set it up, of which the fastest counts; `loss` is one of them."""
    remark: Callable[[Problem, Shape], Remark] | None = None


@dataclass(frozen=True)
class Group:
    """Contestants that compute the same."""

    dimensions: str
    """Names of what a shape has."""
    contestants: Mapping[str, Contestant]
    make: Callable[[Shape, str, str], Problem]
    """The problem of a shape, of which kind, on which device."""
    check: Callable[[str, str], float]
    """Largest error of a contestant on a small problem of a device; raises ArithmeticError if it is wrong."""
    comparable: bool = True
    """Whether all of them find the same loss."""


def rows_of(groups: Mapping[str, Group], shapes: Mapping[str, Sequence[Shape]]) -> list[Row]:
    """Every contestant of the groups on their shapes, in order."""
    return [
        Row(group, shape, name)
        for group in shapes
        for shape in shapes[group]
        for name in groups[group].contestants
    ]


def half(device: str) -> torch.dtype:
    """That of the inputs of most groups."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def leaves(problem: Problem) -> list[Tensor]:
    """What has a gradient."""
    found = []
    for x in problem:
        if isinstance(x, nn.Module):
            found += list(x.parameters())
        elif isinstance(x, Tensor) and x.requires_grad:
            found.append(x)
    return found


def exact(problem: Problem) -> Problem:
    """The same numbers in float64 on the CPU."""

    def converted(x: Any) -> Any:
        if isinstance(x, nn.Module):
            return copy.deepcopy(x).cpu().double()
        if isinstance(x, Tensor) and x.is_floating_point():
            return x.detach().cpu().double().requires_grad_(x.requires_grad)
        return x

    return problem._make(converted(x) for x in problem)


def step(loss: Callable[[], Tensor], problem: Problem) -> Outcome:
    """The loss, and the gradients of `leaves`."""
    clear(leaves(problem))
    value = loss()
    value.backward()
    return value.detach(), [x.grad for x in leaves(problem)]


def compared(found: Outcome, wanted: Outcome, dtype: torch.dtype) -> float:
    """Largest error of a gradient. Raises ArithmeticError beyond the tolerance of the dtype."""
    off = float((found[0].cpu() - wanted[0]).abs() / wanted[0].abs())
    errors = [float((x.cpu() - y).norm() / y.norm()) for x, y in zip(found[1], wanted[1], strict=True)]
    if not (off <= TOLERANCE[dtype][0] and max(errors) <= TOLERANCE[dtype][1]):
        raise ArithmeticError(f"wrong: loss off by {off:.1e}, gradients by {max(errors):.1e}")
    return max(errors)


class Bench:
    """Measures rows on one device, keeping the last problem."""

    def __init__(self, groups: Mapping[str, Group], device: str, budget_s: float) -> None:
        self.groups, self.device, self.budget_s = groups, device, budget_s
        self.key: tuple[str, Shape, str] | None = None
        self.problem: Problem | None = None
        self.first: dict[tuple[str, Shape, str], tuple[str, Measured]] = {}
        self.errors: dict[tuple[str, str], float] = {}

    def run(self, row: Row) -> Result:
        """Raises ArithmeticError if the contestant is wrong, and whatever else it comes up with."""
        group = self.groups[row.group]
        contestant = group.contestants[row.name]
        error = self.errors.get((row.group, row.name))
        if error is None:
            error = self.errors[row.group, row.name] = group.check(row.name, self.device)
        key = row.group, row.shape, contestant.problem
        if key != self.key:
            self.free()
            self.problem, self.key = group.make(row.shape, contestant.problem, self.device), key
        ways = contestant.variants or {contestant.note: contestant.loss}
        found = {what: self.measured(partial(loss, self.problem)) for what, loss in ways.items()}
        note, best = min(found.items(), key=lambda item: item[1].seconds)
        self.compare(row, best)
        floor = contestant.floor(row.shape)
        if contestant.remark is not None:
            floor, note = contestant.remark(self.problem, row.shape)
        return Result(best.seconds, best.memory, error, floor if self.device == "cuda" else None, note)

    def compare(self, row: Row, found: Measured) -> None:
        """Raise ArithmeticError if the first contestant on this problem found something else."""
        name, first = self.first.setdefault(self.key, (row.name, found))
        if not self.groups[row.group].comparable:
            return
        bounds = TOLERANCE[half(self.device)]
        for what, a, b, bound in (
            ("loss", found.loss, first.loss, bounds[0]),
            ("norm of the gradients", found.norm, first.norm, bounds[1]),
        ):
            if not abs(a - b) <= bound * abs(b):
                raise ArithmeticError(f"wrong: {what} {a:.6g}, {name} found {b:.6g}")

    def free(self) -> None:
        self.problem = self.key = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def measured(self, loss: Callable[[], Tensor]) -> Measured:
        """A contestant's median time and what it found."""
        step(loss, self.problem)  # compiles
        start = time.perf_counter()
        value, grads = step(loss, self.problem)
        value, norm = float(value), float(torch.stack([x.float().norm() for x in grads]).norm())
        del grads
        repeats = max(3, min(30, int(self.budget_s / (time.perf_counter() - start))))
        clear(leaves(self.problem))
        if self.device != "cuda":
            return Measured(statistics.median(self.wall_times(loss, repeats)), None, value, norm)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, self.problem)
        memory = torch.cuda.max_memory_allocated() - before
        return Measured(statistics.median(self.event_times(loss, repeats)), memory, value, norm)

    def event_times(self, loss: Callable[[], Tensor], repeats: int) -> Iterator[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in marks:
            clear(leaves(self.problem))
            start.record()
            loss().backward()
            end.record()
        torch.cuda.synchronize()
        return (start.elapsed_time(end) / 1e3 for start, end in marks)

    def wall_times(self, loss: Callable[[], Tensor], repeats: int) -> Iterator[float]:
        for _ in range(repeats):
            clear(leaves(self.problem))
            start = time.perf_counter()
            loss().backward()
            yield time.perf_counter() - start
