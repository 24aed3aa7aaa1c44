"""Static interpolation: one back-off model that says about what a mixture of several says.

Of every n-gram h w that one of the models lists it says what the mixture says (`asr.lms.mixture`), and its
back-off weights are such that the words behind every context have probability 1 (`asr.lms.backoff`). What no
model lists backs off, so that it is not exactly the weighted sum, but there is one model to ask instead of
several. Words that are left out are counted as `<unk>`: what they had alone, it has; n-grams with them go.

Source: Stolcke 2002, SRILM (`ngram -mix-lm -write-lm`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from asr.config import Config
from asr.errors import ConfigError
from asr.lms.arpa import read_arpa
from asr.lms.backoff import UNKNOWN, Backoff, Floats, Ints, Order, check_name, chosen, weigh, write_arpa
from asr.lms.mix_weights import Tuned, tune_weights
from asr.lms.mixture import SPECIAL, Mixture
from asr.lms.sentences import Sentences
from asr.text.lines import read_lines

Mask = NDArray[np.bool_]


class MixConfig(Config):
    """How models are mixed, and what is kept."""

    weights: tuple[float, ...] = ()
    """Of the models, in their order; they sum to 1. Without them all are equal."""
    max_words: int | None = Field(None, ge=1)
    """The so many most probable words are kept, others become `<unk>`."""

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> MixConfig:
        if self.weights and not (min(self.weights) > 0 and abs(sum(self.weights) - 1) < 0.01):
            raise ValueError(f"expected weights above 0 that sum to 1, found {list(self.weights)}")
        return self


class Mixed(NamedTuple):
    """What was mixed."""

    model: Backoff
    weights: tuple[float, ...]
    tuned: Tuned | None
    """On the text that the weights were chosen for, if there was one."""


def mix_files(
    paths: Sequence[Path],
    out: Path,
    config: MixConfig,
    *,
    tune: Path | None = None,
    vocabulary: Path | None = None,
    normalization: str = "basic",
) -> Mixed:
    """Mix ARPA files and write `out`; with a text to `tune` on, its weights are those that suit it.

    `vocabulary` is a file of the words to keep, one a line. Raises ConfigError, DataError, ManifestError,
    ModelError as the parts do; nothing is written then.
    """
    check_name(out)
    if config.weights and (tune is not None or len(config.weights) != len(paths)):
        raise ConfigError(
            f"expected a weight for each of {len(paths)} models, or a text to tune them on, found "
            f"{len(config.weights)} weights{' and a text' if tune else ''}"
        )
    allowed = None if vocabulary is None else {line.strip() for _, line in read_lines(vocabulary)}
    mixture, tuned = Mixture([read_arpa(path) for path in paths]), None
    weights = config.weights or (1 / len(paths),) * len(paths)
    if tune is not None:
        sentences = Sentences([tune], normalization).at_least_one()
        tuned = tune_weights(mixture, (sentence.tokens for sentence in sentences))
        weights = tuned.weights
    model = mix(mixture, weights, max_words=config.max_words, allowed=allowed)
    write_arpa(model, out)
    return Mixed(model, tuple(weights), tuned)


def mix(
    mixture: Mixture,
    weights: Sequence[float],
    *,
    max_words: int | None = None,
    allowed: Collection[str] | None = None,
) -> Backoff:
    """One model for a mixture with these weights (they are divided by their sum); see the module docstring.

    `<unk>`, `<s>` and `</s>` are kept whatever is `allowed`, and do not count among `max_words`.
    """
    orders = _mixed(mixture, np.array(weights) / sum(weights))
    keep = _kept(mixture.words, orders[0].probability, max_words, allowed)
    return weigh(_restricted(mixture.words, orders, keep)).model


def _mixed(mixture: Mixture, weights: Floats) -> list[Order]:
    """What the mixture says of all that its models list, by order."""
    orders = list[Order]()
    contexts = [np.zeros(1, np.int64) for _ in mixture.members]  # of each model, behind what is a level below
    for context, word in _union(mixture):
        steps = [
            member.step(before[context], word)
            for member, before in zip(mixture.members, contexts, strict=True)
        ]
        p = sum(weight * np.exp(step.log_prob) for weight, step in zip(weights, steps, strict=True))
        orders.append(Order(context, word, p, np.ones(len(word))))
        contexts = [step.context for step in steps]
    return orders


def _union(mixture: Mixture) -> Iterator[tuple[Ints, Ints]]:
    """Contexts and words of all that is listed, as in `Order`, by order."""
    words = np.arange(len(mixture.words))
    yield np.zeros_like(words), words
    numbers = [member.names for member in mixture.members]  # in the union, of each model's n-grams
    for n in range(1, mixture.order):
        longer = [i for i, member in enumerate(mixture.members) if n < len(member.orders)]
        keys = {}
        for i in longer:
            order = mixture.members[i].orders[n]
            keys[i] = numbers[i][order.context] * len(words) + mixture.members[i].names[order.word]
        union = np.unique(np.concatenate(list(keys.values())))
        for i in longer:
            numbers[i] = np.searchsorted(union, keys[i])
        context, word = np.divmod(union, len(words))
        yield context, word


def _kept(
    words: Sequence[str], probability: Floats, max_words: int | None, allowed: Collection[str] | None
) -> Mask:
    """(words,) whether to keep a word; `<unk>` goes if nothing is unknown."""
    special = np.array([word in SPECIAL for word in words])
    keep = np.ones(len(words), np.bool_)
    if allowed is not None:
        keep = special | np.array([word in allowed for word in words])
    plain = np.flatnonzero(keep & ~special)
    if max_words is not None:
        keep[plain[np.argsort(-probability[plain], kind="stable")[max_words:]]] = False
    if not (keep & ~special).any():
        raise ConfigError("expected words that are kept, found none of the models' in the vocabulary")
    unknown = words.index(UNKNOWN)
    keep[unknown] = probability[unknown] > 0 or bool(probability[~keep].any())
    return keep


def _restricted(words: Sequence[str], orders: Sequence[Order], keep: Mask) -> Backoff:
    """The n-grams of words that are kept; `<unk>` gets what the others had alone."""
    unknown = words.index(UNKNOWN)
    alone = orders[0].probability.copy()
    if keep[unknown]:
        alone[unknown] += alone[~keep].sum()
    masks, kept = [], np.ones(1, np.bool_)
    for order in orders:
        kept = kept[order.context] & keep[order.word]
        masks.append(kept)
    model = chosen(Backoff(tuple(words), (replace(orders[0], probability=alone), *orders[1:])), masks)
    number = np.cumsum(keep) - 1
    return Backoff(
        tuple(word for word, there in zip(words, keep.tolist(), strict=True) if there),
        tuple(replace(order, word=number[order.word]) for order in model.orders),
    )
