"""A batch, and how it is made of its plan: read, augment, extract features, encode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from asr.audio import Samples
from asr.data.augment import AugmentConfig, Augmenter, ConcatenateConfig
from asr.data.parts import Pool
from asr.data.plan import BatchPlan, Utterance
from asr.data.samples import SampleCache
from asr.errors import AsrError, AudioError
from asr.lengths import seconds_to_samples

if TYPE_CHECKING:
    from asr.features.fbank import Fbank
    from asr.features.specaugment import SpecAugment
    from asr.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """B utterances with their features and labels, each once or in views masked differently."""

    ids: tuple[str, ...]
    features: Tensor
    """(views * B, T, M) float32, zero beyond each length: all utterances, then all in their second view."""
    feature_lengths: Tensor
    """(views * B,) int64, frames."""
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
    corrupt: tuple[str, ...] = ()
    """Utterances that are left out because a recording could not be read: one line each, which names it."""

    @property
    def views(self) -> int:
        """Views of each utterance."""
        return len(self.features) // len(self.targets)

    @property
    def empty(self) -> bool:
        """Whether no utterance could be read. A second of silence with a label stands in for them."""
        return not self.ids

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names = ("features", "feature_lengths", "targets", "target_lengths")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


STAND_IN = 1
"""A label, any."""


class BatchMaker(Dataset[Any]):
    """Makes batches from plans; lives in the workers. A user's error is returned, not raised.

    An exception that crosses from a worker arrives with a traceback as its message; a returned error
    keeps its one line.
    """

    def __init__(
        self,
        pool: Pool,
        fbank: Fbank,
        tokenizer: Tokenizer,
        *,
        concatenate: ConcatenateConfig,
        augment: AugmentConfig,
        specaugment: SpecAugment | None,
        views: int,
        corrupt: Literal["skip", "stop"],
        cache_bytes: int,
    ) -> None:
        self.pool = pool
        self.concatenate = concatenate
        self.augment = augment
        self.fbank = fbank
        self.tokenizer = tokenizer
        self.specaugment, self.views = specaugment, views
        self.sample_rate = fbank.config.sample_rate
        self.corrupt = corrupt
        self.cache_bytes = cache_bytes
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
        ids, texts, labels, waves, corrupt = [], [], list[list[int]](), list[Samples](), []
        for utterance in plan.utterances:
            words = [self.pool.words(i) for i in utterance.parts]
            name, text = "+".join(w.id for w in words), join_texts(w.text for w in words)
            row, wave = self.tokenizer.encode(text, name), self._samples(utterance)
            if isinstance(wave, AudioError):
                corrupt.append(str(wave))
                continue
            ids.append(name)
            texts.append(text)
            labels.append(row)
            waves.append(wave)
        duration_s = sum(len(wave) for wave in waves) / self.sample_rate
        features, feature_lengths = self._features(waves or [self._silence()], plan.seed)
        labels = labels or [[STAND_IN]]
        return Batch(
            ids=tuple(ids),
            features=features,
            feature_lengths=feature_lengths,
            texts=tuple(texts),
            targets=_padded([torch.tensor(row, dtype=torch.int64) for row in labels]),
            target_lengths=torch.tensor([len(row) for row in labels]),
            duration_s=duration_s,
            seed=plan.seed,
            corrupt=tuple(corrupt),
        )

    def _samples(self, utterance: Utterance) -> Samples | AudioError:
        """Samples (N,) of an utterance: parts and silences joined, then augmented.

        Or the error, if a recording of it cannot be read and corrupt ones are to be skipped.
        """
        if self._cache is None or self._augmenter is None:
            self._augmenter = Augmenter.build(self.augment, self.sample_rate)
            self._cache = SampleCache(self._load, self.cache_bytes)
        try:
            parts = [self._cache[i] for i in utterance.parts]
        except AudioError as error:
            if self.corrupt == "stop":
                raise
            return error
        rng = np.random.default_rng(utterance.seed)
        joined = self._join(parts, utterance.silences_s, rng) if utterance.silences_s else parts[0]
        return self._augmenter(joined, rng, utterance.speed)

    def _load(self, number: int) -> Samples:
        return self.pool.samples(number, self.sample_rate)

    def _silence(self) -> Samples:
        return np.zeros(self.sample_rate, np.float32)

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
        if self.views > 1:
            features, feature_lengths = features.repeat(self.views, 1, 1), feature_lengths.repeat(self.views)
        if self.specaugment is not None:
            features = self.specaugment(features, feature_lengths, generator)
        return features, feature_lengths


def join_texts(texts: Iterable[str]) -> str:
    """Texts with something in them, joined by a space."""
    return " ".join(filter(None, texts))


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
