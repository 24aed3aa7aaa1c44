"""The automaton behind phrase biasing: Aho and Corasick's, over characters, read by the labels of a model.

The characters are those of the labels' symbols, with '▁' for the space, so that a phrase is found however the
model cuts it into pieces. With `whole_words` the pattern of "new york" is "▁new▁york": it begins where a word
begins, a text beginning with a '▁' that nobody has to say, and it is complete when '▁' or the end of the text
follows. Otherwise (languages that are written without spaces) phrases are found anywhere, and complete with
their last character. A run of '▁' counts as one, as in `Tokenizer.decode`.

Each node u is the longest suffix of the text that begins a phrase. It has

    potential(u)   what was given in advance for the phrases that are under way: the largest of
                   boost * (characters said) / (characters of the phrase), or 0
    complete(u)    the sum of the boosts of the phrases that end at u, one of them inside another included

and a label that leads from u to w over the ends of phrases e1, e2, ... brings

    gain(u, label) = complete(e1) + complete(e2) + ... + potential(w) - potential(u)

so that over a whole text, at the end of which the last potential is taken back, the gains add up to the
boosts of the phrases that it holds, once for each place where one stands, whether or not another one overlaps
it.

The gains from u differ from those from the root in few labels: -potential(u) for all, complete(u) more for
those that begin with '▁' (of whole words), and whatever is different for labels that go on with a phrase.
Only these are kept, as exceptions.

Source: Aho and Corasick 1975, "Efficient string matching". Departures: gains instead of outputs, several
characters a step. Built level by level in numpy: the number of a node is that of the edge to it, in sorted
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from asr.text.hotwords import Phrase
from asr.text.tokenizer import BOUNDARY, Tokenizer

ROOT = 0
SPACE = 0
"""Code of the character '▁'."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Automaton(NamedTuple):
    """What every label does at every node, for one list of phrases; V labels, K nodes, X exceptions."""

    initial: int
    """Node of a text that has not begun."""
    potential: Floats
    """(K,)"""
    complete: Floats
    """(K,) boosts of the phrases that '▁' or the end of the text would complete."""
    root_next: Ints
    """(V,) node that each label leads to from the root."""
    root_gain: Floats
    """(V,)"""
    node: Ints
    """(X,) exceptions, sorted by node and then by label: where,"""
    label: Ints
    """(X,) by which label,"""
    next: Ints
    """(X,) to which node instead of that of the root,"""
    gain: Floats
    """(X,) with what on top of root_gain(label) - potential(node) + complete(node) if it begins with '▁'."""


def build_automaton(phrases: Sequence[Phrase], tokenizer: Tokenizer, whole_words: bool = True) -> Automaton:
    """The automaton of a list of different phrases that the tokenizer can spell; the list may be empty."""
    assert len({phrase.text for phrase in phrases}) == len(phrases)
    start = BOUNDARY if whole_words else ""
    patterns = [start + phrase.text.replace(" ", BOUNDARY) for phrase in phrases]
    codes = {BOUNDARY: SPACE}
    for character in "".join(patterns):
        codes.setdefault(character, len(codes))
    trie = _Trie([[codes[character] for character in pattern] for pattern in patterns], len(codes) + 1)
    failure = _Failure(trie)
    potential, complete = _rewards(failure, [phrase.boost for phrase in phrases], whole_words)
    labels = _Trie(_symbols(tokenizer, codes), trie.codes)
    return _read_labels(failure, labels, potential, complete, whole_words)


