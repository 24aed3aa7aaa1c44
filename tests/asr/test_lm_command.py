"""`asr lm`: n-grams of words and of a model's labels, and how well they predict."""

from __future__ import annotations

import gzip

import pytest
from typer.testing import CliRunner

from asr.cli.lm import app
from asr.errors import ConfigError, DataError, ManifestError, ModelError
from asr.lms.ngram import NgramModel
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

TEXT = "The cat sat.\nThe dog sat down!\n\nA cat, a dog.\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "text.txt").write_text(TEXT)
    train_tokenizer(TokenizerConfig(), ["the cat sat down a dog"]).save(tmp_path / "model")
    return tmp_path


def asr_lm(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_words(folder):
    out = asr_lm("train", "text.txt", "--out", "lm.arpa", "--order", 2)
    assert out.startswith("lm.arpa: 3 sentences, 11 tokens; 9 1-grams, 13 2-grams\n")
    assert "order 2: the counts gave no discounts (a small text, or few labels); took 0.5 1 1.5" in out
    assert NgramModel.read("lm.arpa").order == 2
    (folder / "other.txt").write_text("the bird sat\n")
    lines = asr_lm("perplexity", "lm.arpa", "text.txt", "other.txt").splitlines()
    titles = ["text", "sentences", "tokens", "OOV", "perplexity", "without", "OOV", "bits/character"]
    assert lines[0].split() == titles
    cells = [line.split() for line in lines[1:]]
    assert [cell[:5] for cell in cells] == [
        ["text.txt", "3", "11", "0.00", "%"],
        ["other.txt", "1", "3", "33.33", "%"],
        ["all", "4", "14", "7.14", "%"],
    ]
    assert cells[0][5] == cells[0][6]
    assert float(cells[1][5]) > float(cells[1][6])


def test_labels_of_a_model(folder):
    """A line that the tokenizer cannot write is left out; a label that no text has can be scored."""
    with gzip.open("more.txt.gz", "wt") as stream:
        stream.write("a dog sat\nno fox\n")
    out = asr_lm(
        "train", "text.txt", "more.txt.gz", "--out", "lm.arpa.gz", "--tokens", "model", "--prune", "0,0,1"
    )
    assert "lm.arpa.gz: 4 sentences" in out
    assert "left out: 1 lines, the first more.txt.gz:2: the tokenizer has no symbol 'f'" in out
    model = NgramModel.read("lm.arpa.gz")
    assert {"▁", "w", "t"} <= set(model.words)
    out = asr_lm("perplexity", "lm.arpa.gz", "more.txt.gz", "--tokens", "model")
    assert out.splitlines()[1].split()[:4] == ["more.txt.gz", "1", "9", "0.00"]
    assert "left out: 1 lines, the first more.txt.gz:2" in out


def test_most_frequent_words(folder):
    out = asr_lm("train", "text.txt", "--out", "lm.arpa", "--max-words", 2, "--normalization", "none")
    assert "11 tokens, 8 of them as <unk>" in out
    assert set(NgramModel.read("lm.arpa").words) == {"<unk>", "<s>", "</s>", "The", "A"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--out", "lm.txt"), ConfigError, "lm.txt: expected a name ending in .arpa or .arpa.gz"),
        (("--order", 17), ConfigError, "asr lm train: order: .*17"),
        (("--prune", "0,x"), ConfigError, "--prune 0,x: expected whole numbers with commas"),
        (("--prune", "2"), ConfigError, "prune begins with 0"),
        (("--tokens", "nowhere"), ModelError, "is nowhere a model directory"),
        (("--tokens", "model", "--max-words", 5), ConfigError, "max_words is for words"),
        (("--normalization", "loud"), ConfigError, "expected none, basic, english, found 'loud'"),
        (("empty.txt",), None, ""),
        (("absent.txt",), ManifestError, "absent.txt: expected a file, found nothing there"),
        (("bytes.txt",), ManifestError, "bytes.txt:2: expected UTF-8 text"),
    ],
)
def test_refusals_write_nothing(folder, arguments, error, message):
    (folder / "empty.txt").write_text("")
    (folder / "bytes.txt").write_bytes(b"a\n\xff\n")
    command = ["train", "text.txt", "--out", "lm.arpa", *arguments]
    if error is None:
        asr_lm(*command)  # one of several texts may be empty
        with pytest.raises(DataError, match=r"empty.txt: expected at least one sentence, found none"):
            asr_lm("train", "empty.txt", "--out", "other.arpa")
        assert not (folder / "other.arpa").exists()
        return
    with pytest.raises(error, match=message):
        asr_lm(*command)
    assert not list(folder.glob("*.arpa")) + list(folder.glob(".*.tmp"))


def test_a_model_that_is_none(folder):
    with pytest.raises(ModelError, match=r"text.txt:5: expected"):
        asr_lm("perplexity", "text.txt", "text.txt")


def test_mix_and_prune(folder):
    asr_lm("train", "text.txt", "--out", "one.arpa")
    (folder / "more.txt").write_text("a bird sat\nthe bird sang\n")
    asr_lm("train", "more.txt", "--out", "two.arpa", "--order", 2)
    out = asr_lm("mix", "one.arpa", "two.arpa", "--weights", "0.25,0.75", "--out", "mixed.arpa")
    assert out.startswith("mixed.arpa: 11 1-grams, ")
    assert out.endswith("weights 0.2500,0.7500\n")
    out = asr_lm("mix", "one.arpa", "two.arpa", "--tune", "more.txt", "--out", "mixed.arpa", "--max-words", 5)
    assert out.startswith("mixed.arpa: 8 1-grams, ")
    assert "more.txt: 8 known tokens, perplexity of the sum itself " in out
    assert asr_lm("prune", "mixed.arpa", "--out", "small.arpa.gz", "--max-ngrams", 10).startswith(
        "small.arpa.gz: 8 1-grams, 2 2-grams"
    )
    assert len(NgramModel.read("small.arpa.gz").words) == 8
    assert (
        asr_lm("prune", "mixed.arpa", "--out", "small.arpa", "--threshold", 10) == "small.arpa: 8 1-grams\n"
    )
    with pytest.raises(ConfigError, match=r"--weights 1;2: expected numbers with commas"):
        asr_lm("mix", "one.arpa", "two.arpa", "--weights", "1;2", "--out", "bad.arpa")
    with pytest.raises(ConfigError, match=r"asr lm prune: .*either a threshold or max_ngrams"):
        asr_lm("prune", "mixed.arpa", "--out", "bad.arpa")
    assert not (folder / "bad.arpa").exists()
