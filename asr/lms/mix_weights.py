r"""The weights with which a mixture of language models predicts a text best, by EM.

With r_i(t) the share of model i in word t of the text, from equal weights on:

    r_i(t) = weight_i p_i(t) / sum_j weight_j p_j(t)      weight_i = mean over t of r_i(t)

The likelihood is concave in the weights, so this finds the best there are. Words that no model knows, and
those to which all of them give probability 0, do not count.

Source: Jelinek and Mercer 1980.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from asr.errors import DataError
from asr.lms.backoff import BEGIN, END, UNKNOWN, Floats, Ints
from asr.lms.mixture import Mixture

ROUNDS = 1000
"""Of EM, at most."""
ENOUGH = 1e-6
"""EM ends when no weight changes by more."""


class Tuned(NamedTuple):
    """What suits a text."""

    weights: tuple[float, ...]
    tokens: int
    """Of the text that counted, with the ends of sentences."""
    perplexity: float
    """Of these, by the mixture itself: all models asked."""


def tune_weights(mixture: Mixture, sentences: Iterable[Sequence[str]]) -> Tuned:
    """The best weights for sentences.

    Raises DataError if there is not a word that counts.
    """
    histories = _histories(mixture, sentences)
    log_p = log_probs(mixture, histories)
    best = log_p.max(1, initial=-np.inf)
    counts = (histories[:, -1] != mixture.words.index(UNKNOWN)) & np.isfinite(best)
    log_p, best = log_p[counts], best[counts]
    if not len(log_p):
        raise DataError("expected words that one of the models knows to choose weights by, found none")
    p = np.exp(log_p - best[:, None])  # scaled for each word, which changes no share
    weights = np.full(p.shape[1], 1 / p.shape[1])
    for _ in range(ROUNDS):
        before, shares = weights, weights * p
        weights = (shares / shares.sum(1, keepdims=True)).mean(0)
        if np.abs(weights - before).max() < ENOUGH:
            break
    mean = float((np.log(p @ weights) + best).mean())
    return Tuned(tuple(weights.tolist()), len(p), float(np.exp(-mean)))


def log_probs(mixture: Mixture, histories: Ints) -> Floats:
    """(T, models): what each says of the last word of every row (T, N) behind the others; -1 is no word."""
    found = []
    for member in mixture.members:
        context = np.zeros(len(histories), np.int64)
        for words in histories.T[:-1]:
            there = words >= 0
            context[there] = member.step(context[there], words[there]).context
        found.append(member.step(context, histories[:, -1]).log_prob)
    return np.stack(found, 1)


def _histories(mixture: Mixture, sentences: Iterable[Sequence[str]]) -> Ints:
    """Every word and end of a sentence with the words before it, as many as the models look at."""
    ids = {word: index for index, word in enumerate(mixture.words)}
    unknown, before = ids[UNKNOWN], mixture.order - 1
    begin = [ids[BEGIN]] if BEGIN in ids else []
    end = [ids[END]] if END in ids else []
    rows = []
    for sentence in sentences:
        words = [*begin, *(ids.get(word, unknown) for word in sentence), *end]
        padded = [-1] * before + words
        rows += [padded[at : at + before + 1] for at in range(len(begin), len(words))]
    return np.array(rows, dtype=np.int64).reshape(-1, before + 1)
