"""Modified Kneser-Ney: by hand, from the definition, and beside kenlm's lmplz where it is installed."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import shutil
import subprocess
from collections import Counter, defaultdict

import numpy as np
import pytest
from pydantic import ValidationError

from asr.errors import DataError
from asr.lms.backoff import write_arpa
from asr.lms.kneser_ney import (
    FALLBACK,
    MAX_ORDER,
    KneserNeyConfig,
    _discounts,
    train_kneser_ney,
)


def read(path):
    """{n-gram: (log10 probability, log10 weight or 0)} and the sizes of the header."""
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().split("\n")
    assert lines[0] == "\\data\\"
    assert lines[-3:] == ["", "\\end\\", ""]
    sizes = [int(line.split("=")[1]) for line in lines if line.startswith("ngram ")]
    rows = [line.split("\t") for line in lines if "\t" in line]
    names = [tuple(row[1].split(" ")) for row in rows]
    values = [(float(row[0]), float(row[2]) if len(row) > 2 else 0.0) for row in rows]
    grams = dict(zip(names, values, strict=True))
    assert len(grams) == len(rows) == sum(sizes)
    assert [sum(len(g) == n for g in grams) for n in range(1, len(sizes) + 1)] == sizes
    return grams


def trained(tmp_path, sentences, **config):
    model = train_kneser_ney(sentences, KneserNeyConfig(**config))
    write_arpa(model, tmp_path / "lm.arpa")
    return model, read(tmp_path / "lm.arpa")


def probability(grams, context, word):
    """p(word | context) by backing off."""
    if (*context, word) in grams:
        return 10 ** grams[(*context, word)][0]
    assert context, word
    return 10 ** grams.get(tuple(context), (0, 0.0))[1] * probability(grams, context[1:], word)


def text(seed, sentences=60, words="abcdefg"):
    """Sentences of words that are as frequent as 1 / rank."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(words) + 1)
    return [
        [words[i] for i in rng.choice(len(words), size=rng.integers(0, 9), p=weights / weights.sum())]
        for _ in range(sentences)
    ]


def test_by_hand(tmp_path):
    """Two sentences, "a b" and "a b a", order 2.

    Bigrams: `<s> a` 2, `a b` 2, `b </s>` 1, `b a` 1, `a </s>` 1. Different labels before a: `<s>`, b;
    before b: a; before `</s>`: b, a. No n-gram has a count of 3, so D is 0.5, 1, 1.5 for both orders.
    V: a, b, `</s>`, `<unk>`.

    Unigrams, 5 in all: g = (1 + 0.5 + 1) / 5 = 0.5, of which each of V has 0.5 / 4 = 0.125;
        a, `</s>`: (2 - 1) / 5 + 0.125 = 0.325      b: (1 - 0.5) / 5 + 0.125 = 0.225      `<unk>`: 0.125
    After `<s>`, seen 2: g = 1 / 2;              a: (2 - 1) / 2 + 0.5 * 0.325 = 0.6625
    After a, seen 3: g = (1 + 0.5) / 3 = 0.5;    b: (2 - 1) / 3 + 0.5 * 0.225
                                                 `</s>`: (1 - 0.5) / 3 + 0.5 * 0.325
    After b, seen 2: g = (0.5 + 0.5) / 2 = 0.5;  a, `</s>`: (1 - 0.5) / 2 + 0.5 * 0.325 = 0.4125
    """
    model, grams = trained(tmp_path, [["a", "b"], ["a", "b", "a"]], order=2)
    half = math.log10(0.5)
    expected = {
        "<unk>": (0.125, 0), "a": (0.325, half), "b": (0.225, half), "</s>": (0.325, 0),
        "<s> a": (0.6625, 0), "a b": (1 / 3 + 0.1125, 0), "a </s>": (1 / 6 + 0.1625, 0),
        "b a": (0.4125, 0), "b </s>": (0.4125, 0),
    }  # fmt: skip
    assert grams.pop(("<s>",)) == (-99, pytest.approx(half, rel=1e-6))
    assert {" ".join(gram): value for gram, value in grams.items()} == {
        gram: pytest.approx((math.log10(p), weight), rel=1e-6) for gram, (p, weight) in expected.items()
    }
    assert model.fallbacks == (1, 2)
    assert model.discounts == (FALLBACK, FALLBACK)
    assert (model.sentences, model.tokens, model.unknown) == (2, 5, 0)


def test_discounts_of_counts_of_counts():
    """t = 5, 2, 1, 1: Y = 5 / 9, D1 = 1 - 2 Y 2/5, D2 = 2 - 3 Y 1/2, D3 = 3 - 4 Y 1/1."""
    counts = [1] * 5 + [2] * 2 + [3, 4, 9, 0]
    assert _discounts(np.array(counts)) == pytest.approx((5 / 9, 7 / 6, 7 / 9))
    assert _discounts(np.array([1, 2, 3, 9])) == pytest.approx((1 / 3, 1, 3))  # without a 4


