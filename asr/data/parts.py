"""Where the utterances of a part of a corpus (train, dev, test) are: in a manifest's files, or in shards.

`DIR/train.jsonl.gz` is a manifest, `DIR/train.shar/` the same in shards (`asr data shard`). Both are a
`Part`: cuts by number, with as many bytes in memory as said there. A manifest's cuts are all in memory, and
their files are found by their paths; it is for corpora up to some hundred hours. Shards are for the rest.

`Pool` numbers the utterances of several parts through and says what an epoch goes through, in windows:

- each part is heard once in an epoch, or, if they are mixed, as often as makes its share of the hours: a
  part of h_i hours of H in all gets the share p_i, h_i^(1/T) or a given weight over their sum, and is heard
  r_i = p_i H / h_i times. An epoch has H hours, whatever the shares;
- r_i need not be whole: of two recordings, one may be heard in this epoch and the other in the next. Over
  epochs all recordings of a part are heard equally often, to within one. Which ones is no matter of a state
  but of the number of the epoch: recording j is in the visit number t if floor((t + 1) r + a_j) is above
  floor(t r + a_j), with a_j = j (sqrt(5) - 1) / 2 modulo 1, which spreads any stretch of j evenly;
- shards are visited in an order that is drawn for the epoch, and evenly mixed where there are several parts.
  A window is some of them in a row. Utterances are batched within a window: no more than two windows' plans
  are in memory, and no more than a window's shards are being read. Parts in manifests alone are one window.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from asr.audio import Samples
from asr.config import Config, load_config
from asr.data.manifests import cut_speaker, cut_text, read_unique_cuts
from asr.data.samples import load_samples
from asr.data.shards import CARD, SUFFIX, ShardedPart, ShardsCard, Words, file_sha256
from asr.errors import ConfigError, ManifestError

GOLDEN = (math.sqrt(5) - 1) / 2
ORDER = 2
"""What a generator is for; beside those of asr.data.plan."""


class MixingConfig(Config):
    """How often each of several corpora is heard; see the module's text."""

    temperature: float = Field(1.0, ge=1)
    """1: in proportion to their hours, each recording once an epoch; the higher, the more equal."""
    weights: tuple[float, ...] = ()
    """Shares of the corpora in the order they are given, instead of a temperature; any positive scale."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(f"expected weights above 0, found {list(self.weights)}; leave the corpus out")
        if self.weights and self.temperature != 1:
            raise ValueError("expected weights or a temperature, found both")
        return self


class Part(Protocol):
    """Cuts of a part of a corpus, by number."""

    @property
    def sharded(self) -> bool:
        """Whether cuts that are near each other should be read near each other."""

    @property
    def durations_s(self) -> npt.NDArray[np.float64]:
        """Seconds of every cut, (N,)."""

    @property
    def runs(self) -> list[range]:
        """Cuts that are stored together."""

    def __len__(self) -> int: ...

    def words(self, number: int) -> Words:
        """Id, speaker and text of a cut."""

    def samples(self, number: int, sample_rate: int) -> Samples:
        """Mono float32 samples (N,); raises AudioError naming the cut."""

    def cuts(self) -> Iterator[Any]:
        """The lhotse cuts, in order."""

    def fingerprint(self) -> Iterator[bytes]:
        """Other bytes for other cuts."""


class ManifestPart:
    """The cuts of a manifest, in memory."""

    sharded = False

    def __init__(self, cuts: Iterable[Any]) -> None:
        self._cuts = list(cuts)
        self.durations_s = np.array([cut.duration for cut in self._cuts], np.float64)

    def __len__(self) -> int:
        return len(self._cuts)

    @property
    def runs(self) -> list[range]:
        """All cuts: they are files of their own."""
        return [range(len(self._cuts))]

    def words(self, number: int) -> Words:
        """Id, speaker and text of a cut."""
        cut = self._cuts[number]
        return Words(cut.id, cut_speaker(cut), cut_text(cut))

    def samples(self, number: int, sample_rate: int) -> Samples:
        """Mono float32 samples (N,) of a cut; raises AudioError naming it."""
        return load_samples(self._cuts[number], sample_rate)

    def cuts(self) -> Iterator[Any]:
        """The lhotse cuts, in order."""
        return iter(self._cuts)

    def fingerprint(self) -> Iterator[bytes]:
        """Ids, durations and speakers."""
        for cut in self._cuts:
            yield f"{cut.id} {cut.duration:.6f} {cut_speaker(cut)}\n".encode()


def find_part(directory: Path, name: str) -> Path | None:
    """DIR/NAME.shar or DIR/NAME.jsonl.gz; None if there is neither.

    Raises ManifestError if both are there and the shards were made of another manifest.
    """
    shards, manifest = directory / f"{name}{SUFFIX}", directory / f"{name}.jsonl.gz"
    if not shards.is_dir():
        return manifest if manifest.is_file() else None
    made_of = load_config(shards / CARD, ShardsCard).manifest_sha256
    if manifest.is_file() and made_of != file_sha256(manifest):
        raise ManifestError(f"{shards}: not made of the {manifest.name} beside it; remove one of them")
    return shards


def open_part(path: Path) -> ShardedPart | ManifestPart:
    """A manifest or a directory of shards; raises ManifestError or ConfigError."""
    return ShardedPart(path) if path.suffix == SUFFIX else ManifestPart(read_unique_cuts(path))


class Visit(NamedTuple):
    """A stretch of a part that is heard once, or some of it."""

    part: int
    cuts: range
    turn: int
    """How many visits there were before, in all epochs."""
    rate: float
    """Share of its utterances that are heard in a visit."""


class Pool:
    """Utterances of several parts under one numbering; see the module's text."""

    def __init__(self, parts: Sequence[Part], mixing: MixingConfig | None = None) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.repeats = _repeats([float(part.durations_s.sum()) for part in parts], mixing or MixingConfig())

    def __len__(self) -> int:
        return int(self.starts[-1])

    def durations_s(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Seconds of utterances, (N,)."""
        durations = np.zeros(len(numbers))
        for part, start in zip(self.parts, self.starts, strict=False):
            own = (numbers >= start) & (numbers < start + len(part))
            durations[own] = part.durations_s[numbers[own] - start]
        return durations

    def words(self, number: int) -> Words:
        """Id, speaker and text of an utterance; speakers of several corpora are told apart."""
        place, part = self._find(number)
        words = self.parts[part].words(place)
        return words if len(self.parts) == 1 else words._replace(speaker=f"{part}:{words.speaker}")

    def samples(self, number: int, sample_rate: int) -> Samples:
        """Mono float32 samples (N,); raises AudioError naming the utterance."""
        place, part = self._find(number)
        return self.parts[part].samples(place, sample_rate)

    def fingerprint(self) -> Iterator[bytes]:
        """Other bytes for other utterances."""
        for part in self.parts:
            yield from part.fingerprint()

    def windows(self, size: int, seed: int, epoch: int) -> list[list[Visit]]:
        """What a training epoch goes through: windows of at most `size` shards, all in one without shards."""
        visits = self._visits(epoch)
        if not self._sharded or len(visits) <= size:
            return [visits]
        rng = np.random.default_rng([seed, epoch, 0, ORDER])
        place = np.zeros(len(visits))
        owners = np.array([visit.part for visit in visits])
        for part in range(len(self.parts)):
            own = np.flatnonzero(owners == part)
            place[own] = (rng.permutation(len(own)) + rng.random(len(own))) / max(len(own), 1)
        return _in_groups([visits[i] for i in np.argsort(place, kind="stable")], size)

    def plain_windows(self, size: int) -> list[list[Visit]]:
        """Every utterance once, in order, for development and test."""
        visits = [Visit(i, run, 0, 1.0) for i, part in enumerate(self.parts) for run in self._runs(part)]
        return _in_groups(visits, size) if self._sharded else [visits]

    def numbers(self, window: Iterable[Visit]) -> npt.NDArray[np.int64]:
        """Utterances of a window, ascending; one that is visited twice is in it twice."""
        heard = [self.starts[visit.part] + _heard(visit) for visit in window]
        return np.sort(np.concatenate(heard)) if heard else np.zeros(0, np.int64)

    @property
    def _sharded(self) -> bool:
        return any(part.sharded for part in self.parts)

    def _find(self, number: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return number - int(self.starts[part]), part

    def _visits(self, epoch: int) -> list[Visit]:
        visits = []
        for index, (part, repeat) in enumerate(zip(self.parts, self.repeats, strict=True)):
            times = max(1, math.ceil(repeat - 1e-9))
            for turn in range(epoch * times, (epoch + 1) * times):
                visits += [Visit(index, run, turn, repeat / times) for run in self._runs(part)]
        return visits

    def _runs(self, part: Part) -> list[range]:
        """Shards; beside shards a manifest is taken in pieces of their size, to be mixed in evenly."""
        if part.sharded or not self._sharded:
            return part.runs
        size = max(len(run) for other in self.parts if other.sharded for run in other.runs)
        return [range(first, min(first + size, len(part))) for first in range(0, len(part), size)]


def as_pool(cuts: Iterable[Any] | Pool) -> Pool:
    """A pool, or cuts as one."""
    return cuts if isinstance(cuts, Pool) else Pool([ManifestPart(cuts)])


def fingerprint(settings: str, pool: Pool) -> str:
    """16 digits that change with the settings or the utterances."""
    digest = hashlib.sha256(settings.encode())
    for content in pool.fingerprint():
        digest.update(content)
    return digest.hexdigest()[:16]


def _repeats(durations_s: Sequence[float], mixing: MixingConfig) -> list[float]:
    """How often each part is heard in an epoch."""
    weights = mixing.weights or [duration ** (1 / mixing.temperature) for duration in durations_s]
    if len(weights) != len(durations_s):
        raise ConfigError(
            f"batches.mixing.weights: expected a weight for each of {len(durations_s)} corpora, found "
            f"{len(weights)}"
        )
    if not mixing.weights and mixing.temperature == 1:
        return [1.0] * len(durations_s)  # exactly
    total, scale = sum(durations_s), sum(weights)
    return [w / scale * total / duration for w, duration in zip(weights, durations_s, strict=True)]


def _heard(visit: Visit) -> npt.NDArray[np.int64]:
    """Numbers within the part; see the module's text."""
    cuts = np.arange(visit.cuts.start, visit.cuts.stop)
    if visit.rate == 1:
        return cuts
    phase = cuts * GOLDEN % 1
    before, after = (np.floor((visit.turn + i) * visit.rate + phase) for i in (0, 1))
    heard: npt.NDArray[np.int64] = cuts[after > before]
    return heard


def _in_groups(visits: list[Visit], size: int) -> list[list[Visit]]:
    return [visits[first : first + size] for first in range(0, len(visits), size)]
