"""Batches of features and targets from cuts, made by worker processes, resumable at any batch.

`Batches` iterates over one epoch: it plans the epoch (`asr.data.plan`), hands the plans of single batches
to workers, and yields `Batch`es in order. Everything random is seeded by the configuration's seed, the
epoch and the place in it, so that the batches do not depend on the number of workers or on where a run
was interrupted.

    batches.set_epoch(3)
    for batch in batches:      # goes on after the last batch that was handed out
        ...
    batches.state_dict()       # {"epoch": 4, "position": 0, ...}: a finished epoch moves on to the next

Of several processes that train together each has the same plan and makes the batches that are dealt to it
(`asr.data.plan.Dealing`). The position counts the batches of all of them: it means the same to any number
of processes.

    batches.deal(Dealing(rank, world_size, per_step))
    for own in batches.steps():    # a list of batches for each optimiser step; maybe an empty one at the end
        ...
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader

from asr.config import Config
from asr.data.augment import AugmentConfig, ConcatenateConfig, SpeedConfig
from asr.data.batch import Batch, BatchMaker, join_texts
from asr.data.parts import MixingConfig, Pool, Visit, as_pool, fingerprint
from asr.data.plan import (
    BatchPlan,
    EpochPlan,
    Source,
    Utterance,
    number_parts,
    plain_utterances,
    plan_batches,
    plan_utterances,
    split_in_buckets,
)
from asr.data.planned import PlannedBatches
from asr.errors import TrainingError

if TYPE_CHECKING:
    from asr.features.fbank import Fbank
    from asr.features.specaugment import SpecAugment
    from asr.text.tokenizer import Tokenizer

PREFETCH = 4
"""Batches that each worker makes ahead."""


HARMLESS = {"num_workers", "cache_mb", "start_method", "corrupt", "max_corrupt"}
"""Settings that do not change the batches that there are."""
NEWER = {"mixing", "window_shards", "curriculum_epochs"}
"""Settings that count if they are not the defaults: runs that began before there were any can go on."""


class BatchesConfig(Config):
    """How utterances are grouped into batches, and who makes them."""

    max_duration_s: float = 200.0
    """Padded seconds in a batch: utterances times the longest."""
    max_utterances: int = 512
    num_buckets: int = 20
    shuffle: bool = True
    seed: int = 0
    num_workers: int = 1
    """Worker processes of each training process, at most one per core; 0 makes batches in that itself."""
    cache_mb: float = 512.0
    """Decoded samples that a training process keeps in memory, all its workers together."""
    start_method: Literal["fork", "forkserver", "spawn"] | None = None
    """How workers start; None is fork on Linux, else spawn (which needs an importable main module)."""
    concatenate: ConcatenateConfig = ConcatenateConfig()
    mixing: MixingConfig = MixingConfig()
    """How often each of several corpora is heard."""
    window_shards: int = Field(8, ge=1)
    """Shards from which batches are made at a time."""
    curriculum_epochs: int = Field(0, ge=0)
    """In so many epochs at first, the batches of a window go from short to long utterances."""
    corrupt: Literal["skip", "stop"] = "skip"
    """What to do with a recording that cannot be read in training: leave it out and say so, or stop."""
    max_corrupt: float = Field(0.01, ge=0, le=1)
    """Share of utterances left out so above which training stops all the same."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_duration_s <= 0 or self.max_utterances < 1 or self.num_buckets < 1:
            raise ValueError("expected max_duration_s, max_utterances and num_buckets above 0")
        if self.num_workers < 0 or self.cache_mb < 0 or self.seed < 0:
            raise ValueError("expected num_workers, cache_mb and seed of at least 0")
        return self


