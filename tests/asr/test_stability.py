"""How often shown words change: by hand, and watched in a stream against all of its texts."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from asr.live import SHOWN_TOKENS, ShownWords, feed, shown_text
from asr.model_directory import load_model
from asr.recognizer import Recognizer
from asr.score.stability import Change, Stability, compare
from asr.search import SearchConfig
from asr.search.fusion import Fusion, Weighted
from asr.session import Event
from asr.text.tokenizer import TokenizerConfig, train_tokenizer
from tests.asr.bigram import Bigram


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "a b", (0, 0)),
        ("a b", "a b c", (0, 0)),
        ("a b", "a c", (1, 0)),
        ("a b c", "a x b c", (0, 0)),  # they only moved
        ("a b c", "a c", (1, 0)),
        ("a b c", "", (3, 0)),
        ("a th", "a the b", (0, 1)),
        ("th a", "the a", (1, 0)),  # only the last word may grow
        ("a th", "b the", (1, 1)),
        ("a the", "a th", (1, 0)),
        ("a b a", "a a b", (1, 0)),
    ],
)
def test_two_texts(before: str, after: str, expected: tuple[int, int]) -> None:
    assert compare(before.split(), after.split()) == Change(*expected)


def test_ratios() -> None:
    one = Stability(final=8, changed=2, grown=1, utterances=1, unstable=1)
    both = one + Stability(final=4, utterances=1)
    assert both.share == pytest.approx(2 / 14)
    assert both.unstable_partial_word_ratio == pytest.approx(2 / 12)
    assert both.lines() == [
        "shown words that changed 14.3 % (2 / 14), unstable partial word ratio 0.167, "
        "in 1 of 2 utterances; 1 words grew"
    ]
    assert Stability().lines() == []


def in_full(texts: list[str]) -> Stability:
    changes = [compare(a.split(), b.split()) for a, b in pairwise(texts)]
    changed = sum(change.changed for change in changes)
    return Stability(len(texts[-1].split()), changed, sum(c.grown for c in changes), 1, int(changed > 0))


def event(labels: list[int], settled: int, kind: str = "partial") -> Event:
    return Event(kind, lambda: None, settled=settled, labels=lambda start: labels[start:])  # type: ignore


def test_only_the_end_of_a_stream_is_looked_at_and_nothing_missed() -> None:
    """Letters, of which those behind a growing settled part are thought again and again."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["ab cb"])
    letters = list(range(1, tokenizer.vocab_size))
    rng, total, expected, longest = random.Random(1), Stability(), Stability(), 0
    for _ in range(40):
        shown, settled, texts, said = ShownWords(tokenizer), 0, [], list[int]()
        asked = []
        for _ in range(30):
            settled += rng.randint(0, max(0, min(3, len(said) - settled)))
            said = said[: settled + rng.randint(0, 4)] + rng.choices(letters, k=rng.randint(0, 4))
            texts.append(tokenizer.decode(said))
            asked.append(event(list(said), settled))
            shown.see(asked[-1])
            longest = max(longest, len(shown._words))
        again = rng.random() < 0.5
        if again:
            said = [
                label if rng.random() < 0.8 else rng.choice(letters) for label in said[rng.randint(0, 2) :]
            ]
        texts.append(tokenizer.decode(said))
        shown.see(replace(event(said, len(said), "final"), heard_again=again))
        total, expected = total + shown.stability, expected + in_full(["", *texts])
    assert total == expected
    assert total.changed > 50
    assert total.grown > 50
    assert longest < 12


def test_of_a_long_utterance_the_end_is_shown() -> None:
    """Whole words, however long it has become, and no more labels than that are asked for."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["ab cb"])
    rng, said, asked = random.Random(0), list[int](), list[int]()
    for number in range(300):
        said += rng.choices(range(1, tokenizer.vocab_size), k=5)
        settled = max(0, len(said) - rng.randint(0, 30))
        shown = shown_text(event(list(said), settled), tokenizer)
        whole = tokenizer.decode(said)
        if settled <= SHOWN_TOKENS:
            assert shown == whole
            continue
        asked.append(number)
        assert shown.startswith("… ")
        assert whole.endswith(f" {shown[2:]}")
        assert SHOWN_TOKENS / 2 < len(tokenizer.encode(shown[2:])) <= SHOWN_TOKENS + 30
    assert len(asked) > 200
    one_word = tokenizer.encode("a" * 1000)
    assert shown_text(event(one_word, len(one_word)), tokenizer) == "…"


def test_utterances_begin_anew() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="word"), ["a b c"])
    a, b, c = (tokenizer.encode(word)[0] for word in "abc")
    shown = ShownWords(tokenizer)
    for labels, kind in (([a, b], "partial"), ([a, b], "final"), ([c], "partial"), ([b], "final")):
        shown.see(event(labels, 0, kind))
    assert shown.stability == Stability(final=3, changed=1, grown=0, utterances=2, unstable=1)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_live_stream(method, make_model, speech_like) -> None:
    """The texts that were made of all labels say the same; what greedy search has said stays."""
    changed = 0
    for seed in range(2):
        model = load_model(make_model(seed=seed), "cpu")
        vocab = model.tokenizer.vocab_size
        scorer = (
            Fusion(vocab, [Weighted(Bigram(8 * torch.randn(vocab, vocab)))]) if method == "beam" else None
        )
        search = SearchConfig(method=method, beam=8, max_symbols=3)
        recognizer = Recognizer(model, search, scorer)
        samples = speech_like(3.0, seed=seed)
        chunks = [samples[i : i + 800] for i in range(0, len(samples), 800)]
        shown, texts = ShownWords(recognizer.tokenizer), [""]
        for update in feed(recognizer, chunks, recognizer.sample_rate):
            shown.see(update.event)
            texts.append(update.transcript.text)
        assert len(texts) > 5
        assert shown.stability == in_full(texts)
        changed += shown.stability.changed
    assert changed == 0 or method == "beam"
