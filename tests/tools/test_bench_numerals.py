"""tools/bench/numerals.py writes numbers out as `asr.text.numbers` reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from asr.text.normalize import normalize
from asr.text.numbers import replace_numbers

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "numerals.py"


@pytest.fixture(scope="module")
def spell(load_script) -> Callable[[str], str]:
    return load_script(TOOL).spell_numbers


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("I have 21 dogs.", "i have twenty one dogs"),
        ("101 and 10,000", "one hundred one and ten thousand"),
        ("3.14", "three point one four"),
        ("the 21st, the 12TH", "the twenty first the twelfth"),
        ("20th 100th", "twentieth one hundredth"),
        ("1905, 1900", "nineteen oh five nineteen hundred"),
        ("2005, 2015", "two thousand five twenty fifteen"),
        ("the 1990s", "the nineteen nineties"),
        ("$1, $10", "one dollar ten dollars"),
        ("50% or 5 %", "fifty percent or five percent"),
        ("at 3:30", "at three thirty"),
        ("007", "zero zero seven"),
        ("1,000,001", "one million one"),
        ("B2", "b two"),
        ("it's cold", "it's cold"),
    ],
)  # fmt: skip
def test_numbers_in_words(spell: Callable[[str], str], written: str, spoken: str) -> None:
    assert normalize(spell(written), "basic") == spoken


def test_what_is_spelled_reads_back(spell: Callable[[str], str]) -> None:
    draw = random.Random(0)
    for number in [*range(2200), *(draw.randrange(10**9) for _ in range(500))]:
        assert replace_numbers(spell(str(number)).split()) == [str(number)]
