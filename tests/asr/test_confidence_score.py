"""Quality of confidences and errors of times: by hand, and on words drawn from what confidences promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from asr.score.confidence import Judged, confidence_lines, fit_temperature, judge, measure_confidence
from asr.score.times import measure_times
from asr.score.transcripts import read_transcript_lines
from asr.score.wer import score_pairs
from asr.score.words import HeardWord, in_place


def judged(*pairs: tuple[float, bool]) -> Judged:
    return Judged(np.array([c for c, _ in pairs]), np.array([right for _, right in pairs], dtype=bool))


def drawn(temperature: float = 1.0, count: int = 40_000) -> Judged:
    """Words with confidences from 0 to 1 of which, tempered, as many are right as they say."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=count)
    return Judged(confidence, rng.uniform(size=count) < confidence ** (1 / temperature))


def test_quality_by_hand() -> None:
    report = measure_confidence(judged((0.8, True), (0.9, True), (0.3, False), (0.85, False)))
    bits = math.log2(0.8) + math.log2(0.9) + math.log2(0.7) + math.log2(0.15)
    assert report.nce == pytest.approx((4 + bits) / 4)
    # Bins from 0.8 and 0.9 on: 0.8 and 0.85 with one right, 0.9 right, 0.3 wrong.
    assert report.ece == pytest.approx((2 * abs(0.5 - 0.825) + 0.1 + 0.3) / 4)
    assert report.auc == pytest.approx(3 / 4)
    assert [b.words for b in report.bins] == [0, 0, 0, 1, 0, 0, 0, 0, 2, 1]
    uneven = measure_confidence(judged((0.7, True), (0.6, True), (0.8, True), (0.5, False)))
    most = -3 * math.log2(0.75) - math.log2(0.25)
    assert uneven.nce == pytest.approx((most + math.log2(0.7 * 0.6 * 0.8 * 0.5)) / most)
    assert measure_confidence(judged((0.5, True), (0.5, False))).auc == 0.5


def test_the_share_that_is_right_says_nothing_and_an_oracle_all() -> None:
    assert measure_confidence(judged(*[(0.75, True)] * 3, (0.75, False))).nce == pytest.approx(0)
    assert measure_confidence(judged((1.0, True), (0.0, False))).nce == pytest.approx(1, abs=1e-3)
    assert -20 < measure_confidence(judged((0.0, True), (1.0, False))).nce < -10


def test_nothing_to_measure() -> None:
    for given in (judged((0.5, True)), judged((0.5, False))):
        assert math.isnan(measure_confidence(given).nce)
        assert fit_temperature(given) is None
    nothing = judged()
    assert measure_confidence(nothing).lines() == []
    assert confidence_lines(nothing, "none") == []
    assert "no temperature" in confidence_lines(nothing, "none", calibrate=True)[0]


def test_a_calibrated_sampler_has_what_is_to_be_expected() -> None:
    report = measure_confidence(drawn())
    # Uniform confidences: 1 - E[-c ln c - (1 - c) ln(1 - c)] / ln 2 = 1 - (1/2) / ln 2.
    assert report.nce == pytest.approx(1 - 0.5 / math.log(2), abs=0.01)
    assert report.auc == pytest.approx(5 / 6, abs=0.01)
    assert report.ece < 0.01
    assert fit_temperature(drawn()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 3.0])
def test_a_temperature_is_found_again(temperature: float) -> None:
    given = drawn(temperature)
    fitted = fit_temperature(given)
    assert fitted == pytest.approx(temperature, rel=0.04)
    assert measure_confidence(given).ece > 0.05
    assert measure_confidence(given.tempered(fitted)).ece < 0.015

    def cross_entropy(t: float) -> float:
        c = given.confidence ** (1 / t)
        return -float(np.log(c[given.right]).sum() + np.log(1 - c[~given.right]).sum())

    assert all(cross_entropy(fitted) <= cross_entropy(fitted * f) for f in (0.9, 0.99, 1.01, 1.1))


def test_certain_words_do_not_break_the_fit() -> None:
    fitted = fit_temperature(judged((1.0, True), (1.0, False), (0.0, False), (0.9, True)))
    assert fitted is not None
    assert math.isfinite(fitted)


