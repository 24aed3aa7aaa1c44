"""Mixtures, static and not: every distribution by enumeration over small vocabularies."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from asr.errors import ConfigError, DataError, ManifestError
from asr.lms.arpa import read_arpa
from asr.lms.backoff import write_arpa
from asr.lms.kneser_ney import KneserNeyConfig, train_kneser_ney
from asr.lms.mix import MixConfig, mix, mix_files
from asr.lms.mix_weights import tune_weights
from asr.lms.mixture import Mixture
from asr.lms.ngram import NgramModel
from tests.asr.lms.test_backoff import histories, tables, total

OPEN = ["<s>", "</s>", "<unk>", "a", "b", "c"]
CLOSED = ["<s>", "</s>", "b", "c", "d", "e"]
UNION = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"]
WEIGHTS = (0.3, 0.7)


@pytest.fixture
def pair(tmp_path, arpas):
    """A trigram that knows of unknown words, and a bigram that does not, of other words."""
    both = [arpas.whole(3, OPEN, 60, seed=1), arpas.whole(2, CLOSED, 16, seed=2)]
    return both, [arpas.write(tmp_path / f"{i}.arpa", each) for i, each in enumerate(both)]


def said(arpas, ngrams, history, word: str, union) -> float:
    """p(word | history) of one model, for a word of the union: the definition."""
    known = {g[0] for g in ngrams[0]}
    stand_in = "<unk>" if "<unk>" in known else None
    if stand_in is None:
        # Behind a word that is not known nothing is known but what comes later.
        at = max((i + 1 for i, w in enumerate(history) if w not in known), default=0)
        history = history[at:]
    history = [w if w in known else "<unk>" for w in history]
    if word in known and word != "<unk>":
        return 10 ** arpas.log10(ngrams, history, word)
    if stand_in is None:
        return 0.0
    return 10 ** arpas.log10(ngrams, history, "<unk>") / len(
        [w for w in union if w not in known or w == "<unk>"]
    )


def mixture_says(arpas, models, weights, history, word, union) -> float:
    return sum(
        weight * said(arpas, model, history, word, union)
        for weight, model in zip(weights, models, strict=True)
    )


def test_listed_ngrams_are_the_sum_and_every_context_is_whole(tmp_path, arpas, pair) -> None:
    models, paths = pair
    mixed = mix_files(paths, tmp_path / "mixed.arpa", MixConfig(weights=WEIGHTS))
    assert mixed.model.words == tuple(UNION)
    assert mixed.weights == WEIGHTS
    found = tables(tmp_path / "mixed.arpa")
    for n, part in enumerate(found):
        listed = {g for model in models for g in model[min(n, len(model) - 1)] if len(g) == n + 1}
        assert set(part) == listed | ({("<unk>",)} if n == 0 else set())
        for g, (log_p, _) in part.items():
            if g != ("<s>",):
                expected = mixture_says(arpas, models, WEIGHTS, g[:-1], g[-1], UNION)
                assert 10**log_p == pytest.approx(expected, rel=2e-5), g
    for history in histories(UNION, 3):
        assert total(arpas, found, history) == pytest.approx(1, abs=1e-5)


def test_the_mixture_itself_is_whole(arpas, pair) -> None:
    """Also behind histories with words that a model does not know."""
    models, paths = pair
    mixture = Mixture([read_arpa(path) for path in paths])
    assert list(mixture.words) == UNION
    for history in histories(UNION, 3):
        for member, model in zip(mixture.members, models, strict=True):
            context = np.zeros(1, int)
            for word in history:
                context = member.step(context, np.array([UNION.index(word)])).context
            step = member.step(np.repeat(context, len(UNION)), np.arange(len(UNION)))
            assert np.exp(step.log_prob).sum() == pytest.approx(1, abs=1e-5)
            expected = [said(arpas, model, list(history), word, UNION) for word in UNION]
            assert np.exp(step.log_prob) == pytest.approx(expected, abs=1e-6)


def test_unknown_words_share_by_hand(tmp_path, arpas) -> None:
    """One knows a and half a chance of others, the other b, c, d: those and the rest share it."""
    half, third = math.log10(1 / 2), math.log10(1 / 3)
    one = arpas.write(tmp_path / "one.arpa", [{("a",): (half, 0), ("<UNK>",): (half, 0)}])
    two = arpas.write(tmp_path / "two.arpa", [{("b",): (third, 0), ("c",): (third, 0), ("d",): (third, 0)}])
    model = mix(Mixture([read_arpa(one), read_arpa(two)]), (0.5, 0.5))
    assert model.words == ("<unk>", "a", "b", "c", "d")
    shared = 1 / 16 + 1 / 6
    assert model.orders[0].probability == pytest.approx([1 / 16, 1 / 4, shared, shared, shared])


def test_without_unknown_words(tmp_path, arpas) -> None:
    """No model has <unk>: neither has the mixture, until words are left out."""
    path = arpas.write(tmp_path / "closed.arpa", arpas.whole(3, CLOSED, 40))
    mixed = mix_files([path, path], tmp_path / "two.arpa", MixConfig())
    assert mixed.model.words == tuple(sorted(CLOSED, key=lambda w: (w[0] != "<", "/" in w, w)))
    assert NgramModel.read(tmp_path / "two.arpa").closed
    few = mix_files([path, path], tmp_path / "few.arpa", MixConfig(max_words=2)).model
    assert few.words[:3] == ("<unk>", "<s>", "</s>")
    assert len(few.words) == 5


@pytest.mark.parametrize("by_file", [False, True])
def test_words_that_are_left_out(tmp_path, arpas, pair, by_file: bool) -> None:
    _, paths = pair
    out, every = tmp_path / "few.arpa", tmp_path / "all.arpa"
    mix_files(paths, every, MixConfig(weights=WEIGHTS))
    all_tables = tables(every)
    plain = sorted("abcde", key=lambda word: -all_tables[0][word,][0])
    keep = sorted(plain[:2]) if not by_file else ["a", "e"]
    (tmp_path / "words").write_text("a\ne \nother\n")
    if by_file:
        mix_files(paths, out, MixConfig(weights=WEIGHTS), vocabulary=tmp_path / "words")
    else:
        mix_files(paths, out, MixConfig(weights=WEIGHTS, max_words=2))
    found = tables(out)
    kept = {"<unk>", "<s>", "</s>", *keep}
    assert {g[0] for g in found[0]} == kept
    for n, part in enumerate(found[1:], 1):
        assert set(part) == {g for g in all_tables[n] if set(g) <= kept}
        for g in part:
            assert part[g][0] == pytest.approx(all_tables[n][g][0], abs=1e-5)
    unknown = sum(10 ** all_tables[0][word,][0] for word in {*"abcde"} - {*keep})
    assert 10 ** found[0]["<unk>",][0] == pytest.approx(unknown + 10 ** all_tables[0]["<unk>",][0], rel=1e-5)
    for history in histories(sorted(kept), 3):
        assert total(arpas, found, history) == pytest.approx(1, abs=1e-5)


def texts(seed: int, favourites: str):
    rng = np.random.default_rng(seed)
    p = np.array([4.0 if word in favourites else 1.0 for word in "abcdefgh"])
    return [[*rng.choice([*"abcdefgh"], size=rng.integers(1, 9), p=p / p.sum())] for _ in range(80)]


@pytest.fixture
def trained(tmp_path):
    paths = [tmp_path / "one.arpa", tmp_path / "two.arpa"]
    for path, seed, favourites in zip(paths, (1, 2), ("abc", "efg"), strict=True):
        write_arpa(train_kneser_ney(texts(seed, favourites), KneserNeyConfig(order=3)), path)
    return paths


def test_weights_are_the_best_and_the_static_form_is_as_good(tmp_path, arpas, trained) -> None:
    held_out = [*texts(3, "abc"), *texts(4, "efg")[:20], ["a", "zebra", "b"]]
    text = tmp_path / "dev.txt"
    text.write_text("".join(" ".join(sentence) + "\n" for sentence in held_out))
    mixed = mix_files(trained, tmp_path / "mixed.arpa", MixConfig(), tune=text)
    models = [tables(path) for path in trained]
    union = sorted({g[0] for model in models for g in model[0]})

    # What each model says, by its definition; zebra, which none knows, does not count.
    rows = []
    for sentence in held_out:
        words = ["<s>", *sentence, "</s>"]
        rows += [
            [said(arpas, model, words[max(0, i - 2) : i], words[i], union) for model in models]
            for i in range(1, len(words))
            if words[i] in union
        ]
    p = np.array(rows)
    grid = np.linspace(0.001, 0.999, 999)
    likelihoods = np.log(p @ np.stack([grid, 1 - grid])).mean(0)
    assert mixed.tuned is not None
    assert mixed.weights == mixed.tuned.weights
    assert mixed.weights[0] == pytest.approx(grid[likelihoods.argmax()], abs=2e-3)
    assert sum(mixed.weights) == pytest.approx(1)
    assert mixed.tuned.tokens == len(rows)
    assert mixed.tuned.perplexity == pytest.approx(math.exp(-likelihoods.max()), rel=1e-5)

    model = NgramModel.read(tmp_path / "mixed.arpa")
    log_p = [q for sentence in held_out[:-1] for q in model.log_prob(sentence)]
    assert math.exp(-sum(log_p) / len(log_p)) == pytest.approx(mixed.tuned.perplexity, rel=0.02)


def test_words_that_no_model_knows_say_nothing(tmp_path, trained) -> None:
    mixture = Mixture([read_arpa(path) for path in trained])
    one = tune_weights(mixture, [["a", "b"]])
    assert tune_weights(mixture, [["a", "b", "zebra"]]).tokens == one.tokens == 3
    closed = tmp_path / "closed.arpa"
    closed.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n0 a\n\n\\end\\\n")
    alone = Mixture([read_arpa(closed)])
    assert tune_weights(alone, [["a", "b"]]).perplexity == pytest.approx(1)
    with pytest.raises(DataError, match="expected words that one of the models knows"):
        tune_weights(alone, [["b"]])


def test_the_same_model_twice_is_that_model(tmp_path, trained) -> None:
    mix_files([trained[0]] * 2, tmp_path / "mixed.arpa", MixConfig())
    one, two = tables(trained[0]), tables(tmp_path / "mixed.arpa")
    for a, b in zip(one, two, strict=True):
        assert Counter(a) == Counter(b) or set(a) == set(b)
        for g, (log_p, weight) in a.items():
            assert b[g] == pytest.approx((log_p, weight), abs=2e-5)


def test_refusals(tmp_path, trained) -> None:
    out = tmp_path / "out.arpa"
    with pytest.raises(ValidationError, match=r"expected weights above 0 that sum to 1, found \[0.5, 0.6\]"):
        MixConfig(weights=(0.5, 0.6))
    with pytest.raises(ValidationError, match="above 0"):
        MixConfig(weights=(1.0, 0.0))
    with pytest.raises(ConfigError, match=r"a weight for each of 2 models, .*, found 1 weights$"):
        mix_files(trained, out, MixConfig(weights=(1.0,)))
    with pytest.raises(ConfigError, match=r"found 2 weights and a text"):
        mix_files(trained, out, MixConfig(weights=WEIGHTS), tune=trained[0])
    with pytest.raises(ConfigError, match=r"out.txt: expected a name ending in .arpa"):
        mix_files(trained, tmp_path / "out.txt", MixConfig())
    with pytest.raises(ManifestError, match="absent: expected a file"):
        mix_files(trained, out, MixConfig(), vocabulary=tmp_path / "absent")
    (tmp_path / "words").write_text("zebra\n")
    with pytest.raises(ConfigError, match="found none of the models' in the vocabulary"):
        mix_files(trained, out, MixConfig(), vocabulary=tmp_path / "words")
    with pytest.raises(ConfigError, match="at least one language model"):
        Mixture([])
    assert not out.exists()
