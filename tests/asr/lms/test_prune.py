"""Entropy pruning: relative entropies by enumeration over small vocabularies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from asr.errors import ConfigError
from asr.lms.arpa import read_arpa
from asr.lms.backoff import chosen, weigh, whole, write_arpa
from asr.lms.prune import PruneConfig, divergences, prune, prune_file
from tests.asr.lms.test_backoff import WORDS, histories, tables, total


def names_of(model):
    """The n-grams of every order, as words."""
    names, found = [()], []
    for order in model.orders:
        names = [(*names[c], model.words[w]) for c, w in zip(order.context, order.word, strict=True)]
        found.append(names)
    return found


@pytest.fixture
def weighed(tmp_path, arpas):
    arpa = read_arpa(arpas.write(tmp_path / "lm.arpa", arpas.whole(3, WORDS, 50, seed=3)))
    return whole(arpa, arpa.words)


def probability_of(arpas, ngrams, history) -> float:
    """p(h), `<s>` being as probable as `</s>`."""
    p = 1.0
    for i, word in enumerate(history):
        p *= 10 ** arpas.log10(ngrams, history[:i], "</s>" if word == "<s>" and i == 0 else word)
    return p


def test_divergences_are_relative_entropies(tmp_path, arpas, weighed) -> None:
    """Each n-gram that is no context taken out alone: what is said behind its context, before and after."""
    before, names = tables(tmp_path / "lm.arpa"), names_of(weighed.model)
    contexts = {g[:-1] for part in names for g in part}
    found, seen = divergences(weighed), 0
    for n in (1, 2):
        for at, g in enumerate(names[n]):
            if g in contexts:
                continue
            keep = [np.ones(len(part), bool) for part in names]
            keep[n][at] = False
            write_arpa(weigh(chosen(weighed.model, keep)).model, tmp_path / "without.arpa")
            after, entropy = tables(tmp_path / "without.arpa"), 0.0
            for word in WORDS[1:]:  # all but <s>
                p, q = (10 ** arpas.log10(model, g[:-1], word) for model in (before, after))
                entropy += p * math.log(p / q)
            expected = probability_of(arpas, before, g[:-1]) * entropy
            assert found[n][at] == pytest.approx(expected, rel=1e-3, abs=1e-7), g
            seen += expected > 1e-6
    assert seen > 20
    assert not found[0].any()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_what_is_left(tmp_path, arpas, weighed, share: float) -> None:
    """The most worthy are left, with all that they begin with; what is said of them stays, sums are 1."""
    names = names_of(weighed.model)
    sizes = [len(part) for part in names]
    count = sizes[0] + int(share * sum(sizes[1:]))
    path = tmp_path / "pruned.arpa"
    model = prune_file(tmp_path / "lm.arpa", path, PruneConfig(max_ngrams=count))
    left = {g for part in names_of(model) for g in part}
    assert len(left) == count
    assert {(word,) for word in WORDS} <= left
    assert all(g[:-1] in left for g in left if len(g) > 1)
    value = {
        g: d
        for part, values in zip(names, divergences(weighed), strict=True)
        for g, d in zip(part, values.tolist(), strict=True)
    }
    worth = {g: max(d for h, d in value.items() if h[: len(g)] == g) for g in value if len(g) > 1}
    dropped = [worth[g] for g in worth if g not in left]
    assert max(dropped) <= min(worth[g] for g in left if len(g) > 1)
    before, after = tables(tmp_path / "lm.arpa"), tables(path)
    for g in (g for g in left if g[-1] != "<s>"):
        assert after[len(g) - 1][g][0] == pytest.approx(before[len(g) - 1][g][0], abs=1e-5)
    for history in histories(WORDS, 3):
        assert total(arpas, after, history) == pytest.approx(1, abs=1e-5)
    # The threshold between what is left and what is not gives the same.
    bound = math.expm1((max(dropped) + min(worth[g] for g in left if len(g) > 1)) / 2)
    again = prune(weighed, PruneConfig(threshold=bound))
    assert {g for part in names_of(again) for g in part} == left


def test_nothing_and_all(weighed) -> None:
    sizes = [len(order.word) for order in weighed.model.orders]
    every = prune(weighed, PruneConfig(max_ngrams=sum(sizes) + 5))
    assert [len(order.word) for order in every.orders] == sizes
    words = prune(weighed, PruneConfig(threshold=1e9))
    assert [len(order.word) for order in words.orders] == sizes[:1]
    assert words.orders[0].probability == pytest.approx(weighed.model.orders[0].probability)


def test_an_ngram_that_says_what_backing_off_says_goes_first(tmp_path, arpas) -> None:
    half = math.log10(0.5)
    ngrams = [
        {("a",): (half, 0.0), ("b",): (half, 0.0)},
        {("a", "a"): (half, 0.0), ("b", "b"): (math.log10(0.9), 0.0)},
    ]
    arpa = read_arpa(arpas.write(tmp_path / "lm.arpa", ngrams))
    found = divergences(whole(arpa, arpa.words))
    # p(b) = 1/2 times 0.9 ln (0.9 / 0.5) + 0.1 ln (0.1 / 0.5)
    assert found[1] == pytest.approx([0, 0.5 * (0.9 * math.log(1.8) + 0.1 * math.log(0.2))], abs=1e-6)
    model = prune(whole(arpa, arpa.words), PruneConfig(threshold=1e-6))
    assert names_of(model)[1] == [("b", "b")]
    # Without "b b" perplexity is exp(0.184) times as large: 20.2 % larger.
    for threshold, orders in ((0.19, 2), (0.21, 1)):
        assert len(prune(whole(arpa, arpa.words), PruneConfig(threshold=threshold)).orders) == orders


def test_refusals(tmp_path, weighed) -> None:
    for values in ({}, {"threshold": 0.1, "max_ngrams": 5}):
        with pytest.raises(ValidationError, match="either a threshold or max_ngrams"):
            PruneConfig(**values)
    with pytest.raises(ConfigError, match=r"max_ngrams: expected at least 6, .*, found 5"):
        prune_file(tmp_path / "lm.arpa", tmp_path / "out.arpa", PruneConfig(max_ngrams=5))
    with pytest.raises(ConfigError, match=r"out: expected a name"):
        prune_file(tmp_path / "lm.arpa", tmp_path / "out", PruneConfig(threshold=0))
    assert not list(tmp_path.glob("*out*"))
