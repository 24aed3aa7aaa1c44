"""The perplexity of a neural language model on sentences; with a cache or dynamic evaluation if asked for.

    per label exp(nats / (labels + sentences))        per word exp(nats / (words + sentences))

The end of a sentence counts as a label and as a word, as SRILM and KenLM count it. Sentences are modelled one
by one; a cache and dynamic evaluation know the sentences before, in the order in which they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.errors import ConfigError, DataError
from asr.lms.cache import CacheConfig, NeuralCache
from asr.lms.dynamic import DynamicConfig, DynamicEvaluation
from asr.lms.neural import BOUNDARY, NeuralLm
from asr.text.tokenizer import Tokenizer

BATCH_LABELS = 8192
"""Labels, padding included, that are scored at once where sentences do not depend on each other."""


@dataclass(frozen=True)
class Perplexity:
    """What was measured; `+` joins two measurements."""

    nats: float
    labels: int
    """Without the ends."""
    words: int
    sentences: int

    @property
    def per_label(self) -> float:
        """Perplexity, ends included."""
        return _exp(self.nats / (self.labels + self.sentences))

    @property
    def per_word(self) -> float:
        """Perplexity, ends included: comparable between models with different labels."""
        return _exp(self.nats / (self.words + self.sentences))

    @property
    def bits_per_label(self) -> float:
        """Cross-entropy, ends included."""
        return self.nats / (self.labels + self.sentences) / math.log(2)

    def __add__(self, other: Perplexity) -> Perplexity:
        return Perplexity(
            self.nats + other.nats,
            self.labels + other.labels,
            self.words + other.words,
            self.sentences + other.sentences,
        )

    def __str__(self) -> str:
        counts = f"{self.sentences:,} sentences, {self.words:,} words, {self.labels:,} labels"
        return f"perplexity {self.per_word:.2f} per word, {self.per_label:.3f} per label ({counts})"


def neural_perplexity(
    model: NeuralLm,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    cache: CacheConfig | None = None,
    dynamic: DynamicConfig | None = None,
    mean_squares: Sequence[Tensor] | None = None,
) -> Perplexity:
    """The perplexity of `model`, in evaluation mode, on the sentences `texts`, read as they come.

    `mean_squares` are what dynamic evaluation of kind rms needs (asr.lms.dynamic). Raises TokenError naming
    the sentence, DataError if there is none, ConfigError if cache and dynamic evaluation are both asked for,
    or rms without mean squares.
    """
    if cache is not None and dynamic is not None:
        raise ConfigError("expected a cache or dynamic evaluation, found both; choose one")
    if dynamic is not None and dynamic.kind == "rms" and mean_squares is None:
        raise ConfigError("dynamic evaluation of kind rms needs the training text; give it, or choose sgd")
    device = model.bias.device
    words = sentences = labels = 0

    def encoded() -> Iterable[Tensor]:
        nonlocal words, sentences, labels
        for number, text in enumerate(texts, 1):
            ids = tokenizer.encode(text, f"sentence {number}")
            words, sentences, labels = words + len(text.split()), sentences + 1, labels + len(ids)
            yield torch.tensor(ids, dtype=torch.int64, device=device)

    if dynamic is not None:
        learner = DynamicEvaluation(model, dynamic, mean_squares)
        nats = sum(learner.score(row) for row in encoded())
    elif cache is not None:
        nats = _with_cache(NeuralCache(model, cache), encoded())
    else:
        nats = _static(model, encoded())
    if not sentences:
        raise DataError("expected at least one sentence to measure perplexity on, found none")
    return Perplexity(nats, labels, words, sentences)


@torch.no_grad()
def _static(model: NeuralLm, rows: Iterable[Tensor]) -> float:
    """In batches as they come: sentences do not depend on each other."""
    total, batch, longest = 0.0, list[Tensor](), 0
    for row in rows:
        longest = max(longest, len(row) + 1)
        if batch and longest * (len(batch) + 1) > BATCH_LABELS:
            total, batch, longest = total + _nats(model, batch), [], len(row) + 1
        batch.append(row)
    return total + _nats(model, batch) if batch else total


def _nats(model: NeuralLm, batch: list[Tensor]) -> float:
    lengths = torch.tensor([len(row) for row in batch], device=model.bias.device)
    padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=BOUNDARY)
    return float(model.losses(padded, lengths).nats.double().sum())


@torch.no_grad()
def _with_cache(scorer: NeuralCache, rows: Iterable[Tensor]) -> float:
    total, state = 0.0, scorer.initial_state(1)
    for row in rows:
        for label in row[:, None]:
            total -= float(scorer.score(state)[0, label])
            state = scorer.advance(state, label)
        total -= float(scorer.end(state))
        state = scorer.next_sentence(state)
    return total


def _exp(x: float) -> float:
    """Infinite where it would overflow."""
    return math.exp(x) if x < 700 else math.inf
