"""Digits written out, as a reader says them: some recognisers write "21", transcripts have "twenty one".

    21 twenty one · 101 one hundred one · 10,000 ten thousand · 3.14 three point one four · 21st twenty first
    1905 nineteen oh five · 1900 nineteen hundred · 2005 two thousand five · 2015 twenty fifteen
    1990s nineteen nineties · $10 ten dollars · 50% fifty percent · 3:30 three thirty · 007 zero zero seven

Four digits from 1300 to 2099 without a comma are read as a year. `asr.text.numbers` reads words to digits; on
cardinals and years it is the inverse of this.
"""

from __future__ import annotations

import re

from asr.text.numbers import DIGITS, MULTIPLIERS, ORDINALS, SMALL, TENS

_SMALL = {value: word for word, value in SMALL.items()}
_DIGITS = {value: word for word, value in DIGITS.items()}
_TENS = {value: word for word, value in TENS.items()}
_ORDINALS = {_SMALL.get(value, _TENS.get(value)): word for word, value in ORDINALS.items()}
_CURRENCIES = {"$": "dollar", "£": "pound", "€": "euro"}
_NUMBER = re.compile(
    r"([$£€]?)(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?(?:(st|nd|rd|th|s)\b)?(\s?%)?", re.IGNORECASE
)
MOST_DIGITS = 12
"""Longer strings are read digit by digit."""


def spell_numbers(text: str) -> str:
    """Return the text with every number in words, set off by spaces; what has no digits stays as it is."""
    return _NUMBER.sub(lambda match: f" {_spelled(*match.groups())} ", text)


def _spelled(currency: str, whole: str, decimals: str | None, ending: str | None, percent: str | None) -> str:
    words = _year(whole) or _plain(whole)
    if decimals:
        words += ["point", *(_DIGITS[int(digit)] for digit in decimals)]
    if ending:
        words[-1] = _plural(words[-1]) if ending.lower() == "s" else _ordinal(words[-1])
    if currency:
        words.append(_CURRENCIES[currency] + ("" if words == ["one"] else "s"))
    return " ".join(words + (["percent"] if percent else []))


def _year(digits: str) -> list[str]:
    """As a year; nothing where it is none, or is read like a cardinal (2000 to 2009)."""
    if not re.fullmatch(r"1[3-9]\d\d|20[1-9]\d", digits):
        return []
    century, rest = int(digits[:2]), int(digits[2:])
    if rest == 0:
        return [*_cardinal(century), "hundred"]
    return _cardinal(century) + (["oh"] if rest < 10 else []) + _cardinal(rest)


def _plain(digits: str) -> list[str]:
    bare = digits.replace(",", "")
    if len(bare) > MOST_DIGITS or (bare[0] == "0" and len(bare) > 1):
        return [_DIGITS[int(digit)] for digit in bare]
    return _cardinal(int(bare))


def _cardinal(number: int) -> list[str]:
    if number in _SMALL:
        return [_SMALL[number]]
    if number < 100:
        return [_TENS[number // 10 * 10], *(_cardinal(number % 10) if number % 10 else [])]
    if number < 1000:
        name, unit = "hundred", 100
    else:
        name, unit = max(((n, u) for n, u in MULTIPLIERS.items() if u <= number), key=lambda item: item[1])
    return [*_cardinal(number // unit), name, *(_cardinal(number % unit) if number % unit else [])]


def _ordinal(word: str) -> str:
    return _ORDINALS.get(word, word + "th")


def _plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + ("es" if word == "six" else "s")
