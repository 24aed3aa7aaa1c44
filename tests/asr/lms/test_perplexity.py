"""Perplexity: sums over batches against one sentence at a time, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asr.errors import ConfigError, DataError, ManifestError
from asr.lms import perplexity
from asr.lms.backoff import write_arpa
from asr.lms.kneser_ney import KneserNeyConfig, train_kneser_ney
from asr.lms.ngram import NgramModel
from asr.lms.perplexity import Prediction, predict, text_perplexities
from asr.lms.sentences import Sentence, Sentences
from asr.text.tokenizer import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    rng = np.random.default_rng(0)
    sentences = [list(rng.choice(list("abcde"), size=rng.integers(0, 8))) for _ in range(80)]
    write_arpa(train_kneser_ney([[str(w) for w in s] for s in sentences], KneserNeyConfig(order=3)), path)
    return NgramModel.read(path)


def test_by_hand(tmp_path):
    """Two unigrams and the end: p = 1/4, 1/4, 1/2, unknown 1/8; "a x b" has 3 tokens, 1 end, 6 characters."""
    log = {name: math.log10(p) for name, p in {"a": 0.25, "b": 0.25, "</s>": 0.5, "<unk>": 0.125}.items()}
    lines = "".join(f"{value}\t{name}\n" for name, value in log.items())
    (tmp_path / "lm.arpa").write_text(f"\\data\\\nngram 1=4\n\n\\1-grams:\n{lines}\n\\end\\\n")
    (tmp_path / "text").write_text("A x, b.\n\n")
    [found] = text_perplexities(NgramModel.read(tmp_path / "lm.arpa"), [tmp_path / "text"])
    p = found.prediction
    assert (p.sentences, p.tokens, p.unknown, p.ends, p.characters) == (1, 3, 1, 1, 6)
    assert p.perplexity == pytest.approx(2 ** ((2 + 3 + 2 + 1) / 4))
    assert p.perplexity_known == pytest.approx(2 ** ((2 + 2 + 1) / 3))
    assert p.unknown_rate == pytest.approx(1 / 3)
    assert p.bits_per_character == pytest.approx(8 / 6)


def test_batches_are_sentences_one_by_one(model, monkeypatch):
    """Of different lengths, empty ones among them, and words that the model does not know."""
    monkeypatch.setattr(perplexity, "BATCH", 7)
    rng = np.random.default_rng(1)
    sentences = [[str(w) for w in rng.choice(list("abcdez"), size=rng.integers(0, 12))] for _ in range(20)]
    sentences.insert(3, [])
    found = predict(model, (Sentence(" ".join(words), words) for words in sentences))
    scores = [model.log_prob(words) for words in sentences]
    known = [
        score
        for words, row in zip(sentences, scores, strict=True)
        for word, score in zip([*words, "</s>"], row, strict=True)
        if word != "z"
    ]
    assert found.log_prob == pytest.approx(sum(map(sum, scores)), rel=1e-6)
    assert found.log_prob_known == pytest.approx(sum(known), rel=1e-6)
    assert found.unknown == sum(words.count("z") for words in sentences) > 0
    assert (found.sentences, found.ends) == (21, 21)
    assert found.tokens == sum(map(len, sentences))


def test_a_model_without_unknown_words_or_ends(tmp_path):
    (tmp_path / "lm.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n0\ta\n\n\\end\\\n")
    closed = NgramModel.read(tmp_path / "lm.arpa")
    found = predict(closed, [Sentence("a b", ["a", "b"]), Sentence("a", ["a"])])
    assert found.perplexity == math.inf == found.bits_per_character
    assert found.perplexity_known == 1
    assert found.ends == 0
    assert predict(closed, [Sentence("b", ["b"])]).perplexity_known == 1  # of nothing


def test_a_perplexity_beyond_numbers():
    assert Prediction(tokens=1, log_prob=-1e6).perplexity == math.inf


def test_letters_and_lines_that_cannot_be_written(tmp_path):
    train_tokenizer(TokenizerConfig(), ["abc de"]).save(tmp_path)
    from asr.text.tokenizer import load_tokenizer

    (tmp_path / "text").write_text("A b\nxyz\n\nb2\n")
    sentences = Sentences([tmp_path / "text"], tokenizer=load_tokenizer(tmp_path))
    for _ in range(2):
        assert list(sentences) == [Sentence("a b", ["a", "▁", "b"])]
        assert sentences.left_out == 2
        assert f"{tmp_path / 'text'}:2: the tokenizer has no symbol 'x'" in sentences.first_left_out


@pytest.mark.parametrize(
    ("content", "normalization", "error", "message"),
    [
        (b"", "basic", DataError, "expected at least one sentence, found none"),
        (b"a\n<s>\n", "none", None, ":2: a sentence may not hold <s>"),
        (b"</s>\n", "none", DataError, "left out 1, the first at .*:1: a sentence may not hold </s>"),
        (b"fine\nnot \xff\n", "basic", ManifestError, r"text:2: expected UTF-8 text, found byte 4"),
        (b"a\n", "loud", ConfigError, "normalization: expected none, basic, english, found 'loud'"),
    ],
)
def test_texts_that_are_none(tmp_path, content, normalization, error, message):
    (tmp_path / "text").write_bytes(content)
    if error is None:
        sentences = Sentences([tmp_path / "text"], normalization)
        assert len(list(sentences.at_least_one())) == 1
        assert message in sentences.first_left_out
        return
    with pytest.raises(error, match=message):
        list(Sentences([tmp_path / "text"], normalization).at_least_one())
