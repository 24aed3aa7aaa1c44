"""What `tools/gpu_check` measures: the losses and their peers on a GPU in bfloat16, a row of its table each.

A row is a contestant on a problem. Before its time is taken, once per contestant, its loss and all gradients
on a small problem with uneven lengths must be those of the definition in float64; at full size its loss and
the norm of its gradients must be those of the contestants before it. A step is forward and
backward, from the outputs of encoder and predictor (or from logits) to all gradients; times are medians of
CUDA events; memory is the peak of what PyTorch allocates during a step above what it held before.

Floors are arithmetic at 800 TFLOP/s and traffic at 3.0 TB/s (H100, bfloat16), by the formulas below.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import ctc
import fused
import pruned
import rnnt
import torch
from measure import clear, plain_rnnt_loss
from tiled import tiled_rnnt_loss
from torch import Tensor

from asr_kernels import fused_rnnt_loss, rnnt_loss
from asr_kernels.dispatch import choose
from asr_kernels.fused.function import joiner_scores
from asr_kernels.fused.op import SKIP_BELOW
from asr_kernels.lattice.arcs import Lattice
from asr_kernels.lattice.op import lattice_loss_and_occupation
from asr_kernels.lattice.topology import RNNT
from asr_kernels.nodes import Nodes

Shape = tuple[int, int, int, int, int]  # B, T, U, V, D
Problem = fused.Problem | pruned.Problem | rnnt.Problem | ctc.Problem

SHAPES: tuple[Shape, ...] = ((16, 400, 60, 500, 512), (32, 400, 60, 1024, 512), (16, 1000, 120, 1024, 512))
WIDE: Shape = (16, 400, 60, 4000, 512)
SMOKE: Shape = (2, 12, 4, 20, 16)
CHECKED: Shape = (3, 9, 4, 24, 16)

FLOPS, BANDWIDTH = 800e12, 3.0e12
# Relative errors of the loss and, by their norms, of gradients; the logits of most are rounded to the dtype.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 3e-2)}
TILES = (1 << 23, 1 << 25, 1 << 27)


class Row(NamedTuple):
    group: str
    shape: Shape
    name: str

    @property
    def ours(self) -> bool:
        """Whether it is a kernel of this package, which has to be right."""
        return self.name in OURS


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
    """Largest relative error of a gradient on the small problem."""
    floor: float | None
    note: str = ""


class Contestant(NamedTuple):
    loss: Callable[[Problem], Tensor]
    floor: Callable[[Shape], float]


OURS = {"fused, dense", "fused, skipping", "joiner + rnnt_loss", "pruned", "rnnt_loss", "ctc_loss"}


def rows(smoke: bool) -> list[Row]:
    """The most telling ones first."""
    shapes = (SMOKE,) if smoke else SHAPES
    table = [Row("fused", shape, name) for shape in shapes for name in FUSED]
    table += [Row("pruned", shape, name) for shape in shapes for name in PRUNED]
    table += [Row("logits", shape, name) for shape in shapes[:2] for name in LOGITS]
    table += [Row("ctc", shape, name) for shape in shapes[:2] for name in CTC]
    # The memory must not grow with V.
    return table + [Row("fused", SMOKE if smoke else WIDE, name) for name in ("fused, dense", "tiled")]


# -- Contestants -------------------------------------------------------------------------------------------


def joiner_then(loss: Callable[[rnnt.Problem], Tensor], problem: fused.Problem) -> Tensor:
    return loss(rnnt.Problem(fused.logits(problem), *problem[4:]))


def torchaudio_loss(problem: rnnt.Problem) -> Tensor:
    """In float32: it takes no bfloat16."""
    on_device = (x.to(problem.logits.device, torch.int32) for x in problem[1:])
    return rnnt.torchaudio_loss(rnnt.Problem(problem.logits.float(), *on_device))


def plain_loss(problem: rnnt.Problem) -> Tensor:
    """In float32: 1e-2 is all that bfloat16 would leave of its sums."""
    on_device = (x.to(problem.logits.device) for x in problem[1:])
    return plain_rnnt_loss(problem.logits.float(), *on_device)


def tiled(problem: fused.Problem, elements: int = TILES[1]) -> Tensor:
    return tiled_rnnt_loss(*problem, elements=elements, backend=choose(None, problem.encoder))


def torch_ctc(problem: ctc.Problem) -> Tensor:
    """In float32: it takes no bfloat16."""
    targets = problem.targets.to(problem.logits.device)
    return ctc.torch_loss(problem._replace(logits=problem.logits.float(), targets=targets))


# -- Floors, in seconds ------------------------------------------------------------------------------------


def product(nodes: int, shape: Shape) -> float:
    """Of one of the joiner's matrix products."""
    return 2 * nodes * shape[3] * shape[4] / FLOPS


