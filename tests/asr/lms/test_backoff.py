"""Weights that make a model whole: every context's words have probability 1 together."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from asr.errors import ConfigError
from asr.lms.arpa import read_arpa
from asr.lms.backoff import Backoff, Order, check_name, chosen, orders_of, weigh, whole, write_arpa
from asr.lms.ngram import NgramModel
from asr.lms.trie import build_trie

WORDS = ["<s>", "</s>", "<unk>", "a", "b", "c"]


def tables(path: Path):
    """Of every order n-gram to (log10 probability, log10 weight), as the conftest's models are."""
    arpa = read_arpa(path)
    return [
        {
            tuple(arpa.words[i] for i in words): (float(p), float(b))
            for words, p, b in zip(part.words.tolist(), part.log10, part.backoff, strict=True)
        }
        for part in arpa.sections
    ]


def histories(words, order: int):
    return (h for n in range(order) for h in itertools.product(words, repeat=n))


def total(arpas, ngrams, history) -> float:
    return sum(10 ** arpas.log10(ngrams, history, g[0]) for g in ngrams[0])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_model_that_is_whole_stays_as_it_is(tmp_path: Path, arpas, order: int) -> None:
    ngrams = arpas.whole(order, WORDS, 60, seed=order)
    for history in histories(WORDS, order):
        assert total(arpas, ngrams, history) == pytest.approx(1)
    arpa = read_arpa(arpas.write(tmp_path / "lm.arpa", ngrams))
    write_arpa(whole(arpa, arpa.words).model, tmp_path / "again.arpa")
    again = tables(tmp_path / "again.arpa")
    for history in histories(WORDS, order):
        for word in WORDS[1:]:  # all but <s>
            expected = arpas.log10(ngrams, history, word)
            assert arpas.log10(again, history, word) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_any_model_becomes_whole(tmp_path: Path, arpas, seed: int) -> None:
    """Sums of any size, weights of any size, contexts and shorter n-grams that are not listed."""
    ngrams = arpas.make(4, WORDS, 40, seed)
    arpa = read_arpa(arpas.write(tmp_path / "lm.arpa", ngrams))
    weighed = whole(arpa, arpa.words)
    write_arpa(weighed.model, tmp_path / "whole.arpa")
    found = tables(tmp_path / "whole.arpa")
    for history in histories(WORDS, 4):
        assert total(arpas, found, history) == pytest.approx(1, abs=1e-5)
    alone = sum(10**p for p, _ in ngrams[0].values())
    for n, part in enumerate(ngrams):
        for g, (log_p, _) in part.items():
            listed = [h for h in found[n] if h[:-1] == g[:-1]]
            if not part.keys() >= {*listed} or (n and len(listed) == len(WORDS)):
                continue  # a context was put in, or all words are listed
            over = max(1.0, sum(10 ** part[h][0] for h in listed)) if n else alone
            assert found[n][g][0] == pytest.approx(log_p - math.log10(over), abs=1e-5)
    model = NgramModel.read(tmp_path / "whole.arpa")
    # The tables say what the trie says, and `lower` what is said without the first word.
    for n in range(1, 4):
        names = [(word,) for word in weighed.model.words]
        for order in weighed.model.orders[1 : n + 1]:
            names = [
                (*names[c], weighed.model.words[w]) for c, w in zip(order.context, order.word, strict=True)
            ]
        for g, lower in zip(names, weighed.lower[n], strict=True):
            expected = arpas.log10(found, g[1:-1], g[-1])
            assert math.log10(lower) == pytest.approx(expected, abs=1e-5)
    assert len(model.keys) == sum(len(order.word) for order in weighed.model.orders)
    assert np.array_equal(weighed.trie.keys, model.keys.numpy())
    assert np.array_equal(weighed.trie.suffix, model.suffix.numpy())


def test_tables_of_a_trie(tmp_path: Path, arpas) -> None:
    """Contexts that the file leaves out are there, with what backing off gives and no weight."""
    ngrams = [
        {("a",): (-0.5, -0.1), ("b",): (-0.25, 0)},
        {("a", "b"): (-0.125, -0.2)},
        {("b", "a", "a"): (-1, 0)},
    ]
    arpa = read_arpa(arpas.write(tmp_path / "lm.arpa", ngrams))
    one, two, three = orders_of(build_trie(arpa, 2), 2)
    assert np.log10(one.probability) == pytest.approx([-0.5, -0.25])
    assert np.log10(one.backoff) == pytest.approx([-0.1, 0])
    assert (two.context.tolist(), two.word.tolist()) == ([0, 1], [1, 0])
    assert np.log10(two.probability) == pytest.approx([-0.125, -0.5])
    assert np.log10(two.backoff) == pytest.approx([-0.2, 0])
    assert (three.context.tolist(), three.word.tolist(), three.backoff.tolist()) == ([1], [0], [1.0])


def test_all_words_are_listed() -> None:
    """Nothing is left to weigh: probabilities are divided by their sum."""
    one = Order(np.zeros(2, int), np.arange(2), np.array([0.3, 0.3]), np.ones(2))
    two = Order(np.zeros(2, int), np.arange(2), np.array([0.2, 0.3]), np.ones(2))
    found = weigh(Backoff(("a", "b"), (one, two))).model.orders
    assert found[0].probability == pytest.approx([0.5, 0.5])
    assert found[1].probability == pytest.approx([0.4, 0.6])


def test_orders_without_any_go() -> None:
    one = Order(np.zeros(2, int), np.arange(2), np.array([0.5, 0.5]), np.ones(2))
    two = Order(np.array([0, 1]), np.array([1, 1]), np.array([0.2, 0.3]), np.ones(2))
    model = Backoff(("a", "b"), (one, two))
    assert len(chosen(model, [np.ones(2, bool), np.zeros(2, bool)]).orders) == 1
    kept = chosen(model, [np.ones(2, bool), np.array([False, True])]).orders[1]
    assert (kept.context.tolist(), kept.word.tolist(), kept.probability.tolist()) == ([1], [1], [0.3])


def test_names() -> None:
    check_name(Path("a.arpa.gz"))
    with pytest.raises(ConfigError, match=r"a.txt: expected a name ending in .arpa"):
        check_name(Path("a.txt"))
