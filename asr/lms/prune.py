r"""Entropy pruning: n-grams go that a back-off model hardly misses.

Without an n-gram h w, w backs off behind h and the weight of h becomes another, weight'(h), so that the model
is off from what it was by the relative entropy

    D(hw) = -p(h) { p(w|h) [log p(w|h') + log weight'(h) - log p(w|h)]
                    + (1 - sum_v p(v|h)) [log weight'(h) - log weight(h)] }
    weight'(h) = (1 - sum_v p(v|h) + p(w|h)) / (1 - sum_v p(v|h') + p(w|h'))

with sums over the words v listed behind h, and p(h) the probability of its words one after the other, as the
model has it. All n-grams are judged by the model as it was; one that is the beginning of a longer one that is
kept is kept; single words always are. The weights of what is left are computed anew (`asr.lms.backoff`).

A threshold is the relative rise in perplexity that dropping an n-gram alone may cost: it goes if exp(D) - 1
is less. Or the best so many n-grams are kept. Both keep what has D of at least some number, be it its own D
or that of an n-gram that begins with it.

Source: Stolcke 1998, Entropy-based pruning of backoff language models, as SRILM's `ngram -prune` has it:
there, too, `<s>` is as probable in p(h) as `</s>`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from asr.config import Config
from asr.errors import ConfigError
from asr.lms.arpa import read_arpa
from asr.lms.backoff import (
    BEGIN,
    END,
    LEAST,
    Backoff,
    Floats,
    Order,
    Weighed,
    check_name,
    chosen,
    weigh,
    whole,
    write_arpa,
)

TINY = 1e-300
"""Instead of a probability of 0, so that it has a logarithm."""

Mask = NDArray[np.bool_]


class PruneConfig(Config):
    """What is kept: one of both."""

    threshold: float | None = Field(None, ge=0)
    """N-grams without which perplexity alone rises by a smaller share go; 1e-8 is usual."""
    max_ngrams: int | None = Field(None, ge=1)
    """So many are kept at most, of all orders, the single words among them."""

    @model_validator(mode="after")
    def _one_of_both(self) -> PruneConfig:
        if (self.threshold is None) == (self.max_ngrams is None):
            raise ValueError("expected either a threshold or max_ngrams")
        return self


def prune_file(path: Path, out: Path, config: PruneConfig) -> Backoff:
    """Prune an ARPA file and write `out`.

    Raises ConfigError if `max_ngrams` is less than the words, or `out` has another name than an ARPA file;
    ModelError as `read_arpa`; nothing is written then.
    """
    check_name(out)
    arpa = read_arpa(path)
    model = prune(whole(arpa, arpa.words), config)
    write_arpa(model, out)
    return model


def prune(weighed: Weighed, config: PruneConfig) -> Backoff:
    """What is left of a model."""
    sizes = [len(order.word) for order in weighed.model.orders]
    worth = np.concatenate(_worth(weighed))
    if config.threshold is not None:
        keep = worth >= np.log1p(config.threshold)
        keep[: sizes[0]] = True
    else:
        keep = _best(worth, sizes[0], config.max_ngrams or 0)
    return weigh(chosen(weighed.model, np.split(keep, np.cumsum(sizes)[:-1]))).model


def divergences(weighed: Weighed) -> list[Floats]:
    """D of every n-gram, in nats, by order; 0 for single words."""
    model, found = weighed.model, [np.zeros(len(weighed.model.words))]
    seen = _alone(model)
    for order, lower in zip(model.orders[1:], weighed.lower[1:], strict=True):
        p, history = order.probability, seen[order.context]
        left = _left(order, p, len(seen))[order.context]
        left_lower = _left(order, lower, len(seen))[order.context]
        weight = _log_ratio(left, left_lower)
        without = _log_ratio(left + p, left_lower + lower)
        change = np.where(p > 0, np.log(np.maximum(lower, TINY)) + without - np.log(np.maximum(p, TINY)), 0)
        found.append(-history * (p * change + np.maximum(left, 0) * (without - weight)))
        seen = history * p
    return found


def _worth(weighed: Weighed) -> list[Floats]:
    """D of every n-gram, or of what begins with it, whichever is most."""
    found = divergences(weighed)
    for n in range(len(found) - 1, 0, -1):
        np.maximum.at(found[n - 1], weighed.model.orders[n].context, found[n])
    return found


def _best(worth: Floats, words: int, count: int) -> Mask:
    """The most worthy, single words before all; of equals the shorter, so that contexts are there."""
    if count < words:
        raise ConfigError(f"max_ngrams: expected at least {words}, as single words are kept, found {count}")
    keep = np.arange(len(worth)) < words
    keep[words + np.argsort(-worth[words:], kind="stable")[: count - words]] = True
    return keep


def _alone(model: Backoff) -> Floats:
    """(words,) probabilities for p(h)."""
    p = model.orders[0].probability.copy()
    if BEGIN in model.words and END in model.words:
        p[model.words.index(BEGIN)] = p[model.words.index(END)]
    return p


def _left(order: Order, probability: Floats, contexts: int) -> Floats:
    """(contexts,) what the listed words leave of 1."""
    return np.subtract(1.0, np.bincount(order.context, probability, contexts), dtype=np.float64)


def _log_ratio(left: Floats, left_lower: Floats) -> Floats:
    return np.log(np.maximum(left, LEAST)) - np.log(np.maximum(left_lower, LEAST))
