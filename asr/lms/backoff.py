r"""Back-off models as tables of n-grams, to be changed and written, and the weights that make them whole.

What is listed may be chosen, and the probabilities p(w | h) of what is listed; the weights then follow from
that all words behind a context h have probability 1 together. With h' the context without its first word:

    weight(h) = (1 - sum_w p(w | h)) / (1 - sum_w p(w | h'))        both over the words w listed behind h

from short contexts to long ones, as p(w | h') may have been backed off itself. Where nothing is left (by no
more than rounding) 1e-12 is. Where the listed words have more than 1, as in files whose numbers are rounded,
or where they are all the words there are, their probabilities are divided by their sum, as those of single
words always are.

Source: Katz 1987; Stolcke 1998, Entropy-based pruning of backoff language models (equation 2).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.config import replacing
from asr.errors import ConfigError
from asr.lms.arpa import Arpa
from asr.lms.trie import Trie, build_trie, find_edges

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
NEVER_LOG10 = -99.0
"""How ARPA writes a probability of zero: that of `<s>`."""
LEAST = 1e-12
"""What is left for words that are not listed, at least."""
ALL_LISTED = 1e-9
"""Of a context whose words would have but so little less than 1 without it, all words are listed."""
LINES_AT_ONCE = 1 << 16

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """The n-grams of one order, those of one context together, contexts in the order of their numbers."""

    context: Ints
    """(K,) number of the first n-1 labels among those n-grams; 0 for unigrams."""
    word: Ints
    """(K,) last label, ascending within a context. Unigrams are all words, in their order."""
    probability: Floats
    """(K,) p(word | context)."""
    backoff: Floats
    """(K,) weight of the n-gram as a context; 1 where it is none."""


@dataclass(frozen=True)
class Backoff:
    """A back-off model."""

    words: tuple[str, ...]
    """Label of every id."""
    orders: tuple[Order, ...]
    """Unigrams first, of all words; of these `<s>` has probability 0."""


class Weighed(NamedTuple):
    """A model whose weights make it whole."""

    model: Backoff
    lower: tuple[Floats, ...]
    """Of every n-gram p(w | h'), what it would be without its first word; 0 for unigrams."""
    trie: Trie
    """The same model, to ask it; see `asr.lms.ngram`."""


def orders_of(trie: Trie, words: int) -> tuple[Order, ...]:
    """The tables of a trie over so many words; contexts that its file did not list are in them."""
    parent, word = np.divmod(trie.keys, words)
    log_p = trie.scores + trie.chain[parent]
    weight = np.ones(len(trie.keys))
    weight[: len(trie.suffix) - 1] = np.exp(trie.chain - trie.chain[trie.suffix])[1:]
    found, first, start, stop = [], 0, 0, words
    while start < len(trie.keys):
        part = slice(start, stop)
        found.append(Order(parent[part] - first, word[part], np.exp(log_p[part]), weight[part]))
        # The nodes of these edges are start + 1 to stop, and what leaves them is the next order.
        first, start, stop = start + 1, stop, int(np.searchsorted(trie.keys, (stop + 1) * words))
    return tuple(found)


def whole(arpa: Arpa, words: tuple[str, ...]) -> Weighed:
    """What a file holds, with weights anew; `words` are its own and others, of probability 0."""
    return weigh(Backoff(words, orders_of(build_trie(arpa, len(words)), len(words))))


def weigh(model: Backoff) -> Weighed:
    """The model with the weights that make it whole, whatever they were; see the module docstring."""
    size, orders = len(model.words), list(model.orders)
    sizes = [len(order.word) for order in orders]
    contexts = 1 + sum(sizes[:-1])
    suffix, chain = np.zeros(contexts, np.int64), np.zeros(contexts)
    orders[0] = replace(orders[0], probability=orders[0].probability / orders[0].probability.sum())
    keys, scores, lower = np.arange(size), _log(orders[0].probability), [np.zeros(size)]
    edge = np.full(size, -1)
    for n, order in enumerate(orders[1:], 1):
        stop = len(keys)
        nodes = slice(stop - sizes[n - 1] + 1, stop + 1)  # of the order below, the contexts of this one
        suffix[nodes] = edge + 1
        parent = order.context + nodes.start
        edge = find_edges(keys, suffix, size, suffix[parent], order.word)
        lower.append(np.exp(chain[suffix[parent]] + scores[edge]))
        probability, weight = _balanced(order, lower[n], sizes[n - 1])
        orders[n - 1] = replace(orders[n - 1], backoff=weight)
        orders[n] = replace(order, probability=probability, backoff=np.ones(len(edge)))
        chain[nodes] = np.log(weight) + chain[suffix[nodes]]
        keys = np.concatenate([keys, parent * size + order.word])
        scores = np.concatenate([scores, _log(probability) - chain[parent]])
    after = np.concatenate([np.arange(1, contexts), edge + 1])
    return Weighed(
        Backoff(model.words, tuple(orders)), tuple(lower), Trie(keys, scores, after, suffix, chain)
    )


def chosen(model: Backoff, keep: Sequence[NDArray[np.bool_]]) -> Backoff:
    """What is kept, numbered anew: with an n-gram its context must be. Highest orders without any go."""
    number, orders = np.zeros(1, dtype=np.int64), list[Order]()
    for order, kept in zip(model.orders, keep, strict=True):
        if orders and not kept.any():
            break
        context = number[order.context[kept]]
        orders.append(Order(context, order.word[kept], order.probability[kept], order.backoff[kept]))
        number = np.cumsum(kept) - 1
    return Backoff(model.words, tuple(orders))


def check_name(out: Path) -> None:
    """Raise ConfigError unless a name says that an ARPA file is to be written."""
    if not out.name.endswith((".arpa", ".arpa.gz")):
        raise ConfigError(f"{out}: expected a name ending in .arpa or .arpa.gz")


def write_arpa(model: Backoff, path: Path | str) -> None:
    """Write a model as ARPA, aside and renamed; gzipped if the name ends in .gz.

    Logarithms to base 10, seven digits; a probability of 0 is -99, and a weight of 1 is left out.
    """
    path = Path(path)
    with replacing(path) as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6) as packed:
                _write(model, packed)
        else:
            _write(model, raw)


