"""N-gram models from text: interpolated modified Kneser-Ney.

With h a context, w the label after it, h' the context without its first label, and N the order:

    p(w | h) = (a(hw) - D(a(hw))) / sum_v a(hv)  +  g(h) p(w | h')      below the unigrams, p is 1 / |V|
    g(h)     = sum_v D(a(hv)) / sum_v a(hv)

a(x) is how often x was seen if it has N labels or begins with the start of a sentence, else how many
different labels were seen before it. D is D1, D2 or D3 for a count of 1, 2 or more, of each order its own,
from the numbers t_k of n-grams of that order with a(x) = k:

    Y = t1 / (t1 + 2 t2)        D_k = k - (k + 1) Y t_{k+1} / t_k

Sources: Chen and Goodman 1998, An Empirical Study of Smoothing Techniques (equations 25 to 27); Heafield,
Pouzyrevsky, Clark and Koehn 2013, Scalable Modified Kneser-Ney Language Model Estimation.

As in their lmplz, `<s>` is never predicted, V is all words with `</s>` and `<unk>` but without `<s>`, `<unk>`
has its share of 1 / |V|, and an n-gram that is pruned leaves its whole count to the lower order. Departures:
where the closed form gives no discount (lmplz stops), D is 0.5, 1, 1.5 (lmplz's --discount_fallback) and the
model says of which orders; words beyond `max_words` are counted as `<unk>`, which then is a word like others.

Every n-gram has a number, its rank among those of its order; that of an n-gram at a place in the text follows
from the number of the (n-1)-gram before its last label and that label. One sort of integers counts an order.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from asr.config import Config
from asr.errors import DataError
from asr.lms.backoff import BEGIN, END, UNKNOWN, Backoff, Floats, Ints, Order

SPECIAL = (UNKNOWN, BEGIN, END)
UNKNOWN_ID, BEGIN_ID, END_ID = range(3)
MAX_ORDER = 16
FALLBACK = (0.5, 1.0, 1.5)
"""D1, D2, D3 where the closed form gives none; the defaults of lmplz's --discount_fallback."""

Mask = NDArray[np.bool_]


class KneserNeyConfig(Config):
    """What is counted and what is kept."""

    order: int = Field(3, ge=1, le=MAX_ORDER)
    prune: tuple[int, ...] = ()
    """N-grams seen so often or less are left out, a number for each order; the last holds for all above."""
    max_words: int | None = Field(None, ge=1)
    """The so many most frequent words are kept, others become `<unk>`."""

    @model_validator(mode="after")
    def _thresholds_rise(self) -> KneserNeyConfig:
        if len(self.prune) > self.order:
            raise ValueError(f"expected at most {self.order} numbers in prune, found {len(self.prune)}")
        if any(b < a for a, b in itertools.pairwise(self.prune)) or min(self.prune, default=0) < 0:
            raise ValueError(f"expected numbers that do not fall in prune, found {list(self.prune)}")
        if self.prune and self.prune[0] != 0:
            raise ValueError("prune begins with 0: single words are left out by max_words")
        return self

    @property
    def thresholds(self) -> tuple[int, ...]:
        """The pruning of every order."""
        last = self.prune[-1] if self.prune else 0
        return (*self.prune, *[last] * (self.order - len(self.prune)))


@dataclass(frozen=True)
class KneserNey(Backoff):
    """A trained model; its words are `<unk>`, `<s>`, `</s>`, then the others, sorted."""

    discounts: tuple[tuple[float, ...], ...]
    """D1, D2, D3 of every order."""
    fallbacks: tuple[int, ...]
    """Orders whose counts gave no discounts, so that FALLBACK was taken."""
    sentences: int
    tokens: int
    """Labels of the text, without the ends of sentences."""
    unknown: int
    """Of these counted as `<unk>`."""


class _Text(NamedTuple):
    words: tuple[str, ...]
    labels: Ints
    """(T,) all sentences, each between `<s>` and `</s>`."""
    place: Ints
    """(T,) distance to the `<s>` of the sentence."""


