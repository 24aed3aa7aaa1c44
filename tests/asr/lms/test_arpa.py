from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from asr.errors import ModelError
from asr.lms import arpa
from asr.lms.arpa import read_arpa

TEXT = """\
written by hand

\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-0.6\t<unk>
-99\t<s>\t-0.3
-0.4\t</s>
-0.5\tgrün\t-0.2

\\2-grams:
-0.2\t<s> grün
-0.25\tgrün </s>

\\end\\
"""
LINES = TEXT.splitlines()


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def with_line(number: int, line: str) -> str:
    """The text with another line in this place, numbered from 1."""
    return "\n".join([*LINES[: number - 1], line, *LINES[number:]]) + "\n"


def check(read: arpa.Arpa) -> None:
    assert read.words == ("<unk>", "<s>", "</s>", "grün")
    unigrams, bigrams = read.sections
    np.testing.assert_array_equal(unigrams.words, [[0], [1], [2], [3]])
    np.testing.assert_allclose(unigrams.log10, [-0.6, -99, -0.4, -0.5], rtol=1e-6)
    np.testing.assert_allclose(unigrams.backoff, [0, -0.3, 0, -0.2], rtol=1e-6)
    np.testing.assert_array_equal(bigrams.words, [[1, 3], [3, 2]])
    np.testing.assert_allclose(bigrams.log10, [-0.2, -0.25], rtol=1e-6)
    assert not bigrams.backoff.any()


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    read = read_arpa(write(tmp_path / "lm.arpa", TEXT))
    check(read)
    assert read.sections[0].lines.tolist() == [8, 9, 10, 11]
    assert read.sections[1].lines.tolist() == [14, 15]


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("\n", "\r\n"),
        TEXT.removesuffix("\n"),
        TEXT.replace("\t", "  "),
        TEXT.replace("-0.5", "\n \n-0.5"),
        TEXT.replace("\n\n", "\n"),
        TEXT.replace("<s> grün", "<s> grün\t0.0"),  # some write a weight even there
        TEXT + "and more\n",
        TEXT[TEXT.index("\\data") :],
    ],
)
def test_what_other_programs_write(tmp_path: Path, text: str) -> None:
    check(read_arpa(write(tmp_path / "lm.arpa", text)))


def test_empty_lines_count(tmp_path: Path) -> None:
    path = write(tmp_path / "lm.arpa", TEXT.replace("-0.5", "\n \n-0.5"))
    assert read_arpa(path).sections[0].lines.tolist() == [8, 9, 10, 13]
    write(path, path.read_text().replace("-0.5", "0.5"))
    with pytest.raises(ModelError, match=r"lm\.arpa:13: "):
        read_arpa(path)


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    check(read_arpa(write(tmp_path / "lm.arpa", gzip.compress(TEXT.encode()))))


def test_lines_that_blocks_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(arpa, "_BLOCK_BYTES", size)
        read = read_arpa(write(tmp_path / "lm.arpa", TEXT))
        check(read)
        assert read.sections[1].lines.tolist() == [14, 15]


