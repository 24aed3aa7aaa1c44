"""English number words to digits, for scoring: "ten thousand dollars" and "$10,000" both become "$10000".

The grammar, on lower-case words without hyphens (`[x]` optional, digits may stand for any cardinal part):

    below hundred   zero .. nineteen | twenty .. ninety [one .. nine]
    group           below-hundred [hundred [[and] below-hundred]]  |  a hundred/thousand/million ...
    number          [minus] group [point digit ..] [and a half] [thousand|million|billion|trillion
                    [[and] number with smaller multipliers]]
    year            thirteen .. twenty, then ten .. ninety-nine or oh one .. oh nine      (1905, 2015)
    ordinal         a group whose last word is first .. ninetieth, hundredth, thousandth  (21st)
    amount          number dollars|pounds|euros|yen|cents | number percent | number dollars [and] number cents

Numbers spoken digit by digit stay separate ("one two three" is "1 2 3", not "123"), so that each digit of a
digit string counts as a word of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINAL_ONES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")

DIGITS = {word: value for value, word in enumerate(_ONES)}
SMALL = DIGITS | {word: value for value, word in enumerate(_TEENS, 10)}
TENS = {word: value for value, word in zip(range(20, 100, 10), _TENS, strict=True)}
ORDINAL_DIGITS = {word: value for value, word in enumerate(_ORDINAL_ONES, 1)}
ORDINALS = (
    ORDINAL_DIGITS
    | {word + "th": value for value, word in enumerate(_TEENS, 10)}
    | {"twelfth": 12}
    | {word[:-1] + "ieth": value for word, value in TENS.items()}
)
MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
CURRENCIES = {
    **dict.fromkeys(("dollar", "dollars"), "$"),
    **dict.fromkeys(("pound", "pounds"), "£"),
    **dict.fromkeys(("euro", "euros"), "€"),
    "yen": "¥",
    **dict.fromkeys(("cent", "cents"), "¢"),
}
MAX_DIGITS = 15
"""Longer strings of digits are names, not quantities, and stay as they are."""

_LITERAL = re.compile(r"(-?)([$£€¥¢]?)([0-9]+(?:\.[0-9]+)?)(%?)")


class _Part(NamedTuple):
    """A piece of a number that ends before token `stop`."""

    value: Decimal
    stop: int
    ordinal: bool = False


class _Words:
    """Tokens that can be looked at past their end."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens

    def __getitem__(self, index: int) -> str:
        return self.tokens[index] if index < len(self.tokens) else ""


def replace_numbers(tokens: Sequence[str]) -> list[str]:
    """Replace every number expression by one token in digits; other tokens stay."""
    words = _Words(tokens)
    result: list[str] = []
    index = 0
    while index < len(tokens):
        text, index = _number(words, index)
        result.append(text)
    return result


def _number(words: _Words, start: int) -> tuple[str, int]:
    """Return the text of what begins at `start`, a number if possible, and where it ends."""
    sign, first = ("-", start + 1) if words[start] in {"minus", "negative"} else ("", start)
    literal = _LITERAL.fullmatch(words[first])
    if literal and (literal[1] or literal[2] or literal[4]):
        part = _multiplied(words, _Part(Decimal(literal[3]), first + 1)) if not literal[4] else None
        value, stop = (part.value, part.stop) if part else (_plain(literal[3]), first + 1)
        minus = "-" if bool(sign) != bool(literal[1]) else ""
        return f"{minus}{literal[2]}{_show(value)}{literal[4]}", stop
    found = _year(words, first) or _cardinal(words, first)
    if found is None:
        return words[start], start + 1
    if found.ordinal:
        return sign + _ordinal(int(found.value)), found.stop
    # A string of digits alone keeps its leading zeros.
    value = words[first] if literal and found.stop == first + 1 else found.value
    return _amount(words, sign, value, found.stop)


def _amount(words: _Words, sign: str, value: Decimal | str, stop: int) -> tuple[str, int]:
    unit = words[stop]
    if unit == "percent":
        return f"{sign}{_show(value)}%", stop + 1
    if unit == "per" and words[stop + 1] == "cent":
        return f"{sign}{_show(value)}%", stop + 2
    if unit not in CURRENCIES:
        return sign + _show(value), stop
    if CURRENCIES[unit] != "¢" and CURRENCIES[unit] != "¥":
        cents = _cardinal(words, stop + 1 + (words[stop + 1] == "and"))
        if cents and cents.value < 100 and words[cents.stop] in {"cent", "cents", "pence"}:
            return f"{sign}{CURRENCIES[unit]}{_show(Decimal(value) + cents.value / 100)}", cents.stop + 1
    return f"{sign}{CURRENCIES[unit]}{_show(value)}", stop + 1


