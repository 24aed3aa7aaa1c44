"""The words of a language model as a recogniser may spell them: a prefix tree that is walked label by label.

A node is a beginning of words, node 0 the empty one. A label of several letters leads several letters on, so
a word is known however it is cut into pieces. Labels come in three kinds:

=========  =======================  ==================================================================
kind       for example              what it does
=========  =======================  ==================================================================
inside     `o`, `ing`               goes on with the word; begins one where none has begun
start      `▁th`, `▁the`            ends the word before, if there is one, and begins the next
boundary   `▁`                      ends the word before, if there is one
=========  =======================  ==================================================================

A word that is on no path is lost: it stays on the last node, LOST, until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr.errors import TokenError
from asr.text.tokenizer import BOUNDARY, Tokenizer, clean

MAX_LETTERS = 100
"""Of a word; longer ones are left out."""

MOST = 1000.0
"""A word of probability 0 is looked ahead to as if it cost this much; what it costs is seen where it ends."""

Case = Literal["keep", "lower", "upper"]


class Spelling(NamedTuple):
    """A word of the language model, as text that the recogniser can write."""

    text: str
    word: int
    """Its index in the language model."""
    log_prob: float
    """Of the word without a context; natural logarithm."""


class Lexicon(NamedTuple):
    """A prefix tree; tensors of M nodes, LOST the last, of V labels or of E ways from node to node."""

    keys: Tensor
    """(E,) int64 node * V + label, ascending, of the labels that go on with a word; the last is none."""
    children: Tensor
    """(E,) int64 where they lead."""
    first: Tensor
    """(M + 1,) int64 where the ways of a node begin."""
    words: Tensor
    """(M,) int64 the word that ends at a node, or that for unknown ones."""
    ahead: Tensor
    """(M,) float32 what the words that go through a node are worth, at least -MOST; 0 for the empty one."""
    starts: Tensor
    """(S,) int64 the start and boundary labels."""
    start_node: Tensor
    """(V,) int64 where they lead; LOST for the others."""

    @property
    def lost(self) -> int:
        """The node of words that are none."""
        return len(self.words) - 1

    @property
    def is_start(self) -> Tensor:
        """(V,) bool: which labels begin a word."""
        found = torch.zeros_like(self.start_node, dtype=torch.bool)
        found[self.starts] = True
        return found


def spellings(
    words: Iterable[tuple[int, str, float]], tokenizer: Tokenizer, case: Case
) -> tuple[list[Spelling], list[str]]:
    """The words (index, text, log-probability) as the recogniser writes them, and those that it cannot write.

    Of words that are written alike the most probable is taken.
    """
    found: dict[str, Spelling] = {}
    unspelled = []
    for index, word, log_prob in words:
        text = word if case == "keep" else word.lower() if case == "lower" else word.upper()
        try:
            text = clean(text)
            ids = tokenizer.encode(text)
        except TokenError:
            ids = []
        if not ids or tokenizer.unk_id in ids or len(text) > MAX_LETTERS or " " in text:
            unspelled.append(word)
        elif text not in found or found[text].log_prob < log_prob:
            found[text] = Spelling(text, index, log_prob)
    return list(found.values()), unspelled


def build_lexicon(
    entries: list[Spelling], tokenizer: Tokenizer, unknown: int, ahead: Literal["max", "sum"]
) -> Lexicon:
    """The prefix tree of words; `unknown` is the word of the nodes where none ends."""
    nodes: dict[str, int] = {"": 0}
    for entry in entries:
        for stop in range(1, len(entry.text) + 1):
            nodes.setdefault(entry.text[:stop], len(nodes))
    size, lost = tokenizer.vocab_size, len(nodes)
    words = torch.full((lost + 1,), unknown)
    words[[nodes[entry.text] for entry in entries]] = torch.tensor([entry.word for entry in entries])
    keys, children = _ways(nodes, tokenizer)
    starts = [label for label in range(1, size) if tokenizer.symbols[label].startswith(BOUNDARY)]
    start_node = torch.full((size,), lost)
    for label in starts:
        start_node[label] = nodes.get(tokenizer.symbols[label].removeprefix(BOUNDARY), lost)
    first = torch.searchsorted(keys, torch.arange(lost + 2) * size)
    worth, start_labels = _ahead(nodes, entries, ahead), torch.tensor(starts, dtype=torch.int64)
    return Lexicon(keys, children, first, words, worth, start_labels, start_node)


def _ways(nodes: dict[str, int], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """All (node, label) from which a label leads to a node, as sorted keys, and that node."""
    inside = {
        symbol: label
        for label, symbol in enumerate(tokenizer.symbols)
        if label not in (0, tokenizer.unk_id) and not symbol.startswith(BOUNDARY)
    }
    longest = max(map(len, inside), default=0)
    keys, children = [], []
    for path, node in nodes.items():
        for start in range(max(0, len(path) - longest), len(path)):
            label = inside.get(path[start:])
            if label is not None:
                keys.append(nodes[path[:start]] * tokenizer.vocab_size + label)
                children.append(node)
    keys.append((len(nodes) + 1) * tokenizer.vocab_size)  # beyond all that is looked for
    children.append(len(nodes))
    ordered, order = torch.tensor(keys).sort()
    return ordered, torch.tensor(children)[order]


def _ahead(nodes: dict[str, int], entries: list[Spelling], kind: Literal["max", "sum"]) -> Tensor:
    """The most, or the logarithm of the sum, of the probabilities of the words through every node."""
    best = [0.0] * len(nodes)
    for entry in entries:
        best[nodes[entry.text]] = float(np.exp(entry.log_prob))
    for path, node in reversed(nodes.items()):  # longer ones first
        if path:
            parent = nodes[path[:-1]]
            best[parent] = best[parent] + best[node] if kind == "sum" else max(best[parent], best[node])
    with np.errstate(divide="ignore"):
        ahead = np.log(np.array([1.0, *best[1:], 1.0])).clip(min=-MOST)
    return torch.from_numpy(ahead.astype(np.float32))