class Batches(PlannedBatches[BatchPlan, Batch]):
    """Batches of `cuts`, epoch after epoch; see the module's text."""

    def __init__(
        self,
        cuts: Iterable[Any] | Pool,
        config: BatchesConfig,
        fbank: Fbank,
        tokenizer: Tokenizer,
        augment: AugmentConfig | None = None,
        specaugment: SpecAugment | None = None,
        *,
        views: int = 1,
        training: bool,
    ) -> None:
        """Every utterance is `views` times in its batch, each time masked by another draw.

        `training=False` ignores shuffling, concatenation, mixing, augmentation and views, starts at the
        beginning and has no utterance left out: a recording that cannot be read is an AudioError.
        """
        super().__init__(training)
        self.config = config
        self.augment = augment if augment is not None and training else AugmentConfig()
        self.pool = as_pool(cuts)
        if not len(self.pool):
            raise TrainingError("expected at least one cut to make batches of, found none")
        self._maker = BatchMaker(
            self.pool,
            fbank,
            tokenizer,
            concatenate=config.concatenate,
            augment=self.augment,
            specaugment=specaugment if training else None,
            views=views if training else 1,
            corrupt=config.corrupt if training else "stop",
            cache_bytes=int(config.cache_mb * 1e6) // max(1, worker_count(config.num_workers)),
        )
        self._fingerprint = ""
        self._loader: DataLoader[Any] | None = None

    def fingerprint(self) -> str:
        """Changes whenever the sequence of batches would: with the cuts, the settings, the augmentation."""
        if not self._fingerprint:
            newer = self.config.model_dump_json(include=NEWER, exclude_defaults=True)
            older = self.config.model_dump_json(exclude=HARMLESS | NEWER)
            settings = f"{older}{newer.strip('{}')}{self.augment.model_dump_json()}{self.training}"
            self._fingerprint = fingerprint(settings, self.pool)
        return self._fingerprint

    def buckets(self) -> list[list[Utterance]]:
        """Utterances of each bucket, from short to long, where the first epoch has the longest recording."""
        windows = self.pool.windows(self.config.window_shards, self.config.seed, epoch=0)
        longest = [self.pool.durations_s(self.pool.numbers(visits)).max(initial=0) for visits in windows]
        window, speed = int(np.argmax(longest)), self.augment.speed
        utterances = window_utterances(self.pool, windows[window], self.config, speed, 0, window)
        return split_in_buckets(utterances, self.config.num_buckets)

    def make(self, plan: BatchPlan) -> Batch:
        """A batch of this plan; raises TokenError, and AudioError if corrupt=stop."""
        return self._maker.make(plan)

    def close(self) -> None:
        """Stop the workers; iterating again starts new ones."""
        self._loader = None

    def _plan(self) -> EpochPlan[BatchPlan]:
        config, epoch = self.config, self._epoch if self.training else 0
        if self.training:
            windows = self.pool.windows(config.window_shards, config.seed, epoch)
        else:
            windows = self.pool.plain_windows(config.window_shards)
        return EpochPlan(len(windows), lambda number: self._plan_window(windows[number], number, epoch))

    def _plan_window(self, visits: list[Visit], window: int, epoch: int) -> list[BatchPlan]:
        config = self.config
        speed = self.augment.speed if self.training else None
        return plan_batches(
            window_utterances(self.pool, visits, config, speed, epoch, window),
            max_duration_s=config.max_duration_s,
            max_utterances=config.max_utterances,
            num_buckets=config.num_buckets,
            shuffle=config.shuffle and self.training,
            seed=config.seed,
            epoch=epoch,
            window=window,
            short_first=epoch < config.curriculum_epochs,
        )

    def _made(self) -> Iterator[Any]:
        workers = worker_count(self.config.num_workers)
        if workers == 0:
            return (self._maker[plan] for plan in self.remaining())
        if self._loader is None:
            self._loader = self._start(workers)
        return self._guarded(self._loader)

    def _start(self, workers: int) -> DataLoader[Any]:
        method = self.config.start_method or ("fork" if sys.platform == "linux" else "spawn")
        return DataLoader(
            self._maker,
            sampler=_Remaining(self),
            batch_size=None,
            collate_fn=_identity,
            num_workers=workers,
            prefetch_factor=PREFETCH,
            persistent_workers=True,
            multiprocessing_context=method,
            worker_init_fn=_start_worker,
            # It draws a seed whenever it starts: from the global generator that would change what training
            # draws behind a resumption. What batches draw has seeds of its own.
            generator=torch.Generator(),
        )

    def _guarded(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Iterate over the loader; a worker that dies becomes one line."""
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads. Workers take no lock that one of the parent's
            # threads could hold, and torch runs single-threaded in them.
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            iterator = iter(loader)
        while True:
            try:
                made = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                self.close()
                reason = " ".join(str(error).split())[:160]
                raise TrainingError(
                    f"a data worker died ({reason}); lower batches.cache_mb or num_workers"
                ) from error
            yield made


class _Remaining:
    """The plans that are still to be made; asked anew by every iteration of the loader."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[BatchPlan]:
        return self.batches.remaining()


def worker_count(wanted: int) -> int:
    """`wanted`, but no more than the cores this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, cores)


def window_utterances(
    pool: Pool,
    visits: Iterable[Visit],
    config: BatchesConfig,
    speed: SpeedConfig | None,
    epoch: int,
    window: int,
) -> list[Utterance]:
    """Utterances of a window of an epoch; without `speed` every recording as it is, for dev and test."""
    numbers = pool.numbers(visits)
    durations = pool.durations_s(numbers).tolist()
    named = speed is not None and config.concatenate.active
    speakers = [pool.words(n).speaker if named else "" for n in numbers.tolist()]
    sources = [Source(*each) for each in zip(durations, speakers, strict=True)]
    if speed is None:
        utterances = plain_utterances(sources)
    else:
        utterances = plan_utterances(sources, config.concatenate, speed, config.seed, epoch, window)
    return number_parts(utterances, numbers)


def training_texts(cuts: Iterable[Any] | Pool, config: BatchesConfig) -> Iterator[str]:
    """Texts to train a tokenizer on: those of the cuts and those of the first epoch's utterances, so that a
    space between concatenated words is in them.
    """
    pool = as_pool(cuts)
    yield from (pool.words(number).text for number in range(len(pool)))
    if not config.concatenate.active:
        return
    for window, visits in enumerate(pool.windows(config.window_shards, config.seed, epoch=0)):
        for u in window_utterances(pool, visits, config, SpeedConfig(), 0, window):
            if len(u.parts) > 1:
                yield join_texts(pool.words(number).text for number in u.parts)


def _identity(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C, and a signal to the whole process group, to the main process, which ends the workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
