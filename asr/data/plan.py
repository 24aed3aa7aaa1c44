"""The plan of an epoch: which recordings form which utterance, and which utterances form which batch.

A plan is a pure function of the cuts' durations and speakers, the configuration, the seed and the number
of the epoch. It is made before any audio is read, so that any batch can be made by any worker, or again
after a restart, and comes out the same.

An epoch that is too long to be planned at once is planned in windows (`asr.data.parts`), one by one: see
EpochPlan.

Bucketing: utterances are ordered by duration and cut into `num_buckets` runs of about equal total
duration; each run is shuffled; batches are filled in that order until the padded duration (number of
utterances times the longest) would pass `max_duration_s`; then the batches are shuffled. One bucket mixes
all lengths, as many as there are utterances sort them strictly. lhotse's DynamicBucketingSampler does the
same over a stream, but resumes by replaying it, and only for the same number of workers.

Curriculum (Bengio et al. 2009): in the first epochs the batches of a window go from short to long utterances
instead of being shuffled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from asr.data.augment import ConcatenateConfig, SpeedConfig, draw_speed

P = TypeVar("P")
"""The plan of a batch."""

KEPT_WINDOWS = 2
"""The one that is being heard, and the one that workers look ahead into."""
PLAN, AUDIO, FEATURES = 0, 1, 2
"""What a generator is for; part of its seed, so that the streams are independent."""


class Utterance(NamedTuple):
    """Recordings `parts` (indices of cuts) with silences around them, played at `speed`."""

    parts: tuple[int, ...]
    silences_s: tuple[float, ...]
    """Before, between and after the parts: one more than parts, or none at all."""
    speed: float
    duration_s: float
    seed: tuple[int, ...]
    """Of the numpy generator that its augmentation draws from."""


class BatchPlan(NamedTuple):
    """One batch to make."""

    utterances: tuple[Utterance, ...]
    seed: int
    """Of the torch generators of the features' dither and SpecAugment."""


class Source(NamedTuple):
    """What planning needs to know of a cut."""

    duration_s: float
    speaker: str


class Turns(NamedTuple):
    """The batches that one process makes for one optimiser step."""

    own: tuple[int, ...]
    """Numbers of its batches in the epoch's plan; none if there were too few for everyone."""
    borrowed: int | None
    """A batch of another process to go through without learning from it; see Dealing.in_step."""
    end: int
    """Number of the batch with which the next step begins."""


