"""From the n-grams of an ARPA file to the arrays of a trie; what they are is said in `asr.lms.ngram`.

Level by level: the edges of order k are the listed n-grams of order k and, where an n-gram of a higher order
begins with words that are not listed (pruning may take a context and leave what went on from it), those as
well; such an edge weighs nothing as a context and scores what backing off gives, so that no sum changes.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from asr.errors import ModelError
from asr.lms.arpa import Arpa, ArpaSection

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MAX_EDGES = 2**31 - 1
"""Edges and contexts are kept as int32."""


class Trie(NamedTuple):
    """The five arrays, see `asr.lms.ngram`."""

    keys: Ids
    scores: Floats
    after: Ids
    suffix: Ids
    chain: Floats


class _Level(NamedTuple):
    """The edges of one order."""

    keys: Ids
    log_prob: Floats
    """NaN where the n-gram is not listed."""
    backoff: Floats


def build_trie(arpa: Arpa, words: int) -> Trie:
    """Arrays of a vocabulary of `words` words: those of the file, and others that have probability 0.

    Raises ModelError, with the line, if an n-gram is listed twice.
    """
    levels = _levels(arpa, words)
    sizes = [len(level.keys) for level in levels]
    if sum(sizes) > MAX_EDGES:
        raise ModelError(f"{arpa.path}: expected at most {MAX_EDGES} n-grams, found {sum(sizes)}; prune them")
    contexts = 1 + sum(sizes[:-1])
    keys = np.concatenate([level.keys for level in levels])
    scores, after = np.empty(len(keys)), np.empty(len(keys), np.int64)
    suffix, chain = np.zeros(contexts, np.int64), np.zeros(contexts)
    stop = 0
    for level in levels:
        edge = np.arange(stop, stop + len(level.keys))
        parent, word = np.divmod(level.keys, words)
        scores[edge] = level.log_prob - chain[parent]
        node = np.zeros(len(edge), np.int64)
        if stop:
            backed = find_edges(keys[:stop], suffix, words, suffix[parent], word)
            node = backed + 1
            scores[edge] = np.where(np.isnan(level.log_prob), scores[backed], scores[edge])
        stop += len(edge)
        if stop < contexts:
            suffix[edge + 1], chain[edge + 1] = node, level.backoff + chain[node]
            node = edge + 1
        after[edge] = node
    weights = np.concatenate([[0.0], *(level.backoff for level in levels[:-1])])
    telling = (np.bincount(keys // words, minlength=contexts) > 0) | (weights != 0)
    return Trie(keys, scores, _passed_over(telling, suffix, sizes[:-1])[after], suffix, chain)


def find_edges(keys: Ids, suffix: Ids, words: int, context: Ids, word: Ids) -> Ids:
    """The edge of every word from its context, or else from the first that backing off leads to.

    Contexts and words (N,) give edges (N,); `keys` and `suffix` may be the lower orders of a trie alone.
    """
    context, edge = context.copy(), word.copy()  # from the empty context, the edge of a word is its id
    left = np.flatnonzero(context)
    while len(left):
        wanted = context[left] * words + word[left]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = keys[at] == wanted
        edge[left[there]] = at[there]
        left = left[~there]
        context[left] = suffix[context[left]]
        left = left[context[left] > 0]
    return edge


def _levels(arpa: Arpa, words: int) -> list[_Level]:
    """Edges by order."""
    unigrams = arpa.sections[0]
    first = _Level(np.arange(words), np.full(words, -np.inf), np.zeros(words))
    first.log_prob[unigrams.words[:, 0]] = _natural(unigrams.log10)
    first.backoff[unigrams.words[:, 0]] = _natural(unigrams.backoff)
    levels, start = [first], 0
    # The context that the first words of every n-gram lead to; one word more in every round.
    prefix = [section.words[:, 0].astype(np.int64) + 1 for section in arpa.sections]
    for k, section in enumerate(arpa.sections[1:], 1):
        start += len(levels[-1].keys)
        reaching = [
            nodes * words + longer.words[:, k]
            for nodes, longer in zip(prefix[k:], arpa.sections[k:], strict=True)
        ]
        keys = _distinct(arpa, section, reaching[0])
        for longer in reaching[1:]:
            absent = longer[~_has(keys, longer)]
            if len(absent):
                keys = np.union1d(keys, absent)
        places = [np.searchsorted(keys, each) for each in reaching]
        level = _Level(keys, np.full(len(keys), np.nan), np.zeros(len(keys)))
        level.log_prob[places[0]] = _natural(section.log10)
        level.backoff[places[0]] = _natural(section.backoff)
        levels.append(level)
        prefix[k:] = [start + place + 1 for place in places]
    return levels


def _distinct(arpa: Arpa, section: ArpaSection, keys: Ids) -> Ids:
    """Keys in order; raises ModelError if one is there twice."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = order[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        at = int(again.min())
        text = " ".join(arpa.words[word] for word in section.words[at])
        raise ModelError(
            f"{arpa.path}:{section.lines[at]}: expected every n-gram once, found {text!r} again; remove one"
        )
    return ordered


def _has(keys: Ids, wanted: Ids) -> NDArray[np.bool_]:
    if not len(keys):
        return np.zeros(len(wanted), np.bool_)
    return np.equal(keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)], wanted)


def _passed_over(telling: NDArray[np.bool_], suffix: Ids, sizes: list[int]) -> Ids:
    """For every context the first, from it on backwards, that tells something."""
    found, start = np.arange(len(telling)), 1
    for size in sizes:
        level = slice(start, start + size)  # suffixes are shorter, hence known
        found[level] = np.where(telling[level], found[level], found[suffix[level]])
        start += size
    return found


def _natural(log10: NDArray[np.float32]) -> Floats:
    return log10.astype(np.float64) * math.log(10)