class _Counts(NamedTuple):
    """The n-grams of one order, numbered."""

    context: Ints
    word: Ints
    suffix: Ints
    """Number of the n-gram without its first label, among those of the order below."""
    seen: Ints
    """How often."""
    begins: Mask
    """Does it begin with `<s>`?"""
    adjusted: Ints
    """a(x)."""


class _Smoothed(NamedTuple):
    """What comes of the counts of one order, n."""

    probability: Floats
    """p of every n-gram."""
    share: Floats
    """g of every (n-1)-gram as a context."""


def train_kneser_ney(
    sentences: Iterable[Sequence[str]], config: KneserNeyConfig, vocabulary: Iterable[str] = ()
) -> KneserNey:
    """Count and smooth: the same sentences, in any order, give the same model.

    `vocabulary` has words to know even if no sentence has them. A sentence may be empty and may hold `<unk>`.
    Raises DataError without a sentence, or if one holds `<s>` or `</s>`, an empty word or white space.
    """
    text = _number(sentences, config.max_words, vocabulary)
    counts = _adjust(list(_count(text, config.order)))
    found = [_discounts(count.adjusted) for count in counts]
    discounts = [FALLBACK if each is None else each for each in found]
    kept = [count.seen > threshold for count, threshold in zip(counts, config.thresholds, strict=True)]
    kept[0] |= True
    orders = _orders(counts, _smooth(counts, discounts, kept), kept)
    ends = int((text.labels == END_ID).sum())
    return KneserNey(
        words=text.words,
        orders=tuple(orders),
        discounts=tuple(discounts),
        fallbacks=tuple(n for n, each in enumerate(found, 1) if each is None),
        sentences=ends,
        tokens=len(text.labels) - 2 * ends,
        unknown=int((text.labels == UNKNOWN_ID).sum()),
    )


def _number(sentences: Iterable[Sequence[str]], max_words: int | None, vocabulary: Iterable[str]) -> _Text:
    """Sentences as ids, in the order of the sorted words."""
    ids = {label: index for index, label in enumerate(SPECIAL)}
    labels, ends = array("q"), array("q")
    for sentence in sentences:
        labels.append(BEGIN_ID)
        labels.extend([ids.setdefault(word, len(ids)) for word in sentence])
        labels.append(END_ID)
        ends.append(len(labels))
    if not ends:
        raise DataError("expected at least one sentence to count n-grams of, found none")
    for word in vocabulary:
        ids.setdefault(word, len(ids))
    _check_words(ids)
    flat = np.frombuffer(labels, dtype=np.int64)
    stops = np.frombuffer(ends, dtype=np.int64)
    starts = np.concatenate([[0], stops[:-1]])
    if ((flat == BEGIN_ID) | (flat == END_ID)).sum() != 2 * len(stops):
        raise DataError(
            f"expected sentences without {BEGIN} and {END}, which stand around them, found one with"
        )
    words, rank = _kept(list(ids), np.bincount(flat, minlength=len(ids)), max_words)
    place = np.arange(len(flat)) - np.repeat(starts, stops - starts)
    return _Text(words, rank[flat], place)


def _kept(names: list[str], counts: Ints, max_words: int | None) -> tuple[tuple[str, ...], Ints]:
    """The words that are kept, sorted, and the new id of every old one."""
    plain = sorted(range(len(SPECIAL), len(names)), key=names.__getitem__)
    if max_words is not None:
        often = sorted(plain, key=lambda index: -counts[index])[:max_words]  # stable: ties go by the alphabet
        plain = sorted(often, key=names.__getitem__)
    rank = np.full(len(names), UNKNOWN_ID, dtype=np.int64)
    kept = [*range(len(SPECIAL)), *plain]
    rank[kept] = np.arange(len(kept))
    return tuple(names[index] for index in kept), rank


def _check_words(words: Iterable[str]) -> None:
    for word in words:
        if word.split() != [word]:
            raise DataError(
                f"expected words without white space, as ARPA separates them by it, found {word!r}"
            )