class _Trie:
    """Strings of codes. Nodes are numbered by depth; edges are sorted keys, node * codes + code.

    Edge i leads to node i + 1.
    """

    def __init__(self, strings: Sequence[Sequence[int]], codes: int) -> None:
        self.codes = codes
        self.lengths = np.array([len(string) for string in strings], dtype=np.int64)
        self.first = np.cumsum(self.lengths) - self.lengths
        letters = np.fromiter((code for string in strings for code in string), np.int64)
        self.path = np.zeros_like(letters)
        """Node after each character of each string, string behind string."""
        self.levels = [0, 1]
        """First node of each depth, and the number of nodes."""
        at, levels = np.zeros(len(strings), np.int64), [np.zeros(0, np.int64)]
        for depth in range(int(self.lengths.max(initial=0))):
            there = np.flatnonzero(self.lengths > depth)
            place = self.first[there] + depth
            keys, edge = np.unique(at[there] * codes + letters[place], return_inverse=True)
            at[there] = self.path[place] = self.levels[-1] + edge
            self.levels.append(self.levels[-1] + len(keys))
            levels.append(keys)
        self.ends = at
        """Node of each string."""
        self.keys = np.concatenate(levels)
        self.size = 1 + len(self.keys)
        bounds = np.searchsorted(self.keys, codes * np.arange(self.size + 1))
        self._children = bounds[:-1] + 1, np.diff(bounds)

    def child(self, nodes: Ints, codes: Ints) -> Ints:
        """The nodes that `codes` lead to from `nodes`, the root where there is none."""
        wanted = nodes * self.codes + codes
        edge = np.searchsorted(self.keys, wanted)
        found = np.append(self.keys, -1)[edge] == wanted
        return np.where(found, edge + 1, ROOT)

    def children(self, nodes: Ints) -> tuple[Ints, Ints]:
        """The children of all `nodes`, and of which of them (its place in `nodes`) each is one."""
        first, count = (numbers[nodes] for numbers in self._children)
        parent = np.repeat(np.arange(len(nodes)), count)
        return first[parent] + np.arange(len(parent)) - (np.cumsum(count) - count)[parent], parent

    def code(self, nodes: Ints) -> Ints:
        """The last character of nodes that are not the root."""
        return self.keys[nodes - 1] % self.codes

    def parent(self, nodes: Ints) -> Ints:
        """The node before the last character of nodes that are not the root."""
        return self.keys[nodes - 1] // self.codes


class _Failure:
    """The longest proper suffix of every node of a trie that is a node itself, and where characters lead."""

    def __init__(self, trie: _Trie) -> None:
        self.trie = trie
        self.suffix = np.zeros(trie.size, np.int64)
        for begin, end in zip(trie.levels[2:], trie.levels[3:], strict=False):
            nodes = np.arange(begin, end)
            self.suffix[begin:end] = self._follow(self.suffix[trie.parent(nodes)], trie.code(nodes))
        self.after_space = np.append(False, trie.code(np.arange(1, trie.size)) == SPACE)

    def step(self, nodes: Ints, codes: Ints) -> Ints:
        """The nodes after one more character; a '▁' behind a '▁' changes nothing."""
        return np.where((codes == SPACE) & self.after_space[nodes], nodes, self._follow(nodes, codes))

    def merge(self, function: np.ufunc, values: Floats) -> Floats:
        """`values` of nodes merged with those of all their suffixes."""
        merged = values.copy()
        for begin, end in zip(self.trie.levels, self.trie.levels[1:], strict=False):
            merged[begin:end] = function(merged[begin:end], merged[self.suffix[begin:end]])
        return merged

    def peculiar(self) -> tuple[Ints, Ints]:
        """All nodes and codes that lead there elsewhere than from the root; some of them do not."""
        nodes = at = np.arange(1, self.trie.size)
        spaces = np.flatnonzero(self.after_space)
        found = [spaces * self.trie.codes + SPACE]
        while len(nodes):
            children, parent = self.trie.children(at)
            found.append(nodes[parent] * self.trie.codes + self.trie.code(children))
            at = self.suffix[at]
            nodes, at = nodes[at != ROOT], at[at != ROOT]
        pairs = np.unique(np.concatenate(found))
        return pairs // self.trie.codes, pairs % self.trie.codes

    def _follow(self, nodes: Ints, codes: Ints) -> Ints:
        at, found = nodes.copy(), self.trie.child(nodes, codes)
        looking = np.flatnonzero((found == ROOT) & (at != ROOT))
        while len(looking):
            at[looking] = self.suffix[at[looking]]
            found[looking] = self.trie.child(at[looking], codes[looking])
            looking = looking[(found[looking] == ROOT) & (at[looking] != ROOT)]
        return found


def _rewards(failure: _Failure, boosts: Sequence[float], whole_words: bool) -> tuple[Floats, Floats]:
    """Potential and completion of every node."""
    trie = failure.trie
    lengths = np.repeat(trie.lengths, trie.lengths)
    depth = np.arange(1, len(lengths) + 1) - np.repeat(trie.first, trie.lengths)
    boost = np.repeat(np.array(boosts, dtype=np.float64), trie.lengths)
    # The '▁' before the first word says nothing about the phrase.
    share = (depth - 1) / np.maximum(lengths - 1, 1) if whole_words else depth / lengths
    # Multiples of 1/1024 are added and taken back without rounding errors.
    given = np.where(depth < lengths, np.round(1024 * boost * share) / 1024, boost if whole_words else 0.0)
    potential, complete = np.zeros(trie.size), np.zeros(trie.size)
    np.maximum.at(potential, trie.path, given)
    complete[trie.ends] = boosts
    return failure.merge(np.maximum, potential), failure.merge(np.add, complete)


