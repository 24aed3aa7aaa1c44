"""The processes that train together: who they are, and how they agree.

    torchrun --nproc-per-node 4 -m asr train RECIPE --data DIR --exp DIR --device cuda

starts four processes that run the same loop, each on its share of every optimiser step's batches. The main
process (rank 0) alone writes into the run's directory and prints; the others read what it wrote, so that
all need to see the same directory. What is decided from what only one of them knows (a signal, the time,
an error) is exchanged first, so that all do the same and none waits for another.

Numbers and decisions travel over gloo on the CPU, tensors over nccl where they are on GPUs. One process,
with torchrun or without, starts and imports nothing of torch.distributed: every method here then gives
back what it was given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from asr.errors import AsrError, TrainingError
from asr.model_directory import check_device

T = TypeVar("T")

RANK, LOCAL_RANK = "RANK", "LOCAL_RANK"
WORLD_SIZE, LOCAL_WORLD_SIZE = "WORLD_SIZE", "LOCAL_WORLD_SIZE"
MEETING = ("MASTER_ADDR", "MASTER_PORT")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class World:
    """One process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1
    """Processes in all."""
    restarts: int = 0
    """How often torchrun has started them again after one had died."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _in_touch() as dist:
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        return any(self.gather(flag))

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main process, on each of them; what it raises ends them all."""
        if self.size == 1:
            return make()
        answer: list[Any] = [None, True]
        try:
            if self.main:
                answer = [make(), False]
        finally:  # an error leaves the answer of a failure
            with _in_touch() as dist:
                dist.broadcast_object_list(answer, src=0)
        value, failed = answer
        if failed:
            raise SystemExit(1)  # the main process says why
        return value  # type: ignore[no-any-return]

    def main_first(self, main: Callable[[], T], others: Callable[[], T]) -> T:
        """What `main` gives on the main process and then, if it raised nothing, `others` on the others."""
        made: list[T] = []
        self.from_main(lambda: made.append(main()))
        return made[0] if self.main else others()

    def in_touch(self) -> AbstractContextManager[Any]:
        """Around what asks other processes by itself, as sharded layers do: their death becomes one line."""
        return nullcontext() if self.size == 1 else _in_touch("gloo|NCCL")

    def fail(self, error: AsrError) -> NoReturn:
        """End all processes with an error that all of them have found; the main process says it."""
        if self.main:
            raise error
        raise SystemExit(1)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` with those of the main process."""
        if self.size == 1:
            return
        with _in_touch() as dist:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to sum `tensor` over all processes, in place; call what this gives to wait for the end."""
        if self.size == 1:
            return lambda: None
        with _in_touch() as dist:
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _in_touch():
                work.wait()

        return wait


@contextmanager
def started(device: str, environment: Mapping[str, str] | None = None) -> Iterator[World]:
    """Meet the other processes that torchrun's environment speaks of, and part from them at the end.

    Raises TrainingError or ConfigError if the environment or the devices do not fit.
    """
    environment = os.environ if environment is None else environment
    world = read_world(device, environment)
    if world.size == 1:
        yield world
        return
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(world.device)
    try:
        shared, rank, size = next(rendezvous("env://"))
        # torchrun's store outlives a restart: a new attempt would find the addresses of the dead in it.
        store = PrefixStore(f"attempt-{world.restarts}", shared)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = ":".join(environment[name] for name in MEETING)
        raise TrainingError(
            f"the processes of this training did not meet at {where} ({_one_line(error)}); start all of them "
            "with one torchrun command, on several machines with the same --rdzv-endpoint"
        ) from error
    try:
        yield world
    finally:
        dist.destroy_process_group()


def read_world(device: str, environment: Mapping[str, str]) -> World:
    """This process by torchrun's environment; alone if there is none. Raises TrainingError, ConfigError."""
    restarts = int(environment.get(RESTARTS, 0))
    if environment.get(WORLD_SIZE, "1") == "1":
        return World(check_device(device), restarts=restarts)
    size, missing = environment[WORLD_SIZE], [n for n in (RANK, LOCAL_RANK, *MEETING) if n not in environment]
    numbers = (environment.get(name, "0") for name in (WORLD_SIZE, RANK, LOCAL_RANK, LOCAL_WORLD_SIZE))
    if missing or not all(number.isdigit() for number in numbers):
        found = f"no {' and no '.join(missing)}" if missing else "something other than numbers beside it"
        raise TrainingError(
            f"expected torchrun's environment behind {WORLD_SIZE}={size}, found {found}; start with "
            f"`torchrun --nproc-per-node N -m asr train ...`, or unset {WORLD_SIZE} to train with one process"
        )
    here = int(environment.get(LOCAL_WORLD_SIZE, size))
    place = _device(device, int(environment[LOCAL_RANK]), here)
    return World(place, int(environment[RANK]), int(size), restarts)


def _device(name: str, local_rank: int, processes: int) -> torch.device:
    """The device of one of the processes on this machine: each has a GPU of its own."""
    kind, _, number = name.partition(":")
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    if not gpus:
        return check_device(name)
    if number:
        raise TrainingError(
            f"expected --device cuda with {processes} processes, which share the GPUs out, found {name}"
        )
    if processes > gpus:
        raise TrainingError(
            f"expected at most as many processes as GPUs, found {processes} processes and {gpus} GPUs; "
            f"use --nproc-per-node {gpus}, or --device cpu"
        )
    return check_device(f"cuda:{local_rank}")  # and not cuda, which would cost memory on the first GPU


@contextmanager
def _in_touch(sign: str = "") -> Iterator[Any]:
    """torch.distributed; if another process has died, an error with `sign` in it, that becomes one line."""
    from torch import distributed as dist

    try:
        yield dist
    except RuntimeError as error:
        if not re.search(sign, str(error)):
            raise
        raise TrainingError(
            f"lost another process of this training ({_one_line(error)}); its own message says why, if it "
            "had the time; the checkpoints stay: go on with --resume"
        ) from error


def _one_line(error: object) -> str:
    """The first sentence of torch's message, without the places in its source."""
    text = " ".join(re.sub(r"\[/[^]]*\]", "", str(error)).split())
    return text.split(". ")[0][:160]
