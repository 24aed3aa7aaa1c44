"""Phrase biasing: a scorer that rewards hypotheses for the phrases of a list that they hold (shallow fusion).

    total(text) = sum over phrases p of  boost(p) * (number of places where p stands in the text)

natural logarithms, given little by little: each label of a phrase that is under way brings a part, so that
the phrase survives in a beam until it is complete, and what was given is taken back by the label with which
it fails or by the end (asr.search.automaton has the equation). A phrase within or across another one counts
on its own. A negative boost, against phrases that are heard too often, falls due only when the phrase is
complete.

A scorer may have several lists, each with a root of its own; the node that is a hypothesis' state says which
list is its own. So streams of one batch can listen for different phrases (`states_for`).

Where nodes times labels are few, gains and next nodes are tables. Otherwise each label is looked up among the
few that do something special at a node, and does what it does at the root if it is not there. Both give the
same.

Sources: Aleksic et al. 2015 ("Bringing contextual information to Google speech recognition"), Zhao et al.
2019 ("Shallow-fusion end-to-end contextual biasing"), Aho and Corasick 1975.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from asr import state as states
from asr.config import Config
from asr.errors import HotwordsError
from asr.search.automaton import Automaton, build_automaton
from asr.text.hotwords import DEFAULT_BOOST, MAX_BOOST, Phrase, check_spelling, read_hotwords
from asr.text.tokenizer import BOUNDARY, Tokenizer

MAX_CHARACTERS = 1_000_000
"""Of all the phrases of a scorer: there are at most about as many nodes."""
TABLE_ENTRIES = 16_000_000
"""Nodes times labels up to which tables are made, of 8 bytes an entry."""


class BiasingConfig(Config):
    """Phrases that a recogniser listens for."""

    hotwords: str | None = None
    """File of phrases, see asr.text.hotwords."""
    boost: float = Field(DEFAULT_BOOST, ge=-MAX_BOOST, le=MAX_BOOST)
    """Of phrases that have none of their own, in nats."""
    normalization: str = "none"
    """What is done to the phrases first: none, basic, english (asr.text.normalize)."""
    whole_words: bool = True
    """Phrases stand between spaces; false for languages that are written without them."""

    def phrases(self) -> tuple[Phrase, ...]:
        """Those of the file, if there is one. Raises HotwordsError, ConfigError."""
        if self.hotwords is None:
            return ()
        return read_hotwords(Path(self.hotwords), self.boost, self.normalization)

    def scorer(self, tokenizer: Tokenizer) -> PhraseBiasing | None:
        """What rewards them, None without a file. Raises HotwordsError, TokenError, ConfigError."""
        if self.hotwords is None:
            return None
        return PhraseBiasing(tokenizer, [self.phrases()], whole_words=self.whole_words)


@dataclass(frozen=True)
class BiasingState:
    """Where each hypothesis is among the phrases of its list."""

    node: Tensor
    """(N,) int64."""


class PhraseBiasing:
    """Scorer of phrase lists; see asr.lms.Scorer. Immutable; its tables follow the states to their device."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        lists: Sequence[Sequence[Phrase]],
        *,
        whole_words: bool = True,
        table_entries: int = TABLE_ENTRIES,
    ) -> None:
        """Make the automata of `lists`, of which any may be empty; the first is the one of `initial_state`.

        whole_words: phrases stand between spaces; False finds them inside words too, for languages that are
            written without spaces.
        table_entries: nodes times labels beyond which labels are looked up.

        Raises TokenError for a phrase that the tokenizer cannot spell, HotwordsError if a phrase is twice in
        a list, or if the lists are too long.
        """
        assert len(lists) >= 1
        _check(lists, tokenizer)
        self.vocab_size = tokenizer.vocab_size
        self.lists = len(lists)
        automata = [build_automaton(phrases, tokenizer, whole_words) for phrases in lists]
        lookup = _join(automata, [symbol.startswith(BOUNDARY) for symbol in tokenizer.symbols])
        nodes = len(lookup.potential)
        self._initial = torch.from_numpy(_offsets(automata) + [automaton.initial for automaton in automata])
        self._actions: _Lookup | _Table = (
            _tabulate(lookup) if nodes * self.vocab_size <= table_entries else lookup
        )
        self._end = lookup.complete - lookup.potential
        self._elsewhere: dict[torch.device, tuple[_Lookup | _Table, Tensor]] = {}

    def initial_state(self, batch: int, device: torch.device | None = None) -> BiasingState:
        """State of `batch` hypotheses that have said nothing and listen for the first list."""
        return BiasingState(self._initial[:1].expand(batch).clone().to(device or "cpu"))

    def states_for(self, lists: Sequence[int], device: torch.device | None = None) -> BiasingState:
        """State of hypotheses that have said nothing; the number of the list that each listens for."""
        assert all(0 <= number < self.lists for number in lists), f"lists {lists} of {self.lists}"
        return BiasingState(self._initial[torch.tensor(lists, dtype=torch.int64)].to(device or "cpu"))

    def score(self, state: BiasingState) -> Tensor:
        """(N, V) float32: what each label would add."""
        return self._on(state.node.device)[0].score(state.node)

    def advance(self, state: BiasingState, labels: Tensor) -> BiasingState:
        """State after labels (N,) int64; blank, which is never said, changes nothing."""
        return BiasingState(self._on(state.node.device)[0].advance(state.node, labels))

    def end(self, state: BiasingState) -> Tensor:
        """(N,) float32: completes a phrase, or takes back what was given for an incomplete one."""
        return self._on(state.node.device)[1][state.node]

    def _on(self, device: torch.device) -> tuple[_Lookup | _Table, Tensor]:
        if device == self._end.device:
            return self._actions, self._end
        if device not in self._elsewhere:
            moved = states.map_tensors(lambda tensor: tensor.to(device), self._actions)
            self._elsewhere[device] = moved, self._end.to(device)
        return self._elsewhere[device]