def _symbols(tokenizer: Tokenizer, codes: dict[str, int]) -> list[tuple[int, ...]]:
    """Codes of the characters of every label; one more code stands for all that no phrase has."""
    other = len(codes)
    spelled = [tuple(codes.get(character, other) for character in symbol) for symbol in tokenizer.symbols]
    if tokenizer.unk_id is not None:  # what it stands for is not known, whatever its symbol is written with
        spelled[tokenizer.unk_id] = (SPACE, other) if tokenizer.config.kind == "word" else (other,)
    spelled[0] = ()
    return spelled


class _Readings(NamedTuple):
    """What is read from where: parts of labels, which are nodes of their trie, lead from `origin` to `at`."""

    piece: Ints
    origin: Ints
    at: Ints
    gain: Floats
    """Phrases that were completed on the way; of whole words not those that a first '▁' completes."""

    def rows(self, index: npt.NDArray[Any]) -> _Readings:
        """Those at `index`."""
        return _Readings(*(column[index] for column in self))


def _read_labels(
    failure: _Failure, labels: _Trie, potential: Floats, complete: Floats, whole_words: bool
) -> Automaton:
    """Let every label be read at every node."""
    root, found = _read(failure, labels, complete, whole_words)
    # Labels that are alike in all characters of phrases are one piece.
    by_piece = np.argsort(labels.ends, kind="stable")
    first = np.searchsorted(labels.ends[by_piece], np.arange(labels.size + 1))
    count = np.diff(first)[found.piece]
    row = np.repeat(np.arange(len(count)), count)
    label = by_piece[first[found.piece][row] + np.arange(len(row)) - (np.cumsum(count) - count)[row]]
    found = found.rows(row)
    root_gain = root.gain + potential[root.at]
    gain = found.gain + potential[found.at] - root_gain[found.piece]
    order = np.lexsort((label, found.origin))
    return Automaton(
        initial=int(
            failure.trie.child(np.array([ROOT]), np.array([SPACE]))[0]
        ),  # the root, if not about words
        potential=potential,
        complete=complete if whole_words else np.zeros_like(complete),
        root_next=root.at[labels.ends],
        root_gain=root_gain[labels.ends],
        node=found.origin[order],
        label=label[order],
        next=found.at[order],
        gain=gain[order],
    )


def _read(
    failure: _Failure, labels: _Trie, complete: Floats, whole_words: bool
) -> tuple[_Readings, _Readings]:
    """All pieces from the root, and from all other nodes those that lead elsewhere, or bring something else.

    One character at a time, all pieces and nodes at once; what has come to where it comes from the root, with
    what it brings there, is not followed on.
    """

    def gain_of(before: Ints, code: Ints, after: Ints) -> Floats:
        return np.where(code == SPACE, complete[before], 0.0) if whole_words else complete[after]

    at, gain = np.zeros(labels.size, np.int64), np.zeros(labels.size)
    before, code = failure.peculiar()
    piece = labels.child(np.zeros_like(code), code)
    now = _Readings(piece, before, before, np.zeros(len(before))).rows(piece != ROOT)
    found = list[_Readings]()
    for depth, (begin, end) in enumerate(zip(labels.levels[1:], labels.levels[2:], strict=False)):
        nodes = np.arange(begin, end)
        parent, code = labels.parent(nodes), labels.code(nodes)
        at[nodes] = failure.step(at[parent], code)
        gain[nodes] = gain[parent] + gain_of(at[parent], code, at[nodes])
        code = labels.code(now.piece)
        after = failure.step(now.at, code)
        brought = now.gain + (0.0 if whole_words and depth == 0 else gain_of(now.at, code, after))
        now = now._replace(at=after, gain=brought)
        now = now.rows((now.at != at[now.piece]) | (now.gain != gain[now.piece]))
        found.append(now)
        piece, row = labels.children(now.piece)
        now = now.rows(row)._replace(piece=piece)
    every = np.arange(labels.size)
    return _Readings(every, np.zeros_like(every), at, gain), _Readings(
        *map(np.concatenate, zip(*found, strict=True))
    )
