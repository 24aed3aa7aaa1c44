import html
import itertools
import json
import re
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.cli.formats import FORMATS, clock, cues, render
from asr.errors import ConfigError
from asr.transcript import Alternative


class Word(NamedTuple):
    text: str
    start_s: float
    end_s: float
    confidence: float = 0.9


class Transcript(NamedTuple):
    text: str
    duration_s: float
    words: tuple[Word, ...]
    alternatives: tuple[Alternative, ...] = ()


SHORT = Transcript("seven three", 2.5, (Word("seven", 0.12, 0.4801, 0.98765), Word("three", 0.9, 1.205, 0.5)))


def test_txt():
    assert render(SHORT, "txt", "u1") == "seven three\n"
    assert render(Transcript("", 1.0, ()), "txt", "u1") == "\n"


def test_json():
    assert json.loads(render(SHORT, "json", "u1")) == {
        "id": "u1",
        "text": "seven three",
        "duration_s": 2.5,
        "words": [
            {"text": "seven", "start_s": 0.12, "end_s": 0.48, "confidence": 0.9877},
            {"text": "three", "start_s": 0.9, "end_s": 1.205, "confidence": 0.5},
        ],
    }


def test_json_escapes_and_stays_on_one_line():
    text = 'say "x"\n\\ \u2028 é'
    rendered = render(Transcript(text, 1.0, (Word(text, 0, 1),)), "json", 'a"b')
    assert rendered.count("\n") == 1
    assert json.loads(rendered)["words"][0]["text"] == text
    assert json.loads(rendered)["id"] == 'a"b'


def test_srt():
    assert render(SHORT, "srt", "u1") == "1\n00:00:00,120 --> 00:00:01,205\nseven three\n\n"


def test_vtt():
    assert render(SHORT, "vtt", "u1") == "WEBVTT\n\n00:00:00.120 --> 00:00:01.205\nseven three\n"


def test_ctm():
    assert render(SHORT, "ctm", "my file") == (
        "my_file 1 0.12 0.36 seven 0.9877\nmy_file 1 0.90 0.30 three 0.5000\n"
    )


def test_nothing_recognised_is_valid_in_every_format():
    empty = Transcript("", 1.0, ())
    rendered = {name: render(empty, name, "u") for name in FORMATS}
    assert [rendered[name] for name in ("txt", "srt", "vtt", "ctm")] == ["\n", "", "WEBVTT\n", ""]
    assert 'xmax = 1\n            text = ""\n' in rendered["textgrid"]


def test_unknown_format_lists_the_choices():
    with pytest.raises(ConfigError, match="expected txt, json, srt, vtt, ctm, textgrid, found 'doc'"):
        render(SHORT, "doc", "u1")


def test_markup_is_escaped():
    words = (Word("<b>", 0, 1), Word("R&B", 1, 2), Word("-->", 2, 3))
    vtt = render(Transcript("", 3.0, words), "vtt", "u1")
    assert vtt.splitlines()[-1] == "&lt;b&gt; R&amp;B --&gt;"
    assert html.unescape(vtt.splitlines()[-1]) == "<b> R&B -->"
    assert render(Transcript("", 3.0, words), "srt", "u1").count("-->") == 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (59.9996, "00:01:00.000"),
        (59.9994, "00:00:59.999"),
        (3599.9996, "01:00:00.000"),
        (0.0, "00:00:00.000"),
        (360000.0, "100:00:00.000"),
    ],
)
def test_times_carry_over(seconds, expected):
    assert clock(round(1000 * seconds), ".") == expected
    rendered = render(Transcript("", 0, (Word("a", seconds, seconds + 1),)), "vtt", "u")
    assert f"\n{expected} --> " in rendered


@given(milliseconds=st.integers(0, 10**9))
def test_clock_reads_back(milliseconds):
    hours, minutes, seconds, thousandths = map(int, re.split("[:,]", clock(milliseconds, ",")))
    assert minutes < 60
    assert seconds < 60
    assert ((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths == milliseconds


@st.composite
def word_lists(draw):
    words, now = [], 0.0
    for _ in range(draw(st.integers(0, 40))):
        start = now + draw(st.sampled_from([0.0, 0.0004, 0.05, 0.6, 1.5]))
        now = start + draw(st.sampled_from([0.0, 0.04, 0.3, 2.0, 9.0]))
        words.append(Word(draw(st.sampled_from(["a", "seven", "x" * 30, "y" * 60])), start, now))
    return words


@given(words=word_lists())
@settings(max_examples=200, deadline=None)
def test_cues_keep_every_word_in_order_and_never_overlap(words):
    found = cues(words)
    assert " ".join(line for cue in found for line in cue.lines).split() == [word.text for word in words]
    for cue in found:
        assert cue.start_ms < cue.end_ms
        assert all(len(line) <= 42 or " " not in line for line in cue.lines)
        assert len(cue.lines) <= 2
    for cue, following in itertools.pairwise(found):
        assert cue.end_ms <= following.start_ms


def test_cues_break_at_pauses_length_and_duration():
    def texts(*words):
        return [" ".join(cue.lines) for cue in cues(words)]

    assert texts(Word("a", 0, 0.5), Word("b", 0.9, 1.4), Word("c", 2.4, 3.0)) == ["a b", "c"]
    assert texts(Word("a", 0, 3), Word("b", 3, 6), Word("c", 6, 9)) == ["a b", "c"]
    assert texts(*(Word("x" * 20, i / 10, (i + 1) / 10) for i in range(6))) == [
        " ".join(["x" * 20] * 4),
        " ".join(["x" * 20] * 2),
    ]


@given(start=st.floats(0, 4000), length=st.floats(0, 20))
def test_ctm_ends_where_the_word_ends(start, length):
    line = render(Transcript("", 0, (Word("a", start, start + length),)), "ctm", "u").split()
    assert float(line[2]) + float(line[3]) == pytest.approx(start + length, abs=0.00501)
