"""Minimum Bayes risk against its definition, with an edit distance of its own."""

from __future__ import annotations

import math
import random

import pytest

from asr.errors import ConfigError
from asr.search.mbr import minimum_bayes_risk


def distance(a: list[str], b: list[str]) -> int:
    """By recursion."""
    if not a or not b:
        return len(a) + len(b)
    same = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


def test_risks_are_expected_word_errors() -> None:
    rng = random.Random(0)
    for _ in range(60):
        count, scale = rng.randint(1, 6), rng.choice([0.0, 0.3, 1.0, 2.0])
        hypotheses = [rng.choices("abc", k=rng.randint(0, 4)) for _ in range(count)]
        scores = [rng.uniform(-50, -40) for _ in range(count)]
        weights = [math.exp(scale * (score + 45)) for score in scores]
        expected = [
            sum(w * distance(h, g) for g, w in zip(hypotheses, weights, strict=True)) / sum(weights)
            for h in hypotheses
        ]
        found = minimum_bayes_risk(hypotheses, scores, scale)
        assert found.risks == pytest.approx(expected, abs=1e-9)
        assert found.posteriors == pytest.approx([w / sum(weights) for w in weights])
        assert expected[found.chosen] == pytest.approx(min(expected), abs=1e-9)


def test_words_that_many_hypotheses_share_win_over_the_most_probable_sentence() -> None:
    hypotheses = [["x", "y"], ["a", "b"], ["a", "c"], ["a", "b", "d"]]
    scores = [math.log(p) for p in (0.31, 0.23, 0.23, 0.23)]
    assert minimum_bayes_risk(hypotheses, scores).chosen == 1
    assert minimum_bayes_risk(hypotheses, scores, scale=50).chosen == 0


def test_words_are_compared_whole_and_not_by_their_letters() -> None:
    found = minimum_bayes_risk([["seven"], ["eleven"]], [0.0, 0.0])
    assert found.risks == (0.5, 0.5)
    assert found.chosen == 0


def test_impossible_and_equal_hypotheses() -> None:
    found = minimum_bayes_risk([["a"], ["b"], ["b"]], [math.log(0.4), math.log(0.3), math.log(0.3)])
    assert found.chosen == 1
    assert found.risks == pytest.approx((0.6, 0.4, 0.4))
    assert minimum_bayes_risk([["a"], ["b"]], [-math.inf, -1000.0]).posteriors == (0.0, 1.0)
    assert minimum_bayes_risk([["a"], []], [-math.inf, -math.inf]).posteriors == (0.5, 0.5)
    assert minimum_bayes_risk([[]], [-3.0]) == (0, (0.0,), (1.0,))


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_a_scale_that_is_none(scale: float) -> None:
    with pytest.raises(ConfigError, match="n-best scale: expected"):
        minimum_bayes_risk([["a"]], [0.0], scale)