@pytest.mark.parametrize(
    "counts",
    [[], [2, 3, 4], [1, 3, 4], [1, 2, 4], [1, 2, *[3] * 9, 4], [1, 2, 3, *[4] * 9], [1, 2, 3, 3]],
    ids=["none", "no 1", "no 2", "no 3", "D2 below 0", "D3 below 0", "D2 of 0"],
)
def test_counts_without_discounts(counts):
    assert _discounts(np.array(counts, dtype=np.int64)) is None


class Definition:
    """The equations with dictionaries, one n-gram after the other."""

    def __init__(self, sentences, order, thresholds=None):
        padded = [["<s>", *sentence, "</s>"] for sentence in sentences]
        self.thresholds = thresholds or [0] * order
        self.vocabulary = {"<unk>", "</s>"}.union(*sentences)
        self.seen = Counter(
            tuple(p[end - n : end])
            for p in padded
            for n in range(1, order + 1)
            for end in range(max(n, 2), len(p) + 1)
        )
        before = defaultdict(set)
        for gram in self.seen:
            before[gram[1:]].add(gram[0])
        self.a = {
            gram: count if len(gram) == order or gram[0] == "<s>" else len(before[gram])
            for gram, count in self.seen.items()
        }
        self.after = defaultdict(list)
        for gram in self.a:
            self.after[gram[:-1]].append(gram)
        self.discounts = [self._discounts(n) for n in range(1, order + 1)]

    def _discounts(self, n):
        t = Counter(a for gram, a in self.a.items() if len(gram) == n)
        if not t[1] or not t[2] or not t[3]:
            return FALLBACK
        y = t[1] / (t[1] + 2 * t[2])
        d = 1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3]
        return d if all(0 < d[k] <= k + 1 for k in range(3)) else FALLBACK

    def kept(self, gram):
        return len(gram) == 1 or self.seen.get(gram, 0) > self.thresholds[len(gram) - 1]

    def _taken(self, gram):
        a = self.a[gram]
        return self.discounts[len(gram) - 1][min(a, 3) - 1] if self.kept(gram) else a

    def weight(self, context):
        grams = self.after.get(context, [])
        return sum(map(self._taken, grams)) / sum(self.a[gram] for gram in grams) if grams else 1.0

    def probability(self, context, word):
        gram = (*context, word)
        total = sum(self.a[each] for each in self.after.get(context, []))
        own = (self.a[gram] - self._taken(gram)) / total if gram in self.a else 0.0
        lower = self.probability(context[1:], word) if context else 1 / len(self.vocabulary)
        return own + self.weight(context) * lower


@pytest.mark.parametrize(
    ("order", "prune", "seed"),
    [(1, (), 0), (2, (), 1), (3, (), 2), (4, (), 3), (3, (0, 1), 4), (4, (0, 0, 1, 2), 5), (2, (0, 99), 6)],
)
def test_the_definition(tmp_path, order, prune, seed):
    sentences = text(seed)
    model, grams = trained(tmp_path, sentences, order=order, prune=prune)
    thresholds = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
    by_definition = Definition(sentences, order, thresholds)
    for n, discounts in enumerate(by_definition.discounts):
        assert model.discounts[n] == pytest.approx(discounts), n + 1
    assert order == 1 or model.fallbacks != tuple(range(1, order + 1))
    expected = {gram for gram in by_definition.seen if by_definition.kept(gram)} | {("<unk>",), ("<s>",)}
    assert set(grams) == expected
    for gram, (p, weight) in grams.items():
        if gram != ("<s>",):
            assert 10**p == pytest.approx(by_definition.probability(gram[:-1], gram[-1]), rel=2e-6), gram
        if len(gram) < order:
            assert 10**weight == pytest.approx(by_definition.weight(gram), rel=2e-6), gram
        else:
            assert weight == 0


@pytest.mark.parametrize("config", [{}, {"prune": (0, 0, 2)}, {"max_words": 3}])
def test_every_context_sums_to_one(tmp_path, config):
    """Contexts that were seen or not, `<unk>` among them."""
    _, grams = trained(tmp_path, text(7), order=3, **config)
    labels = {gram[0] for gram in grams if len(gram) == 1}
    for context in itertools.product(sorted(labels - {"</s>"}), repeat=2):
        total = sum(probability(grams, context, word) for word in labels - {"<s>"})
        assert total == pytest.approx(1, abs=2e-6), context


def test_the_longest_order_and_sentences_that_are_shorter(tmp_path):
    sentences = [[], ["a"], ["a", "b"], list("abracadabra") * 2]
    model, grams = trained(tmp_path, sentences, order=MAX_ORDER)
    assert max(map(len, grams)) == MAX_ORDER == len(model.orders)
    assert ("<s>", "</s>") in grams
    assert not any(word == "<s>" for gram in grams for word in gram[1:])
    by_definition = Definition(sentences, MAX_ORDER)
    for gram in (g for g in grams if len(g) == MAX_ORDER):
        expected = by_definition.probability(gram[:-1], gram[-1])
        assert 10 ** grams[gram][0] == pytest.approx(expected, rel=2e-6)