def _year(words: _Words, start: int) -> _Part | None:
    century = SMALL.get(words[start], TENS.get(words[start], 0))
    if not 13 <= century <= 20:
        return None
    if words[start + 1] in {"oh", "o"} and DIGITS.get(words[start + 2], 0):
        return _Part(Decimal(100 * century + DIGITS[words[start + 2]]), start + 3)
    rest = _below_hundred(words, start + 1)
    # "nineteen hundred" and "twenty thirty thousand" are not years.
    if rest is None or rest.ordinal or rest.value < 10 or words[rest.stop] in {"hundred", *MULTIPLIERS}:
        return None
    return _Part(100 * century + rest.value, rest.stop)


def _cardinal(words: _Words, start: int) -> _Part | None:
    group = _group(words, start)
    return group and _multiplied(words, group)


def _multiplied(words: _Words, group: _Part) -> _Part:
    """Read on behind a first group: fraction, multiplier and what follows it."""
    part = group if group.ordinal else _fraction(words, group)
    total, limit = Decimal(0), 10**15
    while True:
        word = words[part.stop]
        factor = MULTIPLIERS.get(word.removesuffix("th"), 0)
        if part.ordinal or not 0 < factor < limit:
            return _Part(total + part.value, part.stop, part.ordinal)
        total, stop = total + part.value * factor, part.stop + 1
        following = _group(words, stop + (words[stop] == "and"))
        if word.endswith("th") or following is None or following.value >= factor or not following.value:
            return _Part(total, stop, word.endswith("th"))
        part, limit = following, factor


def _fraction(words: _Words, part: _Part) -> _Part:
    if [words[part.stop + i] for i in range(3)] == ["and", "a", "half"] and part.value % 1 == 0:
        return _Part(part.value + Decimal("0.5"), part.stop + 3)
    digits, stop = "", part.stop + 1
    while words[part.stop] == "point" and len(digits) < MAX_DIGITS:
        word = words[stop]
        digit = DIGITS.get(word, 0 if word in {"oh", "o"} else None)
        if digit is None and not (re.fullmatch("[0-9]+", word) and not digits and len(word) <= MAX_DIGITS):
            break
        digits, stop = digits + (word if digit is None else str(digit)), stop + 1
        if digit is None:
            break
    if not digits or part.value % 1:
        return part
    return _Part(part.value + Decimal(f"0.{digits}"), stop)


def _group(words: _Words, start: int) -> _Part | None:
    word = words[start]
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", word) and len(word) <= MAX_DIGITS:
        part: _Part | None = _Part(Decimal(word), start + 1)
    elif word in {"a", "an"} and words[start + 1] in {"hundred", *MULTIPLIERS}:
        part = _Part(Decimal(1), start + 1)
    else:
        part = _below_hundred(words, start)
    if part is None or part.ordinal or not part.value or words[part.stop] not in {"hundred", "hundredth"}:
        return part
    value, stop = part.value * 100, part.stop + 1
    rest = _below_hundred(words, stop + (words[stop] == "and"))
    if words[part.stop] == "hundredth" or rest is None or not rest.value:
        return _Part(value, stop, words[part.stop] == "hundredth")
    return _Part(value + rest.value, rest.stop, rest.ordinal)


def _below_hundred(words: _Words, start: int) -> _Part | None:
    word, following = words[start], words[start + 1]
    if word in TENS:
        if DIGITS.get(following, 0):
            return _Part(Decimal(TENS[word] + DIGITS[following]), start + 2)
        if following in ORDINAL_DIGITS:
            return _Part(Decimal(TENS[word] + ORDINAL_DIGITS[following]), start + 2, True)
        return _Part(Decimal(TENS[word]), start + 1)
    if word in SMALL:
        return _Part(Decimal(SMALL[word]), start + 1)
    if word in ORDINALS:
        return _Part(Decimal(ORDINALS[word]), start + 1, True)
    return None


def _plain(digits: str) -> Decimal | str:
    return Decimal(digits) if len(digits) <= MAX_DIGITS else digits


def _show(value: Decimal | str) -> str:
    text = value if isinstance(value, str) else format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ordinal(value: int) -> str:
    ending = "th" if value % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{ending}"
