r"""Several back-off models over the union of their words, asked side by side.

    p(w | h) = sum_i weight_i p_i(w | h)

A word of the union that model i does not know is one of those that its `<unk>` stands for. There are m_i such
words, and all that no model knows make one more; each has an equal share, so that nothing is counted twice:

    p_i(w | h) = p_i(<unk> | h) / (m_i + 1)      for w not in the vocabulary of i, and for w = <unk>

In h such a word is `<unk>`. A model without `<unk>` gives them nothing. Every model is made whole first
(`asr.lms.backoff`): what files say is rounded, and does not quite sum to 1.

Source: Jelinek and Mercer 1980. Departure from SRILM, which sums over vocabularies as they are: the share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr.errors import ConfigError
from asr.lms.arpa import Arpa
from asr.lms.backoff import BEGIN, END, UNKNOWN, Floats, Ints, whole
from asr.lms.ngram import UNKNOWN_WORDS
from asr.lms.trie import find_edges

SPECIAL = (UNKNOWN, BEGIN, END)


class Step(NamedTuple):
    """What a model says of words."""

    log_prob: Floats
    """(N,) natural logarithms."""
    context: Ints
    """(N,) what comes behind."""


class Member:
    """One of the models; words are known by their ids in the union, the empty context is 0."""

    def __init__(self, arpa: Arpa, words: Sequence[str]) -> None:
        own = _names(arpa)
        weighed = whole(arpa, own)
        self.orders, self._trie, self._size = weighed.model.orders, weighed.trie, len(own)
        ids, union = {word: i for i, word in enumerate(own)}, {word: i for i, word in enumerate(words)}
        self.names = np.array([union[word] for word in own], dtype=np.int64)
        """(words of this model,) in the union."""
        unknown = ids[UNKNOWN]
        self._ids = np.array([ids.get(word, unknown) for word in words], dtype=np.int64)
        stand_in = self._ids == unknown  # <unk> itself, too
        self._share = np.where(stand_in, math.log(int(stand_in.sum())), 0.0)

    def step(self, context: Ints, words: Ints) -> Step:
        """Words (N,) behind contexts (N,)."""
        trie = self._trie
        edge = find_edges(trie.keys, trie.suffix, self._size, context, self._ids[words])
        return Step(trie.chain[context] + trie.scores[edge] - self._share[words], trie.after[edge])


class Mixture:
    """Models over the union of their words; see the module docstring."""

    def __init__(self, arpas: Sequence[Arpa]) -> None:
        if not arpas:
            raise ConfigError("expected at least one language model to mix, found none")
        known = {word for arpa in arpas for word in _names(arpa)}
        self.words = (*(word for word in SPECIAL if word in known), *sorted(known.difference(SPECIAL)))
        """`<unk>` first, always."""
        self.members = [Member(arpa, self.words) for arpa in arpas]

    @property
    def order(self) -> int:
        """The longest n-gram."""
        return max(len(member.orders) for member in self.members)


def _names(arpa: Arpa) -> tuple[str, ...]:
    """The words of a file, with `<unk>` written so, and behind them where the file has none."""
    if UNKNOWN in arpa.words:
        return arpa.words
    other = UNKNOWN_WORDS[1]
    if other in arpa.words:
        return tuple(UNKNOWN if word == other else word for word in arpa.words)
    return (*arpa.words, UNKNOWN)
