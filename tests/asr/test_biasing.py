"""Phrase biasing against a count of phrases in decoded text; its tables against its look-ups; its errors."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from asr import state as states
from asr.errors import HotwordsError, TokenError
from asr.search.automaton import build_automaton
from asr.search.biasing import MAX_CHARACTERS, BiasingState, PhraseBiasing
from asr.text.hotwords import Phrase
from asr.text.tokenizer import BOUNDARY, Tokenizer, TokenizerConfig, train_tokenizer

CPU = torch.device("cpu")
TEXTS = ["a bab abba ba", "b aab ab bb a", "ab abab baba b", "abba bab aa bb", "ba ab a b aa"] * 3
CONFIGS = {
    "char": TokenizerConfig(kind="char"),
    "char-unk": TokenizerConfig(kind="char", unk=True),
    "word": TokenizerConfig(kind="word"),
    "word-unk": TokenizerConfig(kind="word", unk=True),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=12),
    "unigram-unk": TokenizerConfig(kind="unigram", vocab_size=10, unk=True),
}
PHRASES = (
    Phrase("a", 0.5),
    Phrase("ab", 2.0),
    Phrase("ab a", 8.0),
    Phrase("a ab", 4.25),
    Phrase("bab", -3.0),
    Phrase("ab ab ab", 16.0),
    Phrase("abba", 6.0),
)


@pytest.fixture(scope="module", params=CONFIGS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(CONFIGS[request.param], [*TEXTS, "bab abba"])


def text_of(tokenizer: Tokenizer, labels: list[int]) -> str:
    """What labels say, an unknown symbol being one that no phrase has."""
    symbols = list(tokenizer.symbols)
    if tokenizer.unk_id is not None:
        symbols[tokenizer.unk_id] = symbols[tokenizer.unk_id].replace("<unk>", "?")
    return " ".join("".join(symbols[label] for label in labels).replace(BOUNDARY, " ").split())


def counted(text: str, phrases: tuple[Phrase, ...], whole_words: bool) -> float:
    """The definition: boosts of all phrases at all places where they stand."""
    total = 0.0
    for phrase in phrases:
        if whole_words:
            words, wanted = text.split(), phrase.text.split()
            places = range(len(words) - len(wanted) + 1)
            total += phrase.boost * sum(words[i : i + len(wanted)] == wanted for i in places)
        else:
            total += phrase.boost * sum(text.startswith(phrase.text, i) for i in range(len(text)))
    return total


def gains(scorer: PhraseBiasing, labels: list[int]) -> list[float]:
    """What each label adds, and the end."""
    state, added = scorer.initial_state(1), []
    for label in labels:
        added.append(float(scorer.score(state)[0, label]))
        state = scorer.advance(state, torch.tensor([label]))
    return [*added, float(scorer.end(state)[0])]


def totals(scorer: PhraseBiasing, strings: list[list[int]], state: BiasingState | None = None) -> list[float]:
    """All that is added to each of many strings at once; shorter ones are filled up with blanks."""
    state = state or scorer.initial_state(len(strings))
    added = torch.zeros(len(strings))
    for step in range(max(map(len, strings))):
        labels = torch.tensor([string[step] if step < len(string) else 0 for string in strings])
        added += scorer.score(state).gather(1, labels[:, None])[:, 0]
        state = scorer.advance(state, labels)
    return (added + scorer.end(state)).tolist()


def label_strings(tokenizer: Tokenizer) -> list[list[int]]:
    """All short strings of labels, and some long ones."""
    labels = range(1, tokenizer.vocab_size)
    short = [list(string) for length in range(4) for string in product(labels, repeat=length)]
    rng = random.Random(0)
    return short[:700] + [rng.choices(labels, k=rng.randint(4, 30)) for _ in range(500)]


@pytest.mark.parametrize("whole_words", [True, False])
@pytest.mark.parametrize("entries", [10**6, 0])
def test_the_total_is_the_boosts_of_the_phrases_that_were_said(
    tokenizer: Tokenizer, whole_words: bool, entries: int
) -> None:
    spelled = tuple(phrase for phrase in PHRASES if _can_spell(tokenizer, phrase))
    assert len(spelled) >= 4
    scorer = PhraseBiasing(tokenizer, [spelled], whole_words=whole_words, table_entries=entries)
    strings = label_strings(tokenizer)
    expected = [counted(text_of(tokenizer, string), spelled, whole_words) for string in strings]
    assert sum(total != 0 for total in expected) > 100
    assert totals(scorer, strings) == expected


def _can_spell(tokenizer: Tokenizer, phrase: Phrase) -> bool:
    try:
        PhraseBiasing(tokenizer, [[phrase]])
    except TokenError:
        return False
    return True


def characters(text: str) -> tuple[Tokenizer, list[int]]:
    tokenizer = train_tokenizer(TokenizerConfig(), ["the quick brown fox jumps over a lazy dog"])
    return tokenizer, tokenizer.encode(text)


def test_a_phrase_is_not_rewarded_inside_a_word_and_keeps_its_reward_at_the_end_of_one() -> None:
    for text, total in {
        "party": 0.0,
        "art": 3.0,
        "my art": 3.0,
        "art is": 3.0,
        "smart": 0.0,
        "arts": 0.0,
    }.items():
        tokenizer, labels = characters(text)
        assert sum(gains(PhraseBiasing(tokenizer, [[Phrase("art", 3.0)]]), labels)) == total, text


def test_partial_matches_are_rewarded_and_the_reward_is_taken_back() -> None:
    tokenizer, labels = characters("arms")
    scorer = PhraseBiasing(tokenizer, [[Phrase("arts", 4.0)]])
    assert gains(scorer, labels) == [1.0, 1.0, -2.0, 0.0, 0.0]
    assert gains(scorer, characters("art")[1]) == [1.0, 1.0, 1.0, -3.0]
    assert gains(scorer, characters("arts")[1]) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert gains(scorer, characters("arts a")[1]) == [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, -1.0]
    assert gains(scorer, characters("artsy")[1]) == [1.0, 1.0, 1.0, 1.0, -4.0, 0.0]


def test_of_two_phrases_under_way_the_better_reward_is_given() -> None:
    tokenizer, labels = characters("new york")
    phrases = [Phrase("new york", 8.0), Phrase("york city", 27.0)]
    added = gains(PhraseBiasing(tokenizer, [phrases]), labels)
    # "york" is all of the one, for 8 nats, and 4 of 9 characters of the other, for 12.
    assert added == [1.0] * 6 + [3.0, 3.0, -4.0]
    assert sum(gains(PhraseBiasing(tokenizer, [phrases]), characters("new york city")[1])) == 35.0


def test_negative_boosts_fall_due_when_the_phrase_is_complete() -> None:
    tokenizer, labels = characters("art is")
    assert gains(PhraseBiasing(tokenizer, [[Phrase("art", -2.0)]]), labels) == [0, 0, 0, -2.0, 0, 0, 0]


def test_streams_listen_for_lists_of_their_own_and_rows_do_not_meet() -> None:
    tokenizer, _ = characters("")
    lists = [[], [Phrase("art", 3.0)], [Phrase("art is", 6.0), Phrase("is", 1.0)]]
    for entries in (10**6, 0):
        scorer = PhraseBiasing(tokenizer, lists, table_entries=entries)
        texts = ["art is", "is art", "a is", "smart"]
        rows = [(number, text) for number in range(3) for text in texts]
        labels = [tokenizer.encode(text) for _, text in rows]
        found = totals(scorer, labels, scorer.states_for([number for number, _ in rows]))
        expected = [counted(text, tuple(lists[number]), True) for number, text in rows]
        assert found == expected


def test_the_first_list_is_the_default_and_an_empty_one_scores_nothing() -> None:
    tokenizer, labels = characters("art")
    assert sum(gains(PhraseBiasing(tokenizer, [[Phrase("art", 3.0)], []]), labels)) == 3.0
    empty = PhraseBiasing(tokenizer, [[]])
    assert gains(empty, labels) == [0.0] * 4
    assert not empty.score(empty.initial_state(2)).any()


@pytest.mark.parametrize("whole_words", [True, False])
def test_tables_and_look_ups_are_alike(tokenizer: Tokenizer, whole_words: bool) -> None:
    spelled = [phrase for phrase in PHRASES if _can_spell(tokenizer, phrase)]
    lists = [spelled, spelled[:2], []]
    table = PhraseBiasing(tokenizer, lists, whole_words=whole_words)
    lookup = PhraseBiasing(tokenizer, lists, whole_words=whole_words, table_entries=0)
    assert type(table._on(CPU).actions) is not type(lookup._on(CPU).actions)
    size = sum(len(build_automaton(one, tokenizer, whole_words).potential) for one in lists)
    every = BiasingState(torch.arange(size))
    assert torch.equal(table.score(every), lookup.score(every))
    assert not table.score(every)[:, 0].any()
    for label in range(tokenizer.vocab_size):
        labels = torch.full((size,), label)
        assert torch.equal(table.advance(every, labels).node, lookup.advance(every, labels).node)
    assert torch.equal(table.advance(every, torch.zeros(size, dtype=torch.int64)).node, every.node)


def test_shapes_and_an_empty_batch() -> None:
    tokenizer, _ = characters("")
    for entries in (10**6, 0):
        scorer = PhraseBiasing(tokenizer, [[Phrase("art", 3.0)]], table_entries=entries)
        for batch in (0, 1, 5):
            state = scorer.initial_state(batch)
            assert scorer.score(state).shape == (batch, tokenizer.vocab_size)
            assert scorer.score(state).dtype == scorer.end(state).dtype == torch.float32
            assert scorer.end(state).shape == (batch,)
            assert states.batch_size(scorer.advance(state, torch.ones(batch, dtype=torch.int64))) == batch


def test_what_a_caller_does_to_scores_stays_with_the_caller() -> None:
    tokenizer, labels = characters("art")
    scorer = PhraseBiasing(tokenizer, [[Phrase("art", 3.0)]])
    scorer.score(scorer.initial_state(1)).fill_(7.0)
    scorer.initial_state(1).node.fill_(2)
    assert gains(scorer, labels) == [1.0, 1.0, 1.0, 0.0]


def test_phrases_that_cannot_be_used() -> None:
    tokenizer, _ = characters("")
    with pytest.raises(TokenError, match=r"m.txt:3: the model cannot write 'café': .*'é' \(U\+00E9\)"):
        PhraseBiasing(tokenizer, [[Phrase("café", 1.0, "m.txt:3")]])
    with pytest.raises(HotwordsError, match="'art': expected different phrases"):
        PhraseBiasing(tokenizer, [[Phrase("art", 1.0), Phrase("dog"), Phrase("art", 2.0)]])
    huge = [Phrase(f"{'a' * (i // 900)} {'b' * (i % 900)} c") for i in range(1, 5000)]
    with pytest.raises(HotwordsError, match=f"at most {MAX_CHARACTERS} characters in all lists"):
        PhraseBiasing(tokenizer, [huge])