def _count(text: _Text, order: int) -> Iterator[_Counts]:
    """The n-grams of every order that end in a word or `</s>`; of unigrams also `<s>`, seen 0 times."""
    vocab_size = len(text.words)
    events = text.labels[text.labels != BEGIN_ID]
    seen = np.bincount(events, minlength=vocab_size)
    nothing = np.zeros(vocab_size, dtype=np.int64)
    words = np.arange(vocab_size)
    yield _Counts(nothing, words, nothing, seen, words == BEGIN_ID, seen)
    number = text.labels  # of the (n-1)-gram that ends at each place
    for n in range(2, order + 1):
        ends = np.flatnonzero(text.place >= n - 1)
        keys = number[ends - 1] * vocab_size + text.labels[ends]
        unique, first, inverse, seen = _distinct(keys)
        at = ends[first]
        begins = text.place[at] == n - 1
        yield _Counts(unique // vocab_size, unique % vocab_size, number[at], seen, begins, seen)
        number = np.zeros_like(text.labels)
        number[ends] = inverse


def _distinct(keys: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Distinct keys in order; of each a place; of each place the rank of its key; of each key how often."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(in_order[1:], in_order[:-1], out=new[1:])
    starts = np.flatnonzero(new)
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.cumsum(new) - 1
    return in_order[starts], order[starts], rank, np.diff(starts, append=len(keys))


def _adjust(counts: Sequence[_Counts]) -> list[_Counts]:
    """The same with a(x): below the highest order, how many n-grams end in x, unless x begins a sentence."""

    def adjusted(own: _Counts, above: _Counts) -> Ints:
        before = np.bincount(above.suffix, minlength=len(own.word))
        return np.where(own.begins, own.seen, before)

    lower = [own._replace(adjusted=adjusted(own, above)) for own, above in itertools.pairwise(counts)]
    return [*lower, counts[-1]]


def _discounts(adjusted: Ints) -> tuple[float, ...] | None:
    """D1, D2, D3; None if the closed form gives none, or one that would leave nothing for unseen words."""
    numbers = [int((adjusted == k).sum()) for k in range(1, 5)]
    if not all(numbers[:3]):
        return None
    y = numbers[0] / (numbers[0] + 2 * numbers[1])
    found = tuple(k - (k + 1) * y * numbers[k] / numbers[k - 1] for k in (1, 2, 3))
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else None


def _smooth(
    counts: Sequence[_Counts], discounts: Sequence[Sequence[float]], kept: Sequence[Mask]
) -> list[_Smoothed]:
    """Probabilities from the unigrams up. Of n-grams that are not kept they mean nothing."""
    smoothed: list[_Smoothed] = []
    lower = np.full(1, 1 / (len(counts[0].word) - 1))  # uniform: all but <s>
    for count, discount, keep in zip(counts, discounts, kept, strict=True):
        a, contexts = count.adjusted, len(lower)
        taken = np.where(keep, np.take((0.0, *discount), np.minimum(a, 3)), a)
        total = np.bincount(count.context, weights=a, minlength=contexts)
        all_taken = np.bincount(count.context, weights=taken, minlength=contexts)
        share = np.divide(all_taken, total, out=np.ones(contexts), where=total > 0)
        lower = (a - taken) / total[count.context] + share[count.context] * lower[count.suffix]
        if not smoothed:
            lower[BEGIN_ID] = 0.0
        smoothed.append(_Smoothed(lower, share))
    return smoothed


def _orders(
    counts: Sequence[_Counts], smoothed: Sequence[_Smoothed], kept: Sequence[Mask]
) -> Iterator[Order]:
    """What is kept, numbered anew. With an n-gram its context and suffix are, for they are seen no less."""
    number = np.zeros(1, dtype=np.int64)
    for n, (count, keep) in enumerate(zip(counts, kept, strict=True)):
        probability = smoothed[n].probability[keep]
        backoff = smoothed[n + 1].share[keep] if n + 1 < len(counts) else np.ones_like(probability)
        yield Order(number[count.context[keep]], count.word[keep], probability, backoff)
        number = np.cumsum(keep) - 1
