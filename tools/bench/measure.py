"""How the benchmarks measure, and the peers that several of them have."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def over_shapes(
    compare: Callable[[str, int], None], doc: str | None, dimensions: str, shapes: str, *, repeats: int
) -> None:
    """The command line of a benchmark: `compare` for each of the shapes, `dimensions` with commas."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", default=shapes, help=f"{dimensions} separated by spaces")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for shape in arguments.shapes.split():
        compare(shape, arguments.repeats)


def seconds(loss: Callable[[], Tensor], inputs: Sequence[Tensor], repeats: int) -> float:
    """Median time, forward and backward, the allocation of the gradients of `inputs` included."""
    times = []
    for _ in range(repeats):
        clear(inputs)
        start = time.perf_counter()
        loss().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def turns(losses: Sequence[Callable[[], Tensor]], inputs: Sequence[Tensor], repeats: int) -> list[float]:
    """`seconds` of each, measured in turn, so that a disturbance hits all of them."""
    return _medians([partial(seconds, loss, inputs, 1) for loss in losses], repeats)


def in_turn(repeats: int, *contestants: Callable[[], object]) -> list[float]:
    """Median seconds of calls of each, measured in turn; two calls each warm up."""
    timings = [partial(_elapsed, contestant) for contestant in contestants]
    _medians(timings, 2)
    return _medians(timings, repeats)


def _medians(timings: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Median of what each returns, called in turn."""
    rounds = [[timing() for timing in timings] for _ in range(repeats)]
    return [statistics.median(found) for found in zip(*rounds, strict=True)]


def _elapsed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def extra_memory(loss: Callable[[], Tensor], inputs: Sequence[Tensor], repeats: int = 5) -> float:
    """Peak resident bytes of a call, forward and backward, above those before it: the median of some.

    How much of what a call has freed it can use again depends on what others have left in the heap.
    """
    return statistics.median(peak_above(lambda: loss().backward(), inputs) for _ in range(repeats))


def peak_above(call: Callable[[], object], inputs: Sequence[Tensor]) -> int:
    """Peak resident bytes of a call above those before it; the gradients of `inputs` are dropped first."""
    clear(inputs)
    gc.collect()
    # Freed memory that the allocator has kept would be reused without showing.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return resident("VmHWM") - before


def clear(inputs: Sequence[Tensor]) -> None:
    """Drop the gradients."""
    for x in inputs:
        x.grad = None


def resident(field: str) -> int:
    """Bytes: VmRSS are those now, VmHWM the peak since a 5 was written to clear_refs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def plain_rnnt_loss(logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """log_softmax, gathers and `plain_lattice_loss`, summed over the batch; everything else is autograd's."""
    log_probs = logits.log_softmax(-1)
    index = targets.long()[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    label = log_probs[:, :, :-1].gather(-1, index).squeeze(-1)
    return plain_lattice_loss(log_probs[..., 0], label, frames, labels).sum()


def plain_lattice_loss(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """Losses (B,) from log-probabilities (B, T, U+1) and (B, T, U): one logaddexp per anti-diagonal."""
    B, T, width = blank.shape
    device, dtype = blank.device, blank.dtype
    # [n, b, u] holds node (t, u) = (n - u, u); the padding below never reaches a valid node
    n, u = torch.arange(T + width - 1, device=device)[:, None], torch.arange(width, device=device)[None]
    outside = (n - u < 0) | (n - u >= T)
    t = (n - u).clamp(0, T - 1)
    blank_n = blank[:, t, u].masked_fill(outside, -1e30).transpose(0, 1)
    label_n = label[:, t[:, :-1], u[:, :-1]].masked_fill(outside[:, :-1], -1e30).transpose(0, 1)
    start = torch.full((B, width), -1e30, dtype=dtype, device=device)
    start[:, 0] = 0.0
    alphas = [start]
    none = torch.full((B, 1), -1e30, dtype=dtype, device=device)
    for step in range(T + width - 2):
        by_label = torch.cat((none, alphas[-1][:, :-1] + label_n[step]), dim=1)
        alphas.append(torch.logaddexp(alphas[-1] + blank_n[step], by_label))
    each = torch.arange(B, device=device)
    last, end = (x.to(device, torch.int64) for x in (frames + labels - 1, labels))
    alpha = torch.stack(alphas)
    return -(alpha[last, each, end] + blank_n[last, each, end])


def compiled_peers() -> dict[str, ModuleType]:
    """The compiled transducer losses with k2's interface that are installed."""
    names = [name for name in ("k2", "fast_rnnt") if importlib.util.find_spec(name)]
    return {name: importlib.import_module(name) for name in names}


def k2_options(targets: Tensor, frames: Tensor, labels: Tensor) -> dict[str, object]:
    """Arguments that all of k2's transducer losses take; blank is 0."""
    boundary = torch.zeros(len(targets), 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = labels, frames
    boundary = boundary.to(targets.device)
    return {"symbols": targets.long(), "termination_symbol": 0, "boundary": boundary, "reduction": "sum"}
