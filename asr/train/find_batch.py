"""How large may batches be? `asr train ... --find-batch` tries, and changes nothing.

Batches are planned by padded seconds (`batches.max_duration_s`), but what they take in memory depends on
the lengths as well: attention grows with the square of a recording's length, a lattice with the product of
frames and labels. So the buckets are tried one by one, the longest first: real recordings fill a batch, as
often as it takes, and go through a whole optimiser step (of learning rate 0). The limit is doubled until
the step needs more than the budget and then bisected; every other bucket must hold what the first allowed.

The memory measured is that of the training process: on a GPU all that the allocator reserved, on a CPU the
largest resident set (Linux keeps it, and lets a process begin anew by its own), the freed memory of earlier
tries given back before: leave a margin for what the heap keeps in a long run. Data workers with their caches,
what several processes need to exchange gradients, and the copy of the weights that training.ema averages,
come on top.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from asr.data.batch import Batch
from asr.data.batches import BatchesConfig
from asr.data.plan import BatchPlan, Utterance
from asr.errors import ConfigError, TrainingError
from asr.train.distributed import started
from asr.train.metrics import Stopwatch
from asr.train.optim import build_optimizer
from asr.train.recipe import Recipe
from asr.train.setup import RunSetup, prepare_run
from asr.train.step import train_batch

GPU_SHARE = 0.9
"""Of a GPU's memory, if no budget is given: the allocator's fragments grow in the course of a run."""
PRECISION = 1.1
"""The result is at most this factor below what fits."""
NORM_BATCHES = 3
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Trial(NamedTuple):
    """One optimiser step."""

    utterances: int
    padded_s: float
    """Seconds of the batch: utterances times the longest."""
    peak_bytes: float
    """Infinite if there was not enough memory to end it."""
    seconds: float


class Found(NamedTuple):
    """What was measured."""

    max_duration_s: float
    buckets: list[Trial]
    """A batch of each bucket at that limit, from short to long."""
    budget_bytes: int


def find_batch(
    recipe: Recipe,
    data: Sequence[Path],
    *,
    device: str,
    budget_bytes: int | None = None,
    console: Console | None = None,
) -> Found:
    """Measure, and print the setting; raises TrainingError if not even the longest recording fits."""
    console = console or Console()
    with started(device) as world:
        if world.size > 1:
            world.fail(TrainingError("--find-batch measures one process: start it without torchrun"))
        budget = _budget(world.device, budget_bytes)
        setup = prepare_run(_without_cache(recipe), data, world)
        with console.status("trying batches") as status:
            found = search(Trials(setup, world.device, status.update), setup.recipe.batches, budget)
    _show(found, console)
    return found


class Trials:
    """Optimiser steps of a run that is never begun."""

    def __init__(self, setup: RunSetup, device: torch.device, say: Callable[[str], None]) -> None:
        self.say = say
        self.batches, self.precision = setup.unmasked(), setup.recipe.training.precision
        self.device, self.network, self.tokenizer = device, setup.network, setup.tokenizer
        self.network.norm.measure(
            (batch.features, batch.feature_lengths)
            for batch in islice(self.batches, NORM_BATCHES)
            if not batch.empty
        )
        self.network.to(device).train()
        self.optimizer = build_optimizer(setup.recipe.optimizer, self.network)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def buckets(self) -> list[list[Utterance]]:
        """Utterances of each bucket, from short to long."""
        return self.batches.buckets()

    def __call__(self, bucket: Sequence[Utterance], most: int, max_duration_s: float) -> Trial:
        """Fill a batch to the limit with the longest utterances of a bucket, at least one and `most`, and go
        through a step.
        """
        longest = sorted(bucket, key=lambda utterance: -utterance.duration_s)
        count = max(1, min(most, int(max_duration_s / longest[0].duration_s)))
        self.say(f"trying {count} utterances of {longest[0].duration_s:.2f} s")
        batch = self.batches.make(BatchPlan(tuple(islice(cycle(longest), count)), seed=0))
        if batch.empty:
            raise TrainingError(f"no recording of a batch can be read, the first is {batch.corrupt[0]}")
        _begin_anew(self.device)
        begun = time.perf_counter()
        fits = self._step(batch)
        elapsed = time.perf_counter() - begun
        peak = float(_peak_bytes(self.device)) if fits else float("inf")
        return Trial(count, count * longest[0].duration_s, peak, elapsed)

    def _step(self, batch: Batch) -> bool:
        """Whether there was enough memory."""
        try:
            train_batch(
                self.network, batch, precision=self.precision, clock=Stopwatch(), tokenizer=self.tokenizer
            )
            self.optimizer.step()
        except (torch.OutOfMemoryError, MemoryError):
            return False
        except RuntimeError as error:
            if "allocate" not in str(error):  # the CPU's allocator has no error of its own
                raise
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return True


def search(trials: Trials, config: BatchesConfig, budget: int) -> Found:
    """The largest limit at which batches of all buckets stay below the budget."""
    attempts = [partial(trials, bucket, config.max_utterances) for bucket in trials.buckets()]
    limit, measured = float("inf"), list[tuple[float, Trial]]()
    for attempt in reversed(attempts):
        limit, trial = largest(attempt, limit, budget)
        measured.insert(0, (limit, trial))
    buckets = [
        trial if at == limit else attempt(limit)  # a shorter bucket has lowered it
        for attempt, (at, trial) in zip(attempts, measured, strict=True)
    ]
    return Found(limit, buckets, budget)


def largest(attempt: Callable[[float], Trial], high: float, budget: int) -> tuple[float, Trial]:
    """The largest limit up to `high` whose step stays below the budget, and that step."""
    if high < float("inf") and (trial := attempt(high)).peak_bytes <= budget:
        return high, trial
    fitting = _must_fit(attempt(0.0), budget)
    low = fitting.padded_s  # of a single utterance
    while 2 * low < high:
        trial = attempt(2 * low)
        if trial.peak_bytes > budget:
            high = 2 * low
            break
        if trial.utterances == fitting.utterances:  # as many as there may be in a batch
            return low, fitting
        low, fitting = 2 * low, trial
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        trial = attempt(middle)
        if trial.peak_bytes <= budget:
            low, fitting = middle, trial
        else:
            high = middle
    return low, fitting


def _must_fit(trial: Trial, budget: int) -> Trial:
    if trial.peak_bytes > budget:
        known = math.isfinite(trial.peak_bytes)
        needed = f"{trial.peak_bytes / 2**20:,.0f} MiB" if known else "more than there is"
        raise TrainingError(
            f"an utterance of {trial.padded_s:.1f} s alone takes {needed} of the {budget / 2**20:,.0f} MiB; "
            "leave out long recordings, make the network smaller, or raise --memory"
        )
    return trial


def _without_cache(recipe: Recipe) -> Recipe:
    """Recordings are decoded in this process here: those that workers keep are not its memory."""
    if recipe.batches.num_workers == 0:
        return recipe
    return recipe.model_copy(update={"batches": recipe.batches.model_copy(update={"cache_mb": 0.0})})


def _budget(device: torch.device, given: int | None) -> int:
    if device.type == "cuda":
        total = int(torch.cuda.get_device_properties(device).total_memory)
        return int(GPU_SHARE * total) if given is None else min(given, total)
    if given is None:
        raise ConfigError("--find-batch on a CPU needs to know how much memory it may take: add --memory GIB")
    if not CLEAR_REFS.exists():
        raise ConfigError("--find-batch measures memory on GPUs and on Linux only")
    return given


def _begin_anew(device: torch.device) -> None:
    """Forget the largest memory so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what earlier tries have freed
        if trim is not None:
            trim(0)
        CLEAR_REFS.write_text("5")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _show(found: Found, console: Console) -> None:
    table = Table("bucket", "longest", "utterances", "memory", "step", "speech per second")
    for number, trial in enumerate(found.buckets, 1):
        table.add_row(
            str(number),
            f"{trial.padded_s / trial.utterances:.2f} s",
            str(trial.utterances),
            f"{trial.peak_bytes / 2**20:,.0f} MiB",
            f"{trial.seconds:.2f} s",
            f"{trial.padded_s / max(trial.seconds, 1e-9):,.0f} s",
        )
    console.print(table)
    console.print(f"budget {found.budget_bytes / 2**20:,.0f} MiB, without data workers and their caches")
    console.print(f"--set batches.max_duration_s={int(found.max_duration_s * 10) / 10:g}", highlight=False)