MALFORMED = {
    "no number": (8, "many\t<unk>", "'many'"),
    "nan": (8, "nan\t<unk>", "'nan'"),
    "a positive probability": (9, "0.1\t<s>\t-0.3", "at most 0, found '0.1'"),
    "an infinite weight": (9, "-99\t<s>\tinf", "finite log10 back-off weight, found 'inf'"),
    "a weight that is none": (9, "-99\t<s>\t-0.3x", "'-0.3x'"),
    "a lone field": (10, "-0.4", "found 1 field: '-0.4'"),
    "too many fields": (10, "-0.4 </s> -1 -2", "found 4 fields"),
    "a word twice": (10, "-0.4\t<s>", "every word once among the 1-grams, found '<s>' again"),
    "an unknown word": (14, "-0.2\t<s> blau", "among the 1-grams, found 'blau'"),
    "a trigram among bigrams": (14, "-0.2\t<s> <s> grün\t0", "2 words"),
    "order left out": (5, "ngram 3=2", "expected ngram 2=COUNT, found 'ngram 3=2'"),
    "a count that is none": (5, "ngram 2=-1", "expected \\1-grams:, found 'ngram 2=-1'"),
    "a header without counts": (4, "", "expected ngram 1=COUNT, found 'ngram 2=2'"),
    "a count beyond reason": (5, "ngram 2=999999999999", "at most"),
    "more than the header says": (4, "ngram 1=3", "expected 3 1-grams, as the header says, found more"),
    "less than the header says": (4, "ngram 1=5", "expected 5 1-grams, as the header says, found 4 of them"),
    "another section": (13, "\\3-grams:", "expected \\2-grams:, found '\\\\3-grams:'"),
    "no end": (17, "", "expected \\end\\, found the end of the file"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_errors_name_file_and_line(tmp_path: Path, name: str) -> None:
    number, line, expected = MALFORMED[name]
    reported = {
        "more than the header says": 11,
        "less than the header says": 13,
        "a header without counts": 5,
        "no end": 18,
    }.get(name, number)
    path = write(tmp_path / "lm.arpa", with_line(number, line))
    with pytest.raises(ModelError) as caught:
        read_arpa(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{reported}: expected ")
    assert expected in message
    assert "\n" not in message


def test_errors_behind_empty_lines_in_later_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arpa, "_BLOCK_BYTES", 16)
    path = write(tmp_path / "lm.arpa", with_line(10, "\n\n-0.4 </s>").replace("grün </s>", "grün blau"))
    with pytest.raises(ModelError, match=r"lm\.arpa:17: .*'blau'"):
        read_arpa(path)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lm.arpa"
    counts = "".join(f"ngram {n}=1\n" for n in range(1, 18))
    with pytest.raises(ModelError, match=r"lm\.arpa:18: expected n-grams of at most 16 words"):
        read_arpa(write(path, "\\data\\\n" + counts))
    with pytest.raises(ModelError, match=r"lm\.arpa:17: expected 100000000 2-grams, .* found 2 of them"):
        read_arpa(write(path, TEXT.replace("ngram 2=2", "ngram 2=100000000")))
    monkeypatch.setattr(arpa, "_BLOCK_BYTES", 1 << 14)
    with pytest.raises(ModelError, match=r"lm\.arpa:1[12]: expected at most 65536 bytes in a line"):
        read_arpa(write(path, TEXT.replace("grün", "a" * 200_000)))
    with pytest.raises(ModelError, match=r"expected \\data\\"):
        read_arpa(write(path, "text\n" * (arpa.MAX_PREAMBLE_LINES + 2) + TEXT))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found no file there"):
        read_arpa(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"lm:1: expected \\data\\, .* found the end of the file"):
        read_arpa(write(tmp_path / "lm", ""))
    with pytest.raises(ModelError, match=r"lm:8: expected words in UTF-8"):
        read_arpa(write(tmp_path / "lm", TEXT.encode().replace(b"<unk>", b"\xff")))
    zipped = gzip.compress(random.Random(0).randbytes(5000) + TEXT.encode())
    for damaged in (zipped[:3000], zipped[:2000] + b"damage" + zipped[2006:]):
        with pytest.raises(ModelError, match=r"lm:\d+: expected (readable text, found a damaged|\\data)"):
            read_arpa(write(tmp_path / "lm", damaged))


def test_damage_of_any_kind_is_one_line_or_harmless(tmp_path: Path) -> None:
    rng, errors = random.Random(0), []
    pieces = [b"", b"\n", b"\\", b"-", b"1", b" ", b"\0", b"x\xc3"]
    for _ in range(200):
        text = bytearray(TEXT.encode())
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(3)] = rng.choice(pieces)
        try:
            read_arpa(write(tmp_path / "lm", bytes(text)))
        except ModelError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert not any("\n" in error for error in errors)
