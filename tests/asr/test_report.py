import math

import pytest

from asr.score.report import confusion_lines, render_report, summary_line, write_report
from asr.score.wer import score_pairs

REFERENCES = {"u1": "one two", "u2": "seven three nine", "u3": "", "u4": "one 你好 nine"}
HYPOTHESES = {"u1": "one two", "u2": "seven eight three five", "u3": "uh", "u4": "one nine"}
SPEAKERS = {"u1": "theo", "u2": "theo", "u4": "ann"}


@pytest.fixture
def report():
    return score_pairs(REFERENCES, HYPOTHESES, speakers=SPEAKERS)


def test_summary_line(report):
    line = summary_line(report)
    assert line.startswith("WER 50.00 % [")
    assert line.endswith("] (4 errors / 8 words: 1 sub, 2 ins, 1 del) over 4 utterances")
    assert "SYNTHETIC" not in line
    assert summary_line(report, synthetic=True) == line + " on SYNTHETIC speech"
    one = score_pairs({"u": "a"}, {"u": "b"})
    assert "(1 error / 1 word: 1 sub, 0 ins, 0 del) over 1 utterance" in summary_line(one)


def test_report_has_every_section(report):
    text = render_report(report, "Digits, test", ["model: exp/digits"], synthetic=True)
    lines = text.splitlines()
    assert lines[:2] == ["Digits, test", "model: exp/digits"]
    assert any(line == summary_line(report, synthetic=True) for line in lines)
    assert "utterances with errors 75.00 % (3 / 4)" in lines
    speakers = lines[lines.index("BY SPEAKER") + 2 :][:2]
    assert speakers[0].split() == ["ann", "33.33", "3", "0", "0", "1", "1"]
    assert speakers[1].split() == ["theo", "40.00", "5", "1", "1", "0", "2"]
    assert lines[lines.index("SUBSTITUTIONS") + 1].split() == ["1", "nine", "->", "five"]
    assert lines[lines.index("DELETIONS") + 1].split() == ["1", "你好"]


def test_alignments_stand_below_each_other_worst_first(report):
    lines = render_report(report, "t").splitlines()
    start = lines.index("u2  theo  2 errors in 3 words: 1 sub, 1 ins, 0 del")
    assert lines[start + 1 : start + 4] == [
        "  REF: seven ***** three nine",
        "  HYP: seven EIGHT three FIVE",
        "             I           S",
    ]
    order = [
        line.split()[0] for line in lines[lines.index("UTTERANCES, most errors first") :] if line[:1] == "u"
    ]
    assert order == ["u2", "u3", "u4", "u1"]
    assert "u1  theo  correct" in lines
    # Two Chinese characters take four cells.
    assert lines[lines.index("  REF: one 你好 nine") + 1] == "  HYP: one **** nine"


def test_long_alignments_wrap_with_both_rows_in_step():
    reference = " ".join(f"word{i}" for i in range(60))
    report = score_pairs({"u": reference}, {"u": reference.replace("word30", "no")})
    lines = render_report(report, "t").splitlines()
    references = [line.removeprefix("  REF: ") for line in lines if line.startswith("  REF: ")]
    hypotheses = [line.removeprefix("  HYP: ") for line in lines if line.startswith("  HYP: ")]
    assert len(references) > 1
    assert " ".join(references) == reference
    assert [len(a.split()) for a in references] == [len(b.split()) for b in hypotheses]
    assert max(map(len, lines)) <= 110
    assert not any(line != line.rstrip() for line in lines)


def test_an_infinite_rate_and_missing_ids_are_shown():
    assert "WER inf %" in summary_line(score_pairs({"u": ""}, {"u": "a"}))
    assert score_pairs({"u": ""}, {"u": "a"}).wer == math.inf
    report = score_pairs({"u": "a", "v": "b"}, {"u": "a"}, allow_missing=True)
    assert "1 without hypothesis, scored as empty: v" in render_report(report, "t")


def test_no_errors_and_no_speakers():
    text = render_report(score_pairs({"u": "a"}, {"u": "a"}), "t")
    assert "BY SPEAKER" not in text
    assert text.count("     -\n") == 3


def test_confusions_are_limited_and_ranked():
    references = {"u": "a a a b b c"}
    report = score_pairs(references, {"u": "x x x y y"})
    assert [line.split() for line in confusion_lines(report, 2)] == [
        ["3", "a", "->", "x"],
        ["2", "b", "->", "y"],
    ]
    many = score_pairs(
        {"u": " ".join(f"r{i}" for i in range(50))}, {"u": " ".join(f"h{i}" for i in range(50))}
    )
    assert "SUBSTITUTIONS (the 20 most frequent of 50)" in render_report(many, "t")


def test_written_aside(report, tmp_path):
    write_report(tmp_path / "exp" / "wer.txt", report, "t", ["n"])
    assert (tmp_path / "exp" / "wer.txt").read_text() == render_report(report, "t", ["n"])
    assert len(list((tmp_path / "exp").iterdir())) == 1
