"""Hotwords: phrases that recordings are expected to hold, read from a file and checked against a tokenizer.

A file is UTF-8 text with one phrase a line and, after a TAB, its boost if it has one of its own:

    # people of the meeting
    kathleen
    new delhi<TAB>6.5

Empty lines, and lines that begin with '#', are left out. A boost is a natural logarithm: a hypothesis that
holds the phrase counts for exp(boost) times as much as without it. Phrases are compared with what the model
writes as they stand, white space collapsed and in Unicode normal form C; a normalisation of
`asr.text.normalize` is only applied if it is asked for.

Sizes are bounded, because the automaton that is made of the phrases (asr.search.automaton) grows with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asr.errors import ConfigError, HotwordsError, TokenError
from asr.text.normalize import normalizer
from asr.text.tokenizer import UNKNOWN_REMEDY, Tokenizer, clean

DEFAULT_BOOST = 4.0
MAX_BOOST = 100.0
MAX_FILE_BYTES = 4_000_000
MAX_PHRASES = 20_000
MAX_CHARACTERS = 200
"""Of one phrase: about thirty words."""


class Phrase(NamedTuple):
    """A phrase and what is added to the score of a hypothesis each time that it holds it."""

    text: str
    boost: float = DEFAULT_BOOST
    place: str = ""
    """Where it was written, `FILE:LINE`, for error messages."""


def read_hotwords(
    path: Path | str, boost: float = DEFAULT_BOOST, normalization: str = "none"
) -> tuple[Phrase, ...]:
    """The phrases of a file, in its order; those without a boost of their own get `boost`.

    A phrase that is written twice counts once. Raises HotwordsError naming file and line, ConfigError for a
    normalisation that there is not or a boost that is not between -100 and 100.
    """
    path = Path(path)
    found = _phrases(((f"{path}:{number}", line) for number, line in _lines(path)), boost, normalization)
    if not found:
        raise HotwordsError(f"{path}: expected one phrase a line, found none")
    return found


def list_hotwords(
    lines: Sequence[str], boost: float = DEFAULT_BOOST, normalization: str = "none", name: str = "hotwords"
) -> tuple[Phrase, ...]:
    """The phrases of a list, each written as a line of a file is, if there are any.

    Raises as read_hotwords does, naming `name`.
    """
    if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
        raise HotwordsError(f"{name}: expected a list of phrases, found {lines!r:.100}")
    return _phrases(
        ((f"{name}, phrase {number}", line) for number, line in enumerate(lines, start=1)),
        boost,
        normalization,
    )


def _phrases(lines: Iterable[tuple[str, str]], boost: float, normalization: str) -> tuple[Phrase, ...]:
    """What lines say, each with its place."""
    normalize = normalizer(normalization)
    if not -MAX_BOOST <= boost <= MAX_BOOST:
        raise ConfigError(f"hotwords boost: expected {-MAX_BOOST:g} to {MAX_BOOST:g}, found {boost:g}")
    found: dict[str, Phrase] = {}
    for place, line in lines:
        written, tab, amount = line.partition("\t")
        phrase = Phrase(_text(normalize(written), written, place), boost, place)
        if tab:
            phrase = phrase._replace(boost=_boost(amount, place))
        before = found.setdefault(phrase.text, phrase)
        if before.boost != phrase.boost:
            raise HotwordsError(
                f"{place}: {phrase.text!r} has boost {phrase.boost:g} here and {before.boost:g} at "
                f"{before.place}; keep one of the lines"
            )
        if len(found) > MAX_PHRASES:
            raise HotwordsError(
                f"{place}: expected at most {MAX_PHRASES} phrases, found more; split the list"
            )
    return tuple(found.values())


def check_spelling(phrases: Sequence[Phrase], tokenizer: Tokenizer) -> None:
    """Raise TokenError, naming phrase, place and symbol, if a model with this tokenizer cannot write one."""
    for phrase in phrases:
        missing = _missing(phrase.text, tokenizer)
        if missing is not None:
            where = f"{phrase.place}: " if phrase.place else ""
            raise TokenError(
                f"{where}the model cannot write {phrase.text!r}: {missing}; {_remedy(phrase.text, tokenizer)}"
            )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold a phrase, numbered from 1."""
    if not path.is_file():
        raise HotwordsError(f"{path}: expected a file with one phrase a line, found no such file")
    with path.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise HotwordsError(f"{path}: expected at most {MAX_FILE_BYTES} bytes of phrases, found more")
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise HotwordsError(f"{path}:{number}: expected UTF-8 text, found other bytes") from error
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _text(normalized: str, written: str, place: str) -> str:
    try:
        text = clean(normalized)
    except TokenError as error:
        raise HotwordsError(f"{place}: {error}") from None
    if not text:
        raise HotwordsError(f"{place}: expected a phrase, found {written.strip()[:MAX_CHARACTERS]!r}")
    if len(text) > MAX_CHARACTERS:
        raise HotwordsError(
            f"{place}: expected a phrase of at most {MAX_CHARACTERS} characters, found {len(text)}"
        )
    return text


def _boost(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -MAX_BOOST <= value <= MAX_BOOST:
        raise HotwordsError(
            f"{place}: expected a boost from {-MAX_BOOST:g} to {MAX_BOOST:g} after the TAB, found "
            f"{text.strip()[:40]!r}"
        )
    return value


def _missing(text: str, tokenizer: Tokenizer) -> str | None:
    """What the tokenizer has no symbol for, in words; None if it can spell the text."""
    try:
        labels = tokenizer.encode(text)
    except TokenError as error:
        return str(error).removesuffix(f"; {UNKNOWN_REMEDY}")
    if tokenizer.unk_id not in labels:
        return None
    kind, units = ("word", text.split()) if tokenizer.config.kind == "word" else ("symbol", list(text))
    unknown = [unit for unit in units if tokenizer.unk_id in tokenizer.encode(unit)]
    return f"the tokenizer has no {kind} {unknown[0]!r}" if unknown else "the tokenizer has no symbols for it"


def _remedy(text: str, tokenizer: Tokenizer) -> str:
    """The case of the letters is what usually differs."""
    for case, other in (("lower", text.lower()), ("upper", text.upper())):
        if other != text and _missing(other, tokenizer) is None:
            return f"this model writes {case} case: write {other!r}"
    return "correct the phrase or leave it out"
