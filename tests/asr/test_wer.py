import math
import random

import pytest

from asr.errors import ConfigError, DataError
from asr.score.wer import AlignedWord, WordErrors, bootstrap_interval, score_pairs, word_errors


def one(reference, hypothesis, **options):
    return score_pairs({"u": reference}, {"u": hypothesis}, **options)


def edit_distance(left, right):
    """The textbook recursion, row by row: an oracle that shares nothing with jiwer."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "sub", "ins", "dele", "words"),
    [
        ("one two three", "one two three", 0, 0, 0, 3),
        ("one two three", "one too three", 1, 0, 0, 3),
        ("one two three", "one three", 0, 0, 1, 3),
        ("one two three", "one two two three", 0, 1, 0, 3),
        ("one two three", "four five", 2, 0, 1, 3),
        ("one", "", 0, 0, 1, 1),
        ("", "one two", 0, 2, 0, 0),
        ("", "", 0, 0, 0, 0),
        (" one\t two ", "one two", 0, 0, 0, 2),
    ],
)
def test_counts(reference, hypothesis, sub, ins, dele, words):
    errors = one(reference, hypothesis).overall
    assert (errors.substitutions, errors.insertions, errors.deletions) == (sub, ins, dele)
    assert errors.reference_words == words
    assert word_errors([reference, "a"], [hypothesis, "a"])[0] == errors
    assert errors.sentence_error_rate == float(errors.errors > 0)


def test_rates_without_reference_words():
    assert one("", "").wer == 0.0
    assert one("", "one").wer == math.inf
    assert one("", "one").cer == math.inf


def test_totals_equal_an_independent_edit_distance():
    rng = random.Random(3)
    texts = {
        side: {f"u{i}": " ".join(rng.choices(["a", "bb", "ccc", "d"], k=rng.randrange(9))) for i in range(60)}
        for side in ("ref", "hyp")
    }
    report = score_pairs(texts["ref"], texts["hyp"])
    pairs = [(texts["ref"][key], texts["hyp"][key]) for key in texts["ref"]]
    assert report.overall.errors == sum(edit_distance(r.split(), h.split()) for r, h in pairs)
    assert report.character_errors == sum(edit_distance(r, h) for r, h in pairs)
    assert report.reference_characters == sum(len(r) for r, _ in pairs)
    assert report.overall.reference_words == sum(len(r.split()) for r, _ in pairs)
    assert report.wer == report.overall.errors / report.overall.reference_words
    for utterance in report.utterances:
        r, h = texts["ref"][utterance.id], texts["hyp"][utterance.id]
        assert [w.reference for w in utterance.alignment if w.reference is not None] == r.split()
        assert [w.hypothesis for w in utterance.alignment if w.hypothesis is not None] == h.split()


def test_alignment_marks():
    (utterance,) = one("one two three", "one too four three five").utterances
    assert utterance.alignment[0] == AlignedWord("one", "one")
    assert "".join(column.mark or "." for column in utterance.alignment) in {".SI.I", ".IS.I"}


def test_speakers_utterances_and_confusions():
    references = {"b1": "one two", "a1": "one two", "a2": "one nine nine"}
    hypotheses = {"a2": "one five five", "b1": "one two two", "a1": "two"}
    report = score_pairs(references, hypotheses, speakers={"a1": "ann", "a2": "ann", "b1": "bob"})
    assert list(report.speakers) == ["ann", "bob"]
    assert report.speakers["ann"] == WordErrors(2, 0, 1, 5, 2, 2)
    assert report.speakers["bob"] == WordErrors(0, 1, 0, 2, 1, 1)
    assert report.overall == report.speakers["ann"] + report.speakers["bob"]
    assert report.confusions == (("nine", "five", 2),)
    assert report.insertions == (("two", 1),)
    assert report.deletions == (("one", 1),)
    assert [utterance.id for utterance in report.utterances] == ["b1", "a1", "a2"]
    assert report.sentence_error_rate == 1.0


def test_confusions_are_ranked_by_count_then_name():
    report = score_pairs({"u": "b a a c", "v": "z z"}, {"u": "x x x x", "v": "z z"})
    assert report.confusions == (("a", "x", 2), ("b", "x", 1), ("c", "x", 1))


def test_normalisation_is_applied_to_both_sides():
    assert one("Seven, eight!", "seven EIGHT").overall.errors == 2
    assert one("Seven, eight!", "seven EIGHT", normalization="basic").overall.errors == 0
    with pytest.raises(ConfigError, match="basic"):
        one("a", "a", normalization="bsic")


def test_ids_of_one_side_only_are_named():
    with pytest.raises(DataError, match="1 of 2 references have no hypothesis: u2"):
        score_pairs({"u1": "a", "u2": "b"}, {"u1": "a"})
    with pytest.raises(DataError, match="1 of 2 hypotheses have no reference: u9"):
        score_pairs({"u1": "a"}, {"u1": "a", "u9": "b"})
    with pytest.raises(DataError, match="no id is on both sides"):
        score_pairs({"u1": "a"}, {"x1": "a"}, allow_missing=True)
    with pytest.raises(DataError, match="at least one reference"):
        score_pairs({}, {"u1": "a"})
    with pytest.raises(DataError, match="u4 and 7 more"):
        score_pairs({f"u{i}": "a" for i in range(13)}, {"u12": "a"})


def test_missing_hypotheses_count_as_deletions_when_allowed():
    report = score_pairs({"u1": "a", "u2": "b c"}, {"u1": "a", "u9": "z"}, allow_missing=True)
    assert report.missing == ("u2",)
    assert (report.overall.deletions, report.overall.insertions) == (2, 0)


def test_bootstrap_interval_is_seeded_and_covers():
    """Its width is that of the normal approximation for independent utterances of one word."""
    counts = [WordErrors(substitutions=int(i < 40), reference_words=1) for i in range(400)]
    low, high = bootstrap_interval(counts, seed=1)
    assert (low, high) == bootstrap_interval(counts, seed=1)
    assert (low, high) != bootstrap_interval(counts, seed=2)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 400)
    assert low == pytest.approx(0.1 - half, abs=0.01)
    assert high == pytest.approx(0.1 + half, abs=0.01)


def test_bootstrap_interval_of_edge_cases():
    assert bootstrap_interval([WordErrors(reference_words=3)] * 5) == (0.0, 0.0)
    assert bootstrap_interval([WordErrors()]) == (0.0, 0.0)
    assert bootstrap_interval([WordErrors(insertions=1)]) == (math.inf, math.inf)
    low, high = bootstrap_interval([WordErrors(), WordErrors(substitutions=1, reference_words=2)])
    assert low == high == 0.5