def test_words_behind_a_normalisation() -> None:
    heard = {"a": [HeardWord("It's", 0, 1, 0.9), HeardWord("fine", 1, 2, 0.4)], "b": [HeardWord("x", 0, 1)]}
    report = score_pairs(
        {"a": "it is fin", "b": "y z"}, {"a": "It's fine", "b": "y"}, normalization="english"
    )
    found = judge(report, heard)
    assert found.confidence.tolist() == [0.9, 0.9, 0.4]
    assert found.right.tolist() == [True, True, False]
    assert found.left_out == 1
    assert in_place(heard["b"], ["x"], "none") == heard["b"]
    assert in_place([], [], "none") == []


def test_insertions_are_wrong_and_deletions_nothing() -> None:
    words = [HeardWord(text, 0, 1, c) for text, c in (("one", 0.9), ("two", 0.2), ("three", 0.8))]
    report = score_pairs({"u": "one three four"}, {"u": "one two three"})
    found = judge(report, {"u": words})
    assert found.right.tolist() == [True, False, True]


def test_times_of_correct_words_by_hand() -> None:
    truth = [HeardWord("a", 0.0, 1.0), HeardWord("b", 1.0, 2.0), HeardWord("c", 2.0, 3.0)]
    heard = [
        HeardWord("a", 0.1, 0.9),
        HeardWord("x", 1.0, 9.0),
        HeardWord("y", 1, 2),
        HeardWord("c", 2.3, 3.2),
    ]
    report = score_pairs({"u": "a b c", "v": "a"}, {"u": "a x y c", "v": "a"})
    found = measure_times(report, {"u": heard, "v": heard[:1]}, {"u": truth})
    assert (found.start.count, found.left_out) == (2, 0)
    assert found.start.mean_s == pytest.approx(0.2)
    assert found.start.worst_s == pytest.approx(0.3)
    assert found.start_late_s == pytest.approx(0.2)
    assert found.end.mean_s == pytest.approx(0.15)
    assert found.end_late_s == pytest.approx(0.05)
    assert found.lines()[1].startswith("word end error     mean 150 ms, median 150 ms")
    assert found.lines()[1].endswith("; on average +50 ms")
    assert measure_times(report, {"u": heard}, {"u": truth[:2]}).left_out == 1


def test_hypotheses_of_other_programs_have_no_words(tmp_path) -> None:
    lines = [
        {"id": "a", "text": "x", "words": [{"text": "x", "start_s": 0, "end_s": 1, "confidence": 0.5}]},
        {"id": "b", "text": "x", "words": [{"word": "x", "start": 0}]},
        {"id": "c", "text": "x", "words": 3},
        {"id": "d", "text": "x", "words": [{"text": "x", "start_s": 0, "end_s": 1, "confidence": 7}]},
    ]
    path = tmp_path / "hyp.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {line.id: line.words for line in read_transcript_lines(path) if line.words}
    assert found == {"a": (HeardWord("x", 0, 1, 0.5),)}


def test_the_command_says_how_good_and_what_to_set(call, tmp_path) -> None:
    words = [(0.9, "a", "a"), (0.8, "b", "b"), (0.85, "c", "x"), (0.3, "d", "y")]
    reference, hypothesis, picture = (tmp_path / name for name in ("text", "hyp.jsonl", "r.png"))
    reference.write_text("".join(f"u{i} {said}\n" for i, (_, said, _) in enumerate(words)))
    lines = [
        {"id": f"u{i}", "text": text, "words": [{"text": text, "start_s": 0, "end_s": 1, "confidence": c}]}
        for i, (c, _, text) in enumerate(words)
    ]
    hypothesis.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = tmp_path / "wer.txt"
    arguments = ["--calibrate", "--reliability", picture, "--report", report]
    code, out, _ = call("score", reference, hypothesis, *arguments)
    assert code == 0
    assert "confidence: NCE " in out
    assert "(50.0 % of 4 words right)" in out
    assert "--search confidence.temperature=" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "confidence: NCE " in report.read_text()
    (tmp_path / "plain").write_text("u0 a\nu1 b\nu2 x\nu3 y\n")
    assert "confidence" not in call("score", reference, tmp_path / "plain")[1]