@dataclass(frozen=True)
class _Table:
    """Every label at every node."""

    gain: Tensor
    """(K, V) float32"""
    next: Tensor
    """(K, V) int32"""

    def score(self, node: Tensor) -> Tensor:
        return self.gain[node]

    def advance(self, node: Tensor, label: Tensor) -> Tensor:
        return self.next[node, label].long()


@dataclass(frozen=True)
class _Lookup:
    """What labels do at the root of their list, and what is different at some nodes: asr.search.automaton."""

    potential: Tensor
    """(K,) float32"""
    complete: Tensor
    """(K,) float32"""
    list_of: Tensor
    """(K,) int64"""
    root_gain: Tensor
    """(lists, V) float32"""
    root_next: Tensor
    """(lists, V) int64"""
    begins_word: Tensor
    """(V,) float32: 1 for labels that begin with '▁'."""
    first: Tensor
    """(K + 1,) int64: first exception of each node."""
    key: Tensor
    """(X,) int64: node * V + label of the exceptions, sorted."""
    gain: Tensor
    """(X,) float32"""
    next: Tensor
    """(X,) int64"""

    def score(self, node: Tensor) -> Tensor:
        vocab = self.root_gain.shape[1]
        gains = self.root_gain[self.list_of[node]] - self.potential[node, None]
        gains.addcmul_(self.complete[node, None], self.begins_word)
        gains[:, 0] = 0.0
        counts = self.first[node + 1] - self.first[node]
        row = torch.repeat_interleave(counts)
        within = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        exception = self.first[node][row] + within
        place = row * vocab + self.key[exception] - node[row] * vocab
        gains.view(-1).index_add_(0, place, self.gain[exception])
        return gains

    def advance(self, node: Tensor, label: Tensor) -> Tensor:
        after = self.root_next[self.list_of[node], label]
        if len(self.key):
            key = node * self.root_gain.shape[1] + label
            place = torch.searchsorted(self.key, key).clamp(max=len(self.key) - 1)
            after = torch.where(self.key[place] == key, self.next[place], after)
        return torch.where(label == 0, node, after)


def _check(lists: Sequence[Sequence[Phrase]], tokenizer: Tokenizer) -> None:
    for phrases in lists:
        found: dict[str, Phrase] = {}
        for phrase in phrases:
            if found.setdefault(phrase.text, phrase) is not phrase:
                raise HotwordsError(f"{phrase.text!r}: expected different phrases in a list, found it twice")
    characters = sum(len(phrase.text) + 1 for phrases in lists for phrase in phrases)
    if characters > MAX_CHARACTERS:
        raise HotwordsError(
            f"expected phrases of at most {MAX_CHARACTERS} characters in all lists together, found "
            f"{characters}; shorten them"
        )
    for phrases in lists:
        check_spelling(phrases, tokenizer)


def _offsets(automata: Sequence[Automaton]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of the first node of each automaton among the nodes of all."""
    sizes = [len(automaton.potential) for automaton in automata]
    return np.cumsum([0, *sizes[:-1]], dtype=np.int64)


def _join(automata: Sequence[Automaton], begins_word: Sequence[bool]) -> _Lookup:
    """The automata of all lists as one."""
    offsets, vocab = _offsets(automata), len(begins_word)
    pairs = list(zip(automata, offsets, strict=True))
    sizes = [len(automaton.potential) for automaton in automata]

    def floats(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    key = np.concatenate([(a.node + offset) * vocab + a.label for a, offset in pairs])
    return _Lookup(
        potential=floats([a.potential for a in automata]),
        complete=floats([a.complete for a in automata]),
        list_of=torch.from_numpy(np.repeat(np.arange(len(automata)), sizes)),
        root_gain=floats([a.root_gain[None] for a in automata]),
        root_next=torch.from_numpy(np.stack([a.root_next + offset for a, offset in pairs])),
        begins_word=torch.tensor(begins_word, dtype=torch.float32),
        first=torch.from_numpy(np.searchsorted(key, vocab * np.arange(sum(sizes) + 1))),
        key=torch.from_numpy(key),
        gain=floats([a.gain for a in automata]),
        next=torch.from_numpy(np.concatenate([a.next + offset for a, offset in pairs])),
    )


def _tabulate(lookup: _Lookup) -> _Table:
    """The same as a table."""
    nodes = torch.arange(len(lookup.potential))
    after = lookup.root_next.int()[lookup.list_of]
    after.view(-1)[lookup.key] = lookup.next.int()
    after[:, 0] = nodes.int()
    return _Table(lookup.score(nodes), after)
