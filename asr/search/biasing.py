"""Phrase biasing: a scorer that rewards hypotheses for the phrases of a list that they hold (shallow fusion).

    total(text) = sum over phrases p of  boost(p) * (number of places where p stands in the text)

natural logarithms, given little by little: each label of a phrase that is under way brings a part, so that
the phrase survives in a beam until it is complete, and what was given is taken back by the label with which
it fails or by the end (asr.search.automaton has the equation). A phrase within or across another one counts
on its own. A negative boost, against phrases that are heard too often, falls due only when the phrase is
complete.

A scorer may have several lists, each with a root of its own; the node that is a hypothesis' state says which
list is its own. So streams of one batch can listen for different phrases (`states_for`), and lists come and
go with streams (`PhraseList`). What labels do at nodes is in tensors (asr.search.phrase_tables).

Sources: Aleksic et al. 2015 ("Bringing contextual information to Google speech recognition"), Zhao et al.
2019 ("Shallow-fusion end-to-end contextual biasing"), Aho and Corasick 1975.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.errors import HotwordsError
from asr.search.automaton import build_automaton
from asr.search.phrase_tables import Listed, Lists, lists_of
from asr.text.hotwords import DEFAULT_BOOST, MAX_BOOST, Phrase, check_spelling, list_hotwords, read_hotwords
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

    def scorer(self, tokenizer: Tokenizer, *, streams: bool = False) -> PhraseBiasing | None:
        """What rewards them; without a file None, unless streams may bring phrases of their own.

        Raises HotwordsError, TokenError, ConfigError.
        """
        if self.hotwords is None and not streams:
            return None
        return PhraseBiasing(tokenizer, [self.phrases()], whole_words=self.whole_words)

    def listen(self, biasing: PhraseBiasing, hotwords: Sequence[str], name: str = "hotwords") -> PhraseList:
        """What a stream listens for: phrases, written as lines of a file are, beside those of the scorer.

        Its own boost of a phrase counts before that of the file; `name` is for errors. Raises HotwordsError,
        TokenError, ConfigError.
        """
        own = list_hotwords(hotwords, self.boost, self.normalization, name)
        every = {phrase.text: phrase for phrase in (*biasing.general, *own)}
        return PhraseList(biasing, tuple(every.values()))


@dataclass(frozen=True)
class BiasingState:
    """Where each hypothesis is among the phrases of its list."""

    node: Tensor
    """(N,) int64."""


class PhraseList:
    """A list of phrases that streams may listen for as long as this object lives."""

    def __init__(self, biasing: PhraseBiasing, phrases: Sequence[Phrase]) -> None:
        """Raises as the constructor of PhraseBiasing does."""
        self.number = biasing.add(phrases)
        """What `PhraseBiasing.states_for` calls it."""
        # A finaliser may run anywhere, where the lock is held too: it only leaves a note.
        weakref.finalize(self, biasing.gone.append, self.number)


class PhraseBiasing:
    """Scorer of phrase lists; see asr.lms.Scorer. Its tensors follow the states to their device."""

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
        self.general = tuple(lists[0])
        """The phrases of `initial_state`."""
        self.vocab_size = tokenizer.vocab_size
        self._tokenizer, self._whole_words, self._table_entries = tokenizer, whole_words, table_entries
        self._begins_word = [symbol.startswith(BOUNDARY) for symbol in tokenizer.symbols]
        self._lock = Lock()
        self._listed: dict[int, Listed] = {}
        self._numbers = self._nodes = 0
        self._made: dict[torch.device, Lists] = {}
        self.gone: deque[int] = deque()
        """Numbers of lists that no hypothesis listens for any more."""
        for phrases in lists:
            self.add(phrases)

    def add(self, phrases: Sequence[Phrase]) -> int:
        """One more list, for good; its number. Raises as the constructor does."""
        _check(phrases, self._tokenizer)
        automaton = build_automaton(phrases, self._tokenizer, self._whole_words)
        characters = sum(len(phrase.text) + 1 for phrase in phrases)
        with self._lock:
            self._forget()
            _check_size(characters + sum(each.characters for each in self._listed.values()))
            number, listed = self._numbers, Listed(self._nodes, automaton, characters)
            self._numbers += 1
            self._nodes += len(automaton.potential)
            self._listed = {**self._listed, number: listed}
            self._made = {}
        return number

    @property
    def idle(self) -> bool:
        """Whether there is no phrase in any list."""
        return not any(listed.characters for listed in self._listed.values())

    def initial_state(self, batch: int, device: torch.device | None = None) -> BiasingState:
        """State of `batch` hypotheses that have said nothing and listen for the first list."""
        return self.states_for([0] * batch, device)

    def states_for(self, lists: Sequence[int], device: torch.device | None = None) -> BiasingState:
        """State of hypotheses that have said nothing; the number of the list that each listens for."""
        with self._lock:
            self._forget()
        assert all(number in self._listed for number in lists), f"lists {lists} of {list(self._listed)}"
        nodes = [self._listed[number].initial for number in lists]
        return BiasingState(torch.tensor(nodes, dtype=torch.int64, device=device))

    def renewed(self, state: BiasingState) -> BiasingState:
        """State of hypotheses that listen for the same lists and have said nothing."""
        return BiasingState(self._on(state.node.device).renewed(state.node))

    def score(self, state: BiasingState) -> Tensor:
        """(N, V) float32: what each label would add."""
        if self.idle:
            return torch.zeros(1, self.vocab_size, device=state.node.device).expand(len(state.node), -1)
        return self._on(state.node.device).score(state.node)

    def advance(self, state: BiasingState, labels: Tensor) -> BiasingState:
        """State after labels (N,) int64; blank, which is never said, changes nothing."""
        # Without phrases every list is one node.
        return state if self.idle else BiasingState(self._on(state.node.device).advance(state.node, labels))

    def end(self, state: BiasingState) -> Tensor:
        """(N,) float32: completes a phrase, or takes back what was given for an incomplete one."""
        return self._on(state.node.device).ends(state.node)

    def _forget(self) -> None:
        if self.gone:
            gone = {self.gone.popleft() for _ in range(len(self.gone))}
            self._listed = {number: each for number, each in self._listed.items() if number not in gone}
            self._made = {}

    def _on(self, device: torch.device) -> Lists:
        """The tensors, made when they are first asked for after a list has come or gone."""
        made = self._made  # first: what is made of the lists of now is no older than where it is kept
        if device not in made:
            made[device] = lists_of(self._listed, self._begins_word, self._table_entries, device)
        return made[device]


def _check(phrases: Sequence[Phrase], tokenizer: Tokenizer) -> None:
    found: dict[str, Phrase] = {}
    for phrase in phrases:
        if found.setdefault(phrase.text, phrase) is not phrase:
            raise HotwordsError(f"{phrase.text!r}: expected different phrases in a list, found it twice")
    _check_size(sum(len(phrase.text) + 1 for phrase in phrases))  # before the many are spelled
    check_spelling(phrases, tokenizer)


def _check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise HotwordsError(
            f"expected phrases of at most {MAX_CHARACTERS} characters in all lists together, found "
            f"{characters}; shorten them"
        )
