"""How well an n-gram model predicts a text.

With p_i the probability of token i given those before it, the ends of sentences included, N of them in all
and C characters (spaces within, and one for the end of each sentence):

    perplexity           exp(-1/N sum_i ln p_i)
    without OOV          the same over tokens that the model knows (others stay in contexts, as `<unk>`)
    bits per character   -1/C sum_i log2 p_i

Bits per character compare models of words, pieces and letters, but not fairly where tokens are unknown:
`<unk>` is predicted without its spelling. Perplexities compare with the same tokens and vocabulary only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from asr.lms.ngram import END, NgramModel
from asr.lms.sentences import Sentence, Sentences
from asr.text.tokenizer import load_tokenizer

BATCH = 512
"""Sentences asked about at once."""


@dataclass(frozen=True)
class Prediction:
    """Sums over a text; two of them add up to that of both texts."""

    sentences: int = 0
    tokens: int = 0
    """Without ends."""
    unknown: int = 0
    ends: int = 0
    """Ends of sentences that were predicted: none where the model has no `</s>`."""
    characters: int = 0
    log_prob: float = 0.0
    """Natural logarithm of the probability of it all."""
    log_prob_known: float = 0.0
    """The same without unknown tokens."""

    def __add__(self, other: Prediction) -> Prediction:
        return Prediction(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def perplexity(self) -> float:
        """Of all tokens; infinite if one has probability 0."""
        return _exp(-self.log_prob / max(1, self.tokens + self.ends))

    @property
    def perplexity_known(self) -> float:
        """Of the tokens that the model knows."""
        return _exp(-self.log_prob_known / max(1, self.tokens - self.unknown + self.ends))

    @property
    def unknown_rate(self) -> float:
        """Share of the tokens that the model does not know."""
        return self.unknown / max(1, self.tokens)

    @property
    def bits_per_character(self) -> float:
        """Of all tokens."""
        return -self.log_prob / math.log(2) / max(1, self.characters)


@dataclass(frozen=True)
class TextPrediction:
    """A text and how well it is predicted."""

    path: Path
    prediction: Prediction
    left_out: int
    """Lines that the tokenizer cannot write."""
    first_left_out: str
    """Where the first of them is, and why."""


def text_perplexities(
    model: NgramModel, texts: Sequence[Path], *, tokens: Path | None = None, normalization: str = "basic"
) -> list[TextPrediction]:
    """Predict every text, as words, or with the directory `tokens` as its tokenizer's labels.

    Raises ConfigError, ModelError, and DataError for a text without sentences.
    """
    tokenizer = None if tokens is None else load_tokenizer(tokens)
    found = []
    for path in texts:
        sentences = Sentences([path], normalization, tokenizer)
        prediction = predict(model, sentences.at_least_one())
        found.append(TextPrediction(path, prediction, sentences.left_out, sentences.first_left_out))
    return found


def predict(model: NgramModel, sentences: Iterable[Sentence]) -> Prediction:
    """Sums over sentences, asked by the batch."""
    total = Prediction()
    for batch in _batches(sentences):
        total += _predict_batch(model, batch)
    return total


def _predict_batch(model: NgramModel, batch: Sequence[Sentence]) -> Prediction:
    ids = [[model.ids.get(token, model.unknown) for token in sentence.tokens] for sentence in batch]
    end = [model.ids[END]] if END in model.ids else []
    rows = sorted((row + end for row in ids), key=len, reverse=True)
    lengths = [len(row) for row in rows]
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], True)
    context = torch.full((len(rows),), model.begin)
    log_prob = log_prob_known = 0.0
    active = len(rows)
    for step in range(lengths[0]):
        while lengths[active - 1] <= step:  # the longest come first
            active -= 1
        words = labels[:active, step]
        edges = model.find(context[:active], words)
        scores = model.score(context[:active], edges).double()
        log_prob += float(scores.sum())
        log_prob_known += float(scores[words != model.unknown].sum())
        context = model.follow(edges)
    return Prediction(
        sentences=len(batch),
        tokens=sum(map(len, ids)),
        unknown=sum(row.count(model.unknown) for row in ids),
        ends=len(batch) * len(end),
        characters=sum(len(sentence.text) + 1 for sentence in batch),
        log_prob=log_prob,
        log_prob_known=log_prob_known,
    )


def _batches(sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    each = iter(sentences)
    while batch := list(islice(each, BATCH)):
        yield batch


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
