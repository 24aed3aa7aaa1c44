"""Hotword files: what is read, and what every wrong line says."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.errors import ConfigError, HotwordsError, TokenError
from asr.text import hotwords
from asr.text.hotwords import DEFAULT_BOOST, Phrase, check_spelling, read_hotwords
from asr.text.tokenizer import TokenizerConfig, train_tokenizer


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "names.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path, "\ufeff# people\r\nkathleen\r\n\n  new   delhi \t6.5\ncafe\u0301\t-1\n # end\nkathleen"
    )
    assert read_hotwords(path) == (
        Phrase("kathleen", DEFAULT_BOOST, f"{path}:2"),
        Phrase("new delhi", 6.5, f"{path}:4"),
        Phrase("café", -1.0, f"{path}:5"),
    )
    assert read_hotwords(path, boost=2.0)[0].boost == 2.0


def test_case_stays_unless_a_normalisation_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "New Delhi!\nnew delhi\n")
    assert [phrase.text for phrase in read_hotwords(path)] == ["New Delhi!", "new delhi"]
    assert [phrase.text for phrase in read_hotwords(path, normalization="basic")] == ["new delhi"]
    with pytest.raises(ConfigError, match="expected none, basic, english"):
        read_hotwords(path, normalization="lower")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names.txt: expected one phrase a line, found none"),
        ("# nothing\n\n", "names.txt: expected one phrase a line, found none"),
        ("a\nb\tmuch\n", "names.txt:2: expected a boost from -100 to 100 after the TAB, found 'much'"),
        ("a\tnan\n", "names.txt:1: expected a boost .* found 'nan'"),
        ("a\t1e9\n", "names.txt:1: expected a boost .* found '1e9'"),
        ("a\t\n", "names.txt:1: expected a boost .* found ''"),
        ("a\t1\t2\n", "names.txt:1: expected a boost"),
        ("\t3\n", "names.txt:1: expected a phrase, found ''"),
        (b"a\n\xff\xfe\n", "names.txt:2: expected UTF-8 text"),
        ("x\na\0b\n", "names.txt:2: text may not hold a NUL"),
        ("▁a\n", "names.txt:1: text may not hold '▁'"),
        ("x" * 201, "names.txt:1: expected a phrase of at most 200 characters, found 201"),
        ("a\t1\nb\na\t2\n", "names.txt:3: 'a' has boost 2 here and 1 at .*names.txt:1; keep one"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(HotwordsError, match=message) as caught:
        read_hotwords(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a\nb\nc\n")
    monkeypatch.setattr(hotwords, "MAX_PHRASES", 2)
    with pytest.raises(HotwordsError, match=r"names.txt:3: expected at most 2 phrases"):
        read_hotwords(path)
    monkeypatch.setattr(hotwords, "MAX_FILE_BYTES", 5)
    with pytest.raises(HotwordsError, match="expected at most 5 bytes"):
        read_hotwords(path)


def test_a_file_that_is_not_there_and_a_boost_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(HotwordsError, match="no such file"):
        read_hotwords(tmp_path / "none.txt")
    with pytest.raises(HotwordsError, match="no such file"):
        read_hotwords(tmp_path)
    with pytest.raises(ConfigError, match="hotwords boost: expected -100 to 100, found nan"):
        read_hotwords(write(tmp_path, "a"), boost=float("nan"))


@pytest.mark.parametrize("unk", [False, True])
@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_phrases_that_the_model_cannot_write(kind: str, unk: bool) -> None:
    size = {"vocab_size": 16} if kind == "bpe" else {}
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, unk=unk, **size), ["a cat", "the hat at a"])
    check_spelling([Phrase("cat"), Phrase("the cat")], tokenizer)
    missing = "'cot'" if kind == "word" else "'o'"
    with pytest.raises(TokenError, match=f"f:7: the model cannot write 'a cot': .*{missing}; correct"):
        check_spelling([Phrase("cat"), Phrase("a cot", 1.0, "f:7")], tokenizer)
    with pytest.raises(TokenError, match=r"^the model cannot write 'The Hat': .*lower case: write 'the hat'"):
        check_spelling([Phrase("The Hat")], tokenizer)
