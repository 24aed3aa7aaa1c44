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

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asr.audio import Samples
from asr.config import Config
from asr.data.augment import AugmentConfig, Augmenter, ConcatenateConfig, SpeedConfig
from asr.data.manifests import cut_speaker, cut_text
from asr.data.plan import (
    BatchPlan,
    Dealing,
    Source,
    Turns,
    Utterance,
    plain_utterances,
    plan_batches,
    plan_utterances,
)
from asr.data.samples import SampleCache
from asr.errors import AsrError, TrainingError
from asr.lengths import seconds_to_samples

if TYPE_CHECKING:
    from asr.features.fbank import Fbank
    from asr.features.specaugment import SpecAugment
    from asr.text.tokenizer import Tokenizer

PREFETCH = 4
"""Batches that each worker makes ahead."""


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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_duration_s <= 0 or self.max_utterances < 1 or self.num_buckets < 1:
            raise ValueError("expected max_duration_s, max_utterances and num_buckets above 0")
        if self.num_workers < 0 or self.cache_mb < 0 or self.seed < 0:
            raise ValueError("expected num_workers, cache_mb and seed of at least 0")
        return self


@dataclass(frozen=True)
class Batch:
    """B utterances with their features and labels."""

    ids: tuple[str, ...]
    features: Tensor
    """(B, T, M) float32, zero beyond each length."""
    feature_lengths: Tensor
    """(B,) int64, frames."""
    texts: tuple[str, ...]
    targets: Tensor
    """(B, U) int64 token ids, padded with 0 (blank)."""
    target_lengths: Tensor
    """(B,) int64."""
    duration_s: float
    """Seconds of audio in all utterances, without padding."""
    seed: int = 0
    """Of what is drawn while the network goes through it: where and when it is trained on does not matter."""
    borrowed: bool = False
    """Another process learns from it; see Dealing.in_step."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names = ("features", "feature_lengths", "targets", "target_lengths")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class Batches:
    """Batches of `cuts`, epoch after epoch; see the module's text."""

    def __init__(
        self,
        cuts: Iterable[Any],
        config: BatchesConfig,
        fbank: Fbank,
        tokenizer: Tokenizer,
        augment: AugmentConfig | None = None,
        specaugment: SpecAugment | None = None,
        *,
        training: bool,
    ) -> None:
        """`training=False` ignores shuffling, concatenation and augmentation, and starts at the beginning."""
        self.config = config
        self.training = training
        self.augment = augment if augment is not None and training else AugmentConfig()
        self.cuts = list(cuts)
        if not self.cuts:
            raise TrainingError("expected at least one cut to make batches of, found none")
        self.sources = [Source(cut.duration, cut_speaker(cut)) for cut in self.cuts]
        specaugment = specaugment if training else None
        self._maker = BatchMaker(self.cuts, config, self.augment, fbank, tokenizer, specaugment)
        self._epoch = 0
        self._position = 0
        self._dealing = Dealing()
        self._fingerprint = ""
        self._planned: tuple[int, list[BatchPlan]] | None = None
        self._loader: DataLoader[Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch. Raises TokenError or AudioError naming the utterance."""
        for own in self.steps():
            yield from own

    def steps(self) -> Iterator[list[Batch]]:
        """The rest of the epoch, for each optimiser step the batches that are dealt to this process.

        Raises TokenError or AudioError naming the utterance.
        """
        if not self.training:
            self._position = 0
        made = self._made()
        for turns in self._turns():
            own = [_checked(next(made)) for _ in turns.own]
            if turns.borrowed is not None:
                own.append(replace(_checked(next(made)), borrowed=True))
            self._position = turns.end
            yield own
        self._epoch, self._position = self._epoch + 1, 0

    def deal(self, dealing: Dealing) -> None:
        """Share the batches with other processes, from the next iteration on."""
        self._dealing = dealing

    def __len__(self) -> int:
        """Batches in the whole of this epoch, of all processes."""
        return len(self.plans())

    @property
    def epoch(self) -> int:
        """The epoch that iteration goes on with."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; in the epoch under way nothing changes."""
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where iteration stands; batches that were handed out count as done."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; raises TrainingError if the data or settings are others."""
        if state["fingerprint"] != self.fingerprint():
            raise TrainingError(
                "expected the training data and batch settings of the checkpoint, found others; "
                "restore them or start a new experiment directory"
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def fingerprint(self) -> str:
        """Changes whenever the sequence of batches would: with the cuts, the settings, the augmentation."""
        if self._fingerprint:
            return self._fingerprint
        settings = self.config.model_dump_json(exclude={"num_workers", "cache_mb", "start_method"})
        digest = hashlib.sha256(f"{settings}{self.augment.model_dump_json()}{self.training}".encode())
        for cut, source in zip(self.cuts, self.sources, strict=True):
            digest.update(f"{cut.id} {source.duration_s:.6f} {source.speaker}\n".encode())
        self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def plans(self) -> list[BatchPlan]:
        """The batches of this epoch, as plans."""
        if self._planned is None or self._planned[0] != self._epoch:
            self._planned = (self._epoch, self._plan())
        return self._planned[1]

    def close(self) -> None:
        """Stop the workers; iterating again starts new ones."""
        self._loader = None

    def _plan(self) -> list[BatchPlan]:
        config, epoch = self.config, self._epoch if self.training else 0
        if self.training:
            speed = self.augment.speed
            utterances = plan_utterances(self.sources, config.concatenate, speed, config.seed, epoch)
        else:
            utterances = plain_utterances(self.sources)
        return plan_batches(
            utterances,
            max_duration_s=config.max_duration_s,
            max_utterances=config.max_utterances,
            num_buckets=config.num_buckets,
            shuffle=config.shuffle and self.training,
            seed=config.seed,
            epoch=epoch,
        )

    def remaining(self) -> list[BatchPlan]:
        """The batches that this process is still to make in this epoch."""
        plans, numbers = self.plans(), list[int]()
        for turns in self._turns():
            numbers += turns.own if turns.borrowed is None else (*turns.own, turns.borrowed)
        return [plans[number] for number in numbers]

    def _turns(self) -> Iterator[Turns]:
        return self._dealing.steps(self._position, len(self.plans()))

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


class BatchMaker(Dataset[Any]):
    """Makes batches from plans; lives in the workers. A user's error is returned, not raised.

    An exception that crosses from a worker arrives with a traceback as its message; a returned error
    keeps its one line.
    """

    def __init__(
        self,
        cuts: list[Any],
        config: BatchesConfig,
        augment: AugmentConfig,
        fbank: Fbank,
        tokenizer: Tokenizer,
        specaugment: SpecAugment | None,
    ) -> None:
        self.cuts = cuts
        self.concatenate = config.concatenate
        self.augment = augment
        self.fbank = fbank
        self.tokenizer = tokenizer
        self.specaugment = specaugment
        self.sample_rate = fbank.config.sample_rate
        self.cache_bytes = int(config.cache_mb * 1e6) // max(1, worker_count(config.num_workers))
        self._cache: SampleCache | None = None
        self._augmenter: Augmenter | None = None

    def __getitem__(self, plan: BatchPlan) -> Batch | AsrError:
        """Read, augment, extract features, encode."""
        try:
            return self.make(plan)
        except AsrError as error:
            return error

    def make(self, plan: BatchPlan) -> Batch:
        """The batch of a plan; raises AudioError or TokenError naming the utterance."""
        ids = tuple("+".join(self.cuts[i].id for i in u.parts) for u in plan.utterances)
        texts = tuple(join_texts(cut_text(self.cuts[i]) for i in u.parts) for u in plan.utterances)
        labels = [self.tokenizer.encode(text, utterance) for text, utterance in zip(texts, ids, strict=True)]
        waves = [self.samples(utterance) for utterance in plan.utterances]
        features, feature_lengths = self._features(waves, plan.seed)
        return Batch(
            ids=ids,
            features=features,
            feature_lengths=feature_lengths,
            texts=texts,
            targets=_padded([torch.tensor(row, dtype=torch.int64) for row in labels]),
            target_lengths=torch.tensor([len(row) for row in labels]),
            duration_s=sum(len(wave) for wave in waves) / self.sample_rate,
            seed=plan.seed,
        )

    def samples(self, utterance: Utterance) -> Samples:
        """Samples (N,) of an utterance: parts and silences joined, then augmented."""
        if self._cache is None or self._augmenter is None:
            self._cache = SampleCache(self.cuts, self.sample_rate, self.cache_bytes)
            self._augmenter = Augmenter.build(self.augment, self.sample_rate)
        rng = np.random.default_rng(utterance.seed)
        parts = [self._cache[i] for i in utterance.parts]
        joined = self._join(parts, utterance.silences_s, rng) if utterance.silences_s else parts[0]
        return self._augmenter(joined, rng, utterance.speed)

    def _join(self, parts: list[Samples], silences_s: tuple[float, ...], rng: np.random.Generator) -> Samples:
        gaps = [seconds_to_samples(silence, self.sample_rate) for silence in silences_s]
        level = 10 ** (rng.uniform(*self.concatenate.level_db) / 20)
        noise = rng.standard_normal(sum(gaps), dtype=np.float32) * np.float32(level)
        silences = np.split(noise, np.cumsum(gaps)[:-1])
        spread = self.concatenate.part_gain_db
        joined = [silences[0]]
        for part, silence in zip(parts, silences[1:], strict=True):
            gain = np.float32(10 ** (rng.uniform(-spread, spread) / 20))
            joined += [part * gain, silence]
        return np.concatenate(joined)

    @torch.no_grad()
    def _features(self, waves: list[Samples], seed: int) -> tuple[Tensor, Tensor]:
        rows = [torch.from_numpy(np.array(wave)) for wave in waves]
        lengths = torch.tensor([len(row) for row in rows])
        generator = torch.Generator().manual_seed(seed)
        features, feature_lengths, _ = self.fbank(_padded(rows), lengths, None, generator)
        if self.specaugment is not None:
            features = self.specaugment(features, feature_lengths, generator)
        return features, feature_lengths


class _Remaining:
    """The plans that are still to be made; asked anew by every iteration of the loader."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.batches.remaining())

    def __len__(self) -> int:
        return len(self.batches.remaining())


def worker_count(wanted: int) -> int:
    """`wanted`, but no more than the cores this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, cores)


def training_texts(cuts: Iterable[Any], config: BatchesConfig) -> list[str]:
    """Texts to train a tokenizer on: those of the first epoch's utterances, so that a space between
    concatenated words is in it, and those of the cuts themselves.
    """
    cuts = list(cuts)
    texts = [cut_text(cut) for cut in cuts]
    sources = [Source(cut.duration, cut_speaker(cut)) for cut in cuts]
    utterances = plan_utterances(sources, config.concatenate, SpeedConfig(), config.seed, epoch=0)
    return texts + [join_texts([texts[i] for i in u.parts]) for u in utterances if len(u.parts) > 1]


def join_texts(texts: Iterable[str]) -> str:
    """Texts with something in them, joined by a space."""
    return " ".join(filter(None, texts))


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _checked(made: Any) -> Batch:
    """A worker's batch; raises the error that it found."""
    if isinstance(made, AsrError):
        raise made
    assert isinstance(made, Batch)
    return made


def _identity(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C, and a signal to the whole process group, to the main process, which ends the workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
