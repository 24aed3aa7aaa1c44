"""Recall, precision and word error rates of listed phrases, counted by hand."""

from __future__ import annotations

import math

from asr.score.biasing import PhraseCount, WordRate, score_phrases
from asr.score.wer import score_pairs


def score(pairs: list[tuple[str, str]], phrases: list[str], normalization: str = "none"):
    references = {str(i): reference for i, (reference, _) in enumerate(pairs)}
    hypotheses = {str(i): hypothesis for i, (_, hypothesis) in enumerate(pairs)}
    return score_phrases(score_pairs(references, hypotheses, normalization=normalization), phrases)


def test_phrases_are_counted_where_they_were_said() -> None:
    pairs = [
        ("call kathleen now", "call kathleen now"),  # right
        ("call kathleen now", "call cat lean now"),  # missed: a substitution and an insertion
        ("call them now", "call kathleen now"),  # written only
        ("kathleen is here", "is here kathleen"),  # said and written, at other places
    ]
    found = score(pairs, ["kathleen", "new delhi"])
    assert found.phrases == {"kathleen": PhraseCount(3, 3, 1), "new delhi": PhraseCount()}
    assert found.overall.recall == found.overall.precision == 1 / 3
    # Listed: right, substituted, deleted, inserted (the last one). Others: "cat" or "lean", and "them".
    assert found.listed == WordRate(3, 3)
    assert found.unlisted == WordRate(2, 9)


def test_a_phrase_is_right_in_one_piece_only() -> None:
    pairs = [("in new delhi", "in new old delhi"), ("in new delhi", "in new delhi")]
    found = score(pairs, ["new delhi"])
    assert found.phrases["new delhi"] == PhraseCount(2, 1, 1)
    assert found.listed == WordRate(0, 4)
    assert found.unlisted == WordRate(1, 2)


def test_overlapping_phrases_count_each_and_their_words_once() -> None:
    found = score([("new york city", "new york sitting")], ["new york", "york city", "york"])
    assert [count.right for count in found.phrases.values()] == [1, 0, 1]
    assert found.overall == PhraseCount(3, 2, 2)
    assert found.listed == WordRate(1, 3)


def test_phrases_are_normalised_as_the_texts_were_and_count_once() -> None:
    found = score([("Kathleen!", "kathleen")], ["KATHLEEN", "kathleen", "..."], "basic")
    assert found.phrases == {"kathleen": PhraseCount(1, 1, 1)}
    assert score([("Kathleen", "Kathleen")], ["kathleen"]).overall == PhraseCount()


def test_an_utterance_may_have_phrases_of_its_own() -> None:
    texts = {"a": "call kathleen now", "b": "call kathleen now", "c": "call theo now"}
    report = score_pairs(texts, {"a": "call kathleen now", "b": "call cat now", "c": "call theo kathleen"})
    found = score_phrases(report, ["theo"], {"b": ["kathleen"], "c": ["theo"]})
    # Where nobody listened for it, it is not counted.
    assert found.phrases == {"theo": PhraseCount(1, 1, 1), "kathleen": PhraseCount(1, 0, 0)}
    assert (found.listed, found.unlisted) == (WordRate(1, 2), WordRate(1, 7))


def test_nothing_said_is_not_perfect() -> None:
    found = score([("a b", "a c")], ["kathleen"])
    assert math.isnan(found.overall.recall)
    assert math.isnan(found.listed.wer)
    assert found.lines() == [
        "1 listed phrase: recall - (0 / 0 said), precision - (0 / 0 written)",
        "WER on listed words - (0 / 0), on all others 50.0 % (1 / 2)",
    ]


def test_both_word_error_rates_add_up_to_the_whole() -> None:
    pairs = [("a b c d", "a x c c d"), ("", "b b"), ("b c b c", "b c")]
    found = score(pairs, ["b c", "b"])
    whole = score_pairs(
        {str(i): r for i, (r, _) in enumerate(pairs)}, {str(i): h for i, (_, h) in enumerate(pairs)}
    )
    assert found.listed.errors + found.unlisted.errors == whole.overall.errors
    assert found.listed.words + found.unlisted.words == whole.overall.reference_words