def nodes(shape: Shape) -> int:
    B, T, U = shape[:3]
    return B * T * (U + 1)


def fused_floor(shape: Shape, occupied: float = 1.0) -> float:
    """One product forward; three backward, for the occupied share of the nodes."""
    return (1 + 3 * occupied) * product(nodes(shape), shape)


def unfused_floor(shape: Shape, visited: int | None = None) -> float:
    """Three products; logits and activations pass through memory six times each, two bytes an element."""
    count = nodes(shape) if visited is None else visited
    return 3 * product(count, shape) + 6 * 2 * count * (shape[3] + shape[4]) / BANDWIDTH


def pruned_floor(shape: Shape) -> float:
    """The unfused one on S nodes a frame, and the linear layer on the encoder's frames with its output."""
    B, T, _, V, _ = shape
    return unfused_floor(shape, B * T * pruned.S) + 3 * product(B * T, shape) + 6 * 2 * B * T * V / BANDWIDTH


def logits_floor(shape: Shape) -> float:
    """Read twice, and the gradient written."""
    return 3 * 2 * nodes(shape) * shape[3] / BANDWIDTH


def ctc_floor(shape: Shape) -> float:
    """Likewise."""
    return 3 * 2 * shape[0] * shape[1] * shape[3] / BANDWIDTH


FUSED = {
    "fused, dense": Contestant(fused.ours, fused_floor),
    "fused, skipping": Contestant(partial(fused.ours, skip_below=SKIP_BELOW), fused_floor),
    "tiled": Contestant(tiled, fused_floor),
    "joiner + torchaudio": Contestant(partial(joiner_then, torchaudio_loss), unfused_floor),
    "joiner + plain PyTorch": Contestant(partial(joiner_then, plain_loss), unfused_floor),
    "joiner + rnnt_loss": Contestant(partial(joiner_then, rnnt.ours), unfused_floor),
}
PRUNED = {
    "pruned": Contestant(lambda problem: pruned.ours(problem).total, pruned_floor),
    "plain PyTorch": Contestant(lambda problem: pruned.plain(problem).total, pruned_floor),
}
LOGITS = {
    "rnnt_loss": Contestant(rnnt.ours, logits_floor),
    "torchaudio": Contestant(torchaudio_loss, logits_floor),
    "plain PyTorch": Contestant(plain_loss, logits_floor),
}
CTC = {
    "ctc_loss": Contestant(ctc.ours, ctc_floor),
    "torch ctc_loss": Contestant(torch_ctc, ctc_floor),
}
GROUPS = {"fused": FUSED, "pruned": PRUNED, "logits": LOGITS, "ctc": CTC}


# -- Problems ----------------------------------------------------------------------------------------------


def make(group: str, shape: Shape, peaky: bool, device: str, dtype: torch.dtype) -> Problem:
    """Inputs in the dtype on the device; targets and lengths on the CPU."""
    B, T, U, V, _ = shape
    if group == "fused":
        problem = fused.half_trained(*shape) if peaky else fused.untrained(*shape)
        inputs = (x.detach().to(device, dtype).requires_grad_() for x in problem.inputs)
        return fused.Problem(*inputs, *problem[4:])
    if group == "pruned":
        return pruned.make(*shape).cast(dtype, device)
    torch.manual_seed(0)
    kind, size = (rnnt.Problem, (B, T, U + 1, V)) if group == "logits" else (ctc.Problem, (B, T, V))
    logits = torch.randn(size, device=device, dtype=dtype, requires_grad=True)
    return kind(logits, torch.randint(1, V, (B, U)), torch.full((B,), T), torch.full((B,), U))


def leaves(problem: Problem) -> list[Tensor]:
    return [x for x in problem if x.requires_grad]


def exact(problem: Problem) -> Problem:
    """The same numbers in float64 on the CPU."""
    return problem._make(
        x.detach().cpu().double().requires_grad_() if x.requires_grad else x for x in problem
    )


def step(loss: Callable[[], Tensor], problem: Problem) -> tuple[Tensor, list[Tensor]]:
    clear(leaves(problem))
    value = loss()
    value.backward()
    return value.detach(), [x.grad for x in leaves(problem)]