@dataclass(frozen=True)
class Dealing:
    """How the planned batches are dealt out, like cards, to the processes that train together.

    Every optimiser step takes the next `per_step` batches of the plan, whatever the number of processes: a
    run can go on with another number of them, and learns from the same batches in the same steps.
    """

    rank: int = 0
    """The process that this is."""
    world_size: int = 1
    """All processes."""
    per_step: int = 1
    """Batches of all processes in an optimiser step."""
    in_step: bool = False
    """Everyone goes through equally many batches: a process without one borrows the first of the step."""

    def steps(self, begin: int, end: int) -> Iterator[Turns]:
        """Batches `begin` to `end` - 1 of an epoch, in steps; the last step may be smaller."""
        for first in range(begin, end, self.per_step):
            last = min(first + self.per_step, end)
            own = tuple(range(first + self.rank, last, self.world_size))
            most = -(-(last - first) // self.world_size)
            yield Turns(own, first if self.in_step and len(own) < most else None, last)


class Packed(NamedTuple):
    """One batch, of whatever was packed."""

    rows: list[int]
    seed: int
    """As BatchPlan has it."""


class EpochPlan(Sequence[P]):
    """The batches of an epoch, planned window by window; of the plans only the last two are kept.

    To know how many there are, all windows are planned once, in the first use: some 15 s for a million
    utterances. From then on any batch is found by its number.
    """

    def __init__(self, windows: int, plan: Callable[[int], list[P]]) -> None:
        self._windows, self._plan = windows, plan
        self._kept: OrderedDict[int, list[P]] = OrderedDict()
        self._starts = np.cumsum([0, *(len(self._window(number)) for number in range(windows))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> P:  # type: ignore[override]
        """The plan of a batch."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        window = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._window(window)[number - int(self._starts[window])]

    def _window(self, number: int) -> list[P]:
        if number in self._kept:
            self._kept.move_to_end(number)
        else:
            self._kept[number] = self._plan(number)
            if len(self._kept) > KEPT_WINDOWS:
                self._kept.popitem(last=False)
        return self._kept[number]


def plan_utterances(
    sources: Sequence[Source],
    concatenate: ConcatenateConfig,
    speed: SpeedConfig,
    seed: int,
    epoch: int,
    window: int = 0,
) -> list[Utterance]:
    """Utterances of a training epoch, or of a window of it; every source is used exactly once."""
    place = _place(window)
    rng = np.random.default_rng([seed, epoch, PLAN, *place])
    groups = _groups(sources, concatenate, rng) if concatenate.active else [(i,) for i in range(len(sources))]
    utterances = []
    for number, parts in enumerate(groups):
        silences = _silences(len(parts), concatenate, rng) if concatenate.active else ()
        factor = draw_speed(speed, rng)
        duration_s = (sum(sources[i].duration_s for i in parts) + sum(silences)) / factor
        own_seed = (seed, epoch, AUDIO, number, *place[1:])
        utterances.append(Utterance(parts, silences, factor, duration_s, own_seed))
    return utterances


def plain_utterances(sources: Sequence[Source]) -> list[Utterance]:
    """Every source as it is, for development and test."""
    return [Utterance((i,), (), 1.0, s.duration_s, (0, 0, AUDIO, i)) for i, s in enumerate(sources)]


def plan_batches(
    utterances: Sequence[Utterance],
    *,
    max_duration_s: float,
    max_utterances: int,
    num_buckets: int,
    shuffle: bool,
    seed: int,
    epoch: int,
    window: int = 0,
    short_first: bool = False,
) -> list[BatchPlan]:
    """Batches of at most `max_duration_s` padded seconds; a longer utterance is a batch of its own."""
    batches = pack(
        np.array([u.duration_s for u in utterances]),
        most=max_duration_s,
        count=max_utterances,
        num_buckets=num_buckets,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        window=window,
        short_first=short_first,
    )
    return [BatchPlan(tuple(utterances[i] for i in batch.rows), batch.seed) for batch in batches]


def pack(
    sizes: np.ndarray,
    *,
    most: float,
    count: int,
    num_buckets: int,
    shuffle: bool,
    seed: int,
    epoch: int,
    window: int = 0,
    short_first: bool = False,
) -> list[Packed]:
    """Batches of what has these sizes (N,): the largest times their number is at most `most`, and their
    number at most `count`; what is larger than `most` is a batch of its own.
    """
    if not len(sizes):
        return []
    place = _place(window)
    rng = np.random.default_rng([seed, epoch, PLAN, 1, *place[1:]])
    order = np.argsort(sizes, kind="stable")
    if shuffle:
        order = _shuffle_in_buckets(order, sizes, num_buckets, rng)
    batches = _pack(order, sizes, most, count)
    if shuffle and short_first:
        batches.sort(key=lambda batch: sizes[batch].max())
    elif shuffle:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    seeds = np.random.default_rng([seed, epoch, FEATURES, *place]).integers(2**62, size=len(batches))
    return [Packed(batch, int(own)) for batch, own in zip(batches, seeds, strict=True)]


def split_in_buckets(utterances: Sequence[Utterance], num_buckets: int) -> list[list[Utterance]]:
    """Buckets of about equal total duration, from short to long; fewer if there are few utterances."""
    durations = np.array([u.duration_s for u in utterances])
    buckets = _buckets(np.argsort(durations, kind="stable"), durations, num_buckets)
    return [[utterances[i] for i in bucket] for bucket in buckets if len(bucket)]


def number_parts(utterances: Sequence[Utterance], numbers: np.ndarray) -> list[Utterance]:
    """Utterances whose parts count the sources of a window, with the numbers that these have in the pool."""
    of = numbers.tolist()
    return [u._replace(parts=tuple([of[part] for part in u.parts])) for u in utterances]


def _place(window: int) -> tuple[int, ...]:
    """What a window adds to seeds; nothing to those of the first, which may be the only one."""
    return (0, window) if window else ()


def _groups(
    sources: Sequence[Source], config: ConcatenateConfig, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    pools: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        pools.setdefault(source.speaker if config.same_speaker else "", []).append(index)
    groups = []
    for _, pool in sorted(pools.items()):
        order = rng.permutation(pool).tolist()
        while order:
            size = int(rng.integers(config.min_parts, config.max_parts + 1))
            groups.append(tuple(order[:size]))
            del order[:size]
    return groups


def _silences(parts: int, config: ConcatenateConfig, rng: np.random.Generator) -> tuple[float, ...]:
    between = rng.uniform(*config.gap_s, size=parts - 1).tolist()
    before, after = rng.uniform(*config.edge_s, size=2).tolist()
    return (before, *between, after)


def _shuffle_in_buckets(
    order: np.ndarray, durations: np.ndarray, num_buckets: int, rng: np.random.Generator
) -> np.ndarray:
    return np.concatenate([rng.permutation(bucket) for bucket in _buckets(order, durations, num_buckets)])


def _buckets(order: np.ndarray, durations: np.ndarray, num_buckets: int) -> list[np.ndarray]:
    total = np.cumsum(durations[order])
    limits = np.searchsorted(total, total[-1] * np.arange(1, num_buckets) / num_buckets)
    return np.split(order, limits)


def _pack(
    order: np.ndarray, durations: np.ndarray, max_duration_s: float, max_utterances: int
) -> list[list[int]]:
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0.0
    for index in order.tolist():
        longest = max(longest, durations[index])
        if batch and (longest * (len(batch) + 1) > max_duration_s or len(batch) == max_utterances):
            batches.append(batch)
            batch, longest = [], durations[index]
        batch.append(index)
    return [*batches, batch] if batch else batches