def test_only_empty_sentences(tmp_path):
    _, grams = trained(tmp_path, [[], []], order=3)
    assert set(grams) == {("<unk>",), ("<s>",), ("</s>",), ("<s>", "</s>")}
    assert probability(grams, (), "</s>") + probability(grams, (), "<unk>") == pytest.approx(1)


def test_the_order_of_sentences_is_of_no_matter(tmp_path):
    sentences = text(8)
    trained(tmp_path, sentences, order=3)
    first = (tmp_path / "lm.arpa").read_bytes()
    trained(tmp_path, iter(sentences[::-1]), order=3)
    assert (tmp_path / "lm.arpa").read_bytes() == first


def test_words_beyond_the_limit_are_unknown(tmp_path):
    """c and d are as frequent: the alphabet decides. What is left out counts as the word `<unk>`."""
    sentences = [["a", "b", "c"], ["a", "b", "d"], ["a", "d", "c"]]
    model, grams = trained(tmp_path, sentences, order=2, max_words=3)
    assert model.words == ("<unk>", "<s>", "</s>", "a", "b", "c")
    assert model.unknown == 2
    spelled = [["<unk>" if word == "d" else word for word in sentence] for sentence in sentences]
    _, same = trained(tmp_path, spelled, order=2)
    assert grams == same
    assert ("<unk>", "</s>") in grams


def test_words_that_no_sentence_has(tmp_path):
    model = train_kneser_ney(text(9), KneserNeyConfig(order=2), vocabulary=["z", "a"])
    write_arpa(model, tmp_path / "lm.arpa")
    grams = read(tmp_path / "lm.arpa")
    assert grams[("z",)] == grams[("<unk>",)]
    words = [gram[0] for gram in grams if len(gram) == 1 and gram != ("<s>",)]
    assert sum(probability(grams, ("a",), word) for word in words) == pytest.approx(1)


def test_gzip_by_name_and_the_same_bytes(tmp_path):
    model, grams = trained(tmp_path, [["ä", "▁b"]], order=2)
    for name in ("one.arpa.gz", "two.arpa.gz"):
        write_arpa(model, tmp_path / name)
    assert read(tmp_path / "one.arpa.gz") == grams
    assert (tmp_path / "one.arpa.gz").read_bytes() == (tmp_path / "two.arpa.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm.arpa", "one.arpa.gz", "two.arpa.gz"]


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ([], "expected at least one sentence"),
        ([["a", "<s>"]], "expected sentences without <s> and </s>"),
        ([["</s>"]], "expected sentences without <s> and </s>"),
        ([["a b"]], "expected words without white space.*'a b'"),
        ([["a", ""]], "expected words without white space.*''"),
    ],
)
def test_sentences_that_cannot_be_counted(sentences, message):
    with pytest.raises(DataError, match=message):
        train_kneser_ney(sentences, KneserNeyConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"order": 0}, "greater than or equal to 1"),
        ({"order": 17}, "less than or equal to 16"),
        ({"prune": (0, 2, 1)}, "do not fall in prune, found"),
        ({"prune": (1,)}, "prune begins with 0: single words are left out by max_words"),
        ({"order": 2, "prune": (0, 0, 1)}, "at most 2 numbers in prune, found 3"),
        ({"max_words": 0}, "greater than or equal to 1"),
    ],
)
def test_configurations_that_cannot_work(config, message):
    with pytest.raises(ValidationError, match=message):
        KneserNeyConfig(**config)


LMPLZ = os.environ.get("LMPLZ") or shutil.which("lmplz")


@pytest.mark.skipif(LMPLZ is None, reason="kenlm's lmplz is not on PATH, nor named by LMPLZ")
@pytest.mark.parametrize("prune", [(), (0, 0, 1)])
def test_beside_lmplz(tmp_path, prune):
    rng = np.random.default_rng(10)
    words = [a + b for a in "bcdfghjklmnp" for b in "aeiou"]
    sentences = text(11, 3000, words)
    sentences += [[str(n) for n in rng.integers(0, 3000, 6)] for _ in range(300)]  # rare words
    _, grams = trained(tmp_path, sentences, order=3, prune=prune)
    (tmp_path / "text").write_text("".join(" ".join(sentence) + "\n" for sentence in sentences))
    command = [str(LMPLZ), "-o", "3", "-S", "100M", "-T", str(tmp_path), "--text", str(tmp_path / "text")]
    command += ["--arpa", str(tmp_path / "peer.arpa"), *(["--prune", *map(str, prune)] if prune else [])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    peer = read(tmp_path / "peer.arpa")
    assert set(peer) == set(grams)
    del grams[("<s>",)]
    for gram, (p, weight) in grams.items():
        assert peer[gram] == pytest.approx((p, weight), abs=3e-6), gram
