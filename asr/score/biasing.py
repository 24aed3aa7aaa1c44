"""How well listed phrases are recognised, and at what cost for all other words.

    recall     listed phrases of the references that were recognised, as one piece, where they were said
    precision  of the listed phrases of the hypotheses, those that were said there
    B-WER      word error rate on words of listed phrases, U-WER on all others

A substitution or deletion belongs to the word of the reference, an insertion to the word that was inserted:
it counts for B-WER if that is part of a listed phrase in the hypothesis. Source: Le et al. 2021,
"Contextualized streaming end-to-end speech recognition with trie-based deep biasing and shallow fusion";
their lists are of single words, for which this is the same. Phrases within or across others count each on its
own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from asr.score.wer import AlignedWord, WerReport
from asr.text.normalize import normalize


@dataclass(frozen=True)
class PhraseCount:
    """Where one phrase, or all of them, stood."""

    said: int = 0
    """In the references."""
    written: int = 0
    """In the hypotheses."""
    right: int = 0
    """In both, at the same place."""

    @property
    def recall(self) -> float:
        """As a fraction; NaN if none was said."""
        return self.right / self.said if self.said else math.nan

    @property
    def precision(self) -> float:
        """As a fraction; NaN if none was written."""
        return self.right / self.written if self.written else math.nan

    def __add__(self, other: PhraseCount) -> PhraseCount:
        return PhraseCount(self.said + other.said, self.written + other.written, self.right + other.right)


@dataclass(frozen=True)
class WordRate:
    """Errors among some of the words."""

    errors: int = 0
    words: int = 0
    """Of the references."""

    @property
    def wer(self) -> float:
        """As a fraction; NaN without words."""
        return self.errors / self.words if self.words else math.nan


@dataclass(frozen=True)
class BiasingReport:
    """What scoring listed phrases found."""

    phrases: dict[str, PhraseCount]
    """By phrase under the report's normalisation, in the order of the list."""
    listed: WordRate
    """B-WER"""
    unlisted: WordRate
    """U-WER"""

    @property
    def overall(self) -> PhraseCount:
        """All phrases together."""
        return sum(self.phrases.values(), PhraseCount())

    def lines(self) -> list[str]:
        """For people."""
        all_of, count = self.overall, len(self.phrases)
        return [
            f"{count} listed {'phrase' if count == 1 else 'phrases'}: "
            f"recall {_percent(all_of.recall)} ({all_of.right} / {all_of.said} said), "
            f"precision {_percent(all_of.precision)} ({all_of.right} / {all_of.written} written)",
            f"WER on listed words {_percent(self.listed.wer)} ({self.listed.errors} / {self.listed.words}), "
            f"on all others {_percent(self.unlisted.wer)} ({self.unlisted.errors} / {self.unlisted.words})",
        ]


def score_phrases(
    report: WerReport, phrases: Iterable[str], own: Mapping[str, Iterable[str]] = MappingProxyType({})
) -> BiasingReport:
    """Score listed phrases in what was aligned for `report`; they are normalised as its texts were.

    own: by the id of an utterance phrases that are listed for it alone.
    """
    general = _normal(phrases, report.normalization)
    first_of_all = _by_first(general)
    counts = dict.fromkeys(general, PhraseCount())
    listed, unlisted = WordRate(), WordRate()
    for utterance in report.utterances:
        its = _normal(own.get(utterance.id, ()), report.normalization)
        by_first = _by_first(dict.fromkeys([*general, *its])) if its else first_of_all
        counts |= {phrase: PhraseCount() for phrase in its if phrase not in counts}
        columns = utterance.alignment
        said = _places([column.reference for column in columns], by_first)
        written = _places([column.hypothesis for column in columns], by_first)
        right = said.keys() & written.keys()
        for found, count in ((said, (1, 0, 0)), (written, (0, 1, 0)), (right, (0, 0, 1))):
            for place in found:
                counts[place[0]] += PhraseCount(*count)
        inside = {column for place in said.values() for column in place}
        inserted = {column for place in written.values() for column in place}
        for number, column in enumerate(columns):
            if number in inside or (column.mark == "I" and number in inserted):
                listed = _count(listed, column)
            else:
                unlisted = _count(unlisted, column)
    return BiasingReport(counts, listed, unlisted)


def _normal(phrases: Iterable[str], normalization: str) -> list[str]:
    """Different phrases, in their order."""
    found = dict.fromkeys(normalize(phrase, normalization) for phrase in phrases)
    found.pop("", None)
    return list(found)


def _by_first(phrases: Iterable[str]) -> dict[str, list[tuple[str, ...]]]:
    """Phrases as words, by their first."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for phrase in phrases:
        found.setdefault(phrase.split()[0], []).append(tuple(phrase.split()))
    return found


def _places(
    words: Sequence[str | None], by_first: dict[str, list[tuple[str, ...]]]
) -> dict[tuple[str, tuple[int, ...]], tuple[int, ...]]:
    """Phrases in one side of an alignment, by phrase and the columns that their words are in."""
    there = [(number, word) for number, word in enumerate(words) if word is not None]
    found = {}
    for start, (_, word) in enumerate(there):
        for phrase in by_first.get(word, ()):
            part = there[start : start + len(phrase)]
            if tuple(word for _, word in part) == phrase:
                columns = tuple(number for number, _ in part)
                found[" ".join(phrase), columns] = columns
    return found


def _count(rate: WordRate, column: AlignedWord) -> WordRate:
    return WordRate(rate.errors + bool(column.mark), rate.words + (column.mark != "I"))


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
