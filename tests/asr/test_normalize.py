import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import ConfigError
from asr.text.english import american
from asr.text.normalize import NORMALIZERS, normalize
from asr.text.numbers import replace_numbers


def test_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match="expected none, basic, english, found 'whisper'"):
        normalize("a", "whisper")
    assert list(NORMALIZERS) == ["none", "basic", "english"]


def test_none_changes_white_space_only():
    assert normalize(" Don't\t STOP,\n  café!\u00a0", "none") == "Don't STOP, café!"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("DON’T stop", "don't stop"),
        ("'quoted' words'", "quoted words"),
        ("Straße", "strasse"),
        ("well-known", "well known"),
        ("3.5 or 1,000.", "3.5 or 1,000"),
        ("ﬁne ①", "fine 1"),
        ("¿Qué tal?", "qué tal"),
        ("हिन्दी में", "हिन्दी में"),
        ("你好，世界。", "你好 世界"),
        ("a€b $5", "a b 5"),
        ("!?", ""),
    ],
)
def test_basic(text, expected):
    assert normalize(text, "basic") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # remarks and fillers
        ("[noise] well (laughs) uh yes, mhm", "well yes"),
        # contractions and titles
        ("I won't, can't and don’t", "i will not can not and do not"),
        ("they've we're I'm he'll", "they have we are i am he will"),
        ("It's been; it's late. John's book", "it has been it is late johns book"),
        ("I'd go, I'd been", "i would go i had been"),
        ("it 's", "it is"),
        ("she shouldn't've", "she should not have"),
        ("gonna wanna", "going to want to"),
        ("Mr. Smith and Dr. Who", "mister smith and doctor who"),
        ("the U.S.A. won", "the usa won"),
        # spelling
        ("The coloured neighbours' theatre", "the colored neighbors theater"),
        ("Café naïve œuvre", "cafe naive oeuvre"),
        # numbers
        ("zero", "0"),
        ("seven three nine", "7 3 9"),
        ("twenty-one", "21"),
        ("one hundred and five", "105"),
        ("a hundred", "100"),
        ("ten thousand", "10000"),
        ("one hundred twenty three thousand four hundred fifty-six", "123456"),
        ("two million and five", "2000005"),
        ("2.5 million", "2500000"),
        ("two and a half million", "2500000"),
        ("three point one four", "3.14"),
        ("1,234,567", "1234567"),
        ("nineteen ninety-nine", "1999"),
        ("nineteen oh five", "1905"),
        ("twenty fifteen", "2015"),
        ("nineteen hundred", "1900"),
        ("twenty-first", "21st"),
        ("the twelfth", "the 12th"),
        ("eleventh seventh", "11th 7th"),
        ("one hundred and third", "103rd"),
        ("five thousandth", "5000th"),
        ("minus five", "-5"),
        ("-5 10-5", "-5 10 5"),
        ("007", "007"),
        ("12345678901234567890 million", "12345678901234567890 million"),
        # amounts
        ("Ten thousand dollars", "$10000"),
        ("$10,000", "$10000"),
        ("$2.5 million", "$2500000"),
        ("two dollars and fifty cents", "$2.5"),
        ("$2.50", "$2.5"),
        ("five pounds, six euros", "£5 €6"),
        ("fifty per cent", "50%"),
        ("50 percent 50 %", "50% 50%"),
        ("twenty cents", "¢20"),
        # not numbers
        ("point and a half", "point and a half"),
        ("hundred", "hundred"),
        ("1.2.3", "1.2.3"),
        ("b2b", "b2b"),
        ("", ""),
    ],
)
def test_english(text, expected):
    assert normalize(text, "english") == expected


SPELLING = """
    favourite favorite  honourable honorable  labour labor  rumoured rumored  harbouring harboring
    discolour discolor  organisation organization  recognised recognized  emphasises emphasizes
    emphasis emphasis  analyse analyze  analyses analyses  travelling traveling  cancelled canceled
    counsellor counselor  anaemia anemia  metres meters  haemoglobin hemoglobin  anaesthetic anesthetic
    paediatric pediatric  defence defense  practised practiced  four four  hour hour  pouring pouring
    promise promise  exercised exercised  axes axes  called called  aerial aerial
"""


@pytest.mark.parametrize(("british", "expected"), re.findall(r"(\S+) (\S+)", SPELLING))
def test_spelling(british, expected):
    assert american(british) == expected


PHRASES = [
    *[
        "seven",
        "seven three nine",
        "twenty five",
        "one hundred and third",
        "nineteen ninety nine",
        "2.5 million",
    ],
    *[
        "two and a half",
        "three point one four",
        "-3",
        "minus twelve",
        "$4",
        "ten dollars and five cents",
        "007",
    ],
    *[
        "fifty per cent",
        "90%",
        "the colour",
        "it's been",
        "don't",
        "Mr. Jones",
        "John's",
        "U.S.A.",
        "café",
        "uh",
    ],
]


@given(phrases=st.lists(st.sampled_from(PHRASES), max_size=6))
@settings(max_examples=200, deadline=None)
def test_english_is_stable(phrases):
    once = normalize(" apple ".join(phrases), "english")
    assert normalize(once, "english") == once


NUMBER_WORDS = ["zero", "one", "ten", "twenty", "hundred", "thousand", "million", "and", "a", "half", "point"]
NUMBER_WORDS += [
    "oh",
    "first",
    "hundredth",
    "per",
    "cent",
    "cents",
    "dollars",
    "minus",
    "5",
    "2.5",
    "$4",
    "90%",
]


@given(words=st.lists(st.sampled_from([*NUMBER_WORDS, "apple"]), max_size=9))
@settings(max_examples=400, deadline=None)
def test_nonsense_numbers_never_swallow_a_word(words):
    found = replace_numbers(words)
    assert found.count("apple") == words.count("apple")
    assert all(found)


@given(text=st.text(max_size=60), name=st.sampled_from(["none", "basic", "english"]))
@settings(max_examples=200, deadline=None)
def test_any_text_survives(text, name):
    once = normalize(text, name)
    assert once == " ".join(once.split())


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_basic_is_stable(text):
    once = normalize(text, "basic")
    assert normalize(once, "basic") == once


SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
SMALL += ["twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spell(number):
    """Write a number out, an independent and much simpler direction than reading."""
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return f"{spell(number // size)} {name}" + (f" {spell(rest)}" if rest else "")
    if number < 20:
        return SMALL[number]
    return TENS[number // 10] + (f" {SMALL[number % 10]}" if number % 10 else "")


@given(number=st.integers(0, 10**12 - 1))
@settings(max_examples=300, deadline=None)
def test_every_number_written_out_reads_back(number):
    assert replace_numbers(spell(number).split()) == [str(number)]