@cache
def check(group: str, name: str, device: str, dtype: torch.dtype) -> float:
    """Largest error of a gradient on the small problem. Raises ArithmeticError beyond the tolerance."""
    problem = make(group, CHECKED, False, device, dtype)
    lengths = torch.tensor([9, 7, 5]), torch.tensor([4, 3, 1])
    problem = problem._replace(logit_lengths=lengths[0], target_lengths=lengths[1])
    wide = exact(problem)
    loss = partial(GROUPS[group][name].loss, problem)
    if group == "pruned":
        # Bounds are a choice: both within those of the contestant.
        entry = pruned.ours if name == "pruned" else pruned.plain
        ranges = entry(problem).ranges
        loss, expected = (
            lambda: entry(problem, ranges).total,
            lambda: pruned.plain(wide, ranges.cpu()).total,
        )
    elif group == "ctc":
        expected = partial(ctc.torch_loss, wide)
    else:
        definition = fused_rnnt_loss if group == "fused" else rnnt_loss
        expected = partial(definition, *wide, reduction="sum", backend="reference")
    found, wanted = step(loss, problem), step(expected, wide)
    off = float((found[0].cpu() - wanted[0]).abs() / wanted[0].abs())
    errors = [float((x.cpu() - y).norm() / y.norm()) for x, y in zip(found[1], wanted[1], strict=True)]
    if not (off <= TOLERANCE[dtype][0] and max(errors) <= TOLERANCE[dtype][1]):
        raise ArithmeticError(f"wrong: loss off by {off:.1e}, gradients by {max(errors):.1e}")
    return max(errors)


# -- Measurement -------------------------------------------------------------------------------------------


class Bench:
    """Measures rows on one device, keeping the last problem."""

    def __init__(self, device: str, budget_s: float) -> None:
        self.device, self.budget_s = device, budget_s
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.key: tuple[str, Shape, bool] | None = None
        self.problem: Problem | None = None
        self.first: dict[tuple[str, Shape, bool], tuple[str, Measured]] = {}

    def run(self, row: Row) -> Result:
        contestant = GROUPS[row.group][row.name]
        error = check(row.group, row.name, self.device, self.dtype)
        key = row.group, row.shape, row.name == "fused, skipping"
        if key != self.key:
            self.free()
            self.problem, self.key = make(*key, self.device, self.dtype), key
        losses = {"": contestant.loss}
        if row.name == "tiled":
            losses = {f"tiles of {n >> 20} M logits": partial(tiled, elements=n) for n in TILES}
        found = {what: self.measured(partial(loss, self.problem)) for what, loss in losses.items()}
        note, best = min(found.items(), key=lambda item: item[1].seconds)
        self.compare(row, best)
        floor = contestant.floor(row.shape)
        if row.name == "fused, skipping":
            share = self.occupied()
            floor = fused_floor(row.shape, share)
            note = f"{share:.1%} of the nodes, gradient off by {self.skipped():.0e}"
        return Result(best.seconds, best.memory, error, floor if self.device == "cuda" else None, note)

    def compare(self, row: Row, found: Measured) -> None:
        """Raise ArithmeticError if the first contestant on this problem found something else.

        Not for the pruned ones, whose bounds differ.
        """
        name, first = self.first.setdefault(self.key, (row.name, found))
        if row.group == "pruned":
            return
        bounds = TOLERANCE[self.dtype]
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

    def occupied(self) -> float:
        """Share of the nodes that the skipping backward visits."""
        problem = self.problem
        lattice = Lattice(problem.targets, problem.logit_lengths.tolist(), problem.target_lengths.tolist())
        symbols = RNNT.symbols(problem.targets, 0, len(problem.weight)).to(self.device)[:, None]
        backend = choose(None, problem.encoder)
        band = Nodes(lattice.frames, lattice.labels, problem.predictor.shape[1])
        with torch.no_grad():
            inputs = (*problem.inputs, symbols, band, len(problem.weight), "tanh", 0.0, backend)
            total = lattice_loss_and_occupation(joiner_scores(*inputs), lattice, backend)[1].sum(-1)
        return float((total > SKIP_BELOW * total.amax((1, 2), keepdim=True)).double().mean())

    def skipped(self) -> float:
        """Error of its gradient beside the dense one, all gradients together."""
        grads = [step(partial(fused.ours, self.problem, x), self.problem)[1] for x in (SKIP_BELOW, 0.0)]
        return fused.error(*([x.double() for x in each] for each in grads))