class _Balanced(NamedTuple):
    probability: Floats
    weight: Floats


def _balanced(order: Order, lower: Floats, contexts: int) -> _Balanced:
    """Probabilities of one order, and the weights of their contexts."""
    total = np.bincount(order.context, order.probability, contexts)
    total_lower = np.bincount(order.context, lower, contexts)
    scale = np.where(total_lower < 1 - ALL_LISTED, np.maximum(total, 1), np.maximum(total, LEAST))
    weight = np.maximum(1 - total / scale, LEAST) / np.maximum(1 - total_lower, LEAST)
    return _Balanced(order.probability / scale[order.context], weight)


def _log(probability: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(probability)


def _write(model: Backoff, stream: IO[bytes] | Any) -> None:
    sizes = [f"ngram {n}={len(order.word)}\n" for n, order in enumerate(model.orders, 1)]
    stream.write(f"\\data\\\n{''.join(sizes)}".encode())
    names: list[str] = []
    for n, order in enumerate(model.orders, 1):
        words = [model.words[word] for word in order.word.tolist()]
        contexts = order.context.tolist()
        names = words if n == 1 else [f"{names[c]} {w}" for c, w in zip(contexts, words, strict=True)]
        stream.write(f"\n\\{n}-grams:\n".encode())
        for start in range(0, len(names), LINES_AT_ONCE):
            part = slice(start, start + LINES_AT_ONCE)
            stream.write("".join(_lines(names[part], order.probability[part], order.backoff[part])).encode())
    stream.write(b"\n\\end\\\n")


def _lines(names: Sequence[str], probability: Floats, backoff: Floats) -> Iterator[str]:
    log_p = np.clip(_log(probability) / np.log(10), NEVER_LOG10, 0)
    for name, p, weight in zip(names, log_p.tolist(), np.log10(backoff).tolist(), strict=True):
        yield f"{p:.7g}\t{name}\t{weight:.7g}\n" if weight else f"{p:.7g}\t{name}\n"
