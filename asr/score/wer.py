r"""Word error rate: alignment, counts, confusions, confidence interval.

    WER = (S + D + I) / N        S substitutions, D deletions, I insertions, N reference words

over all utterances together, from a Levenshtein alignment of each (jiwer). CER is the same on characters,
spaces included, in which form jiwer and most published numbers have it. The sentence error rate is the share
of utterances with at least one word error.

The interval is the percentile bootstrap of Bisani and Ney, "Bootstrap estimates for confidence intervals in
ASR performance evaluation" (ICASSP 2004): whole utterances are drawn with replacement, because errors within
one depend on each other. It says how far the number could move with other utterances of the same
speakers, not with other speakers; with no error at all it collapses to [0, 0].

An empty reference makes all hypothesis words insertions, an empty hypothesis all reference words deletions;
texts change only by the named normalisation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import jiwer
import numpy as np

from asr.errors import DataError
from asr.text.normalize import normalize

BOOTSTRAP_SAMPLES = 1000
MAX_NAMED_IDS = 5


@dataclass(frozen=True)
class WordErrors:
    """Counts of one utterance, speaker or test set; they add up with `+`."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    reference_words: int = 0
    sentences: int = 0
    wrong_sentences: int = 0

    @property
    def errors(self) -> int:
        """S + I + D."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; with no reference words 0 if all is well, otherwise infinite."""
        return _rate(self.errors, self.reference_words)

    @property
    def sentence_error_rate(self) -> float:
        """Share of utterances with an error, as a fraction."""
        return _rate(self.wrong_sentences, self.sentences)

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.reference_words + other.reference_words,
            self.sentences + other.sentences,
            self.wrong_sentences + other.wrong_sentences,
        )


class AlignedWord(NamedTuple):
    """One column of an alignment; None where the other side has a word of its own."""

    reference: str | None
    hypothesis: str | None

    @property
    def mark(self) -> Literal["", "S", "I", "D"]:
        """What went wrong here: substitution, insertion, deletion or nothing."""
        if self.reference is None:
            return "I"
        if self.hypothesis is None:
            return "D"
        return "" if self.reference == self.hypothesis else "S"


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance: its counts and its alignment."""

    id: str
    speaker: str | None
    errors: WordErrors
    alignment: tuple[AlignedWord, ...]
    character_errors: int
    reference_characters: int


class Confusion(NamedTuple):
    """How often one reference word was recognised as another."""

    reference: str
    hypothesis: str
    times: int


class WordCount(NamedTuple):
    """How often a word was inserted or deleted."""

    word: str
    times: int


@dataclass(frozen=True)
class WerReport:
    """Everything that scoring found. Rates are fractions, not per cent."""

    normalization: str
    overall: WordErrors
    speakers: Mapping[str, WordErrors]
    """Counts by speaker, in order of name; empty if no speakers were given."""
    utterances: tuple[UtteranceScore, ...]
    """In the order of the references."""
    confusions: tuple[Confusion, ...]
    """Substitutions, most frequent first; so are insertions and deletions."""
    insertions: tuple[WordCount, ...]
    deletions: tuple[WordCount, ...]
    character_errors: int
    reference_characters: int
    interval: tuple[float, float]
    """95 % bootstrap confidence interval of the word error rate."""
    missing: tuple[str, ...] = field(default=())
    """Ids without a hypothesis, scored as empty (only with allow_missing)."""

    @property
    def wer(self) -> float:
        """Word error rate as a fraction."""
        return self.overall.wer

    @property
    def cer(self) -> float:
        """Character error rate as a fraction, spaces counted."""
        return _rate(self.character_errors, self.reference_characters)

    @property
    def sentence_error_rate(self) -> float:
        """Share of utterances with an error, as a fraction."""
        return self.overall.sentence_error_rate


def score_pairs(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    *,
    normalization: str = "none",
    speakers: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    seed: int = 0,
) -> WerReport:
    """Score texts by utterance id, each side normalised by the named rule (`asr.text.normalize`).

    With `allow_missing`, an id without hypothesis counts as an empty one (all words deleted) and an id
    without reference is left out. Otherwise either is a DataError that names ids; so is having nothing to
    score. ConfigError if the normalisation is unknown.
    """
    missing = _check_ids(references, hypotheses, allow_missing)
    utterances = _score_utterances(references, hypotheses, normalization, speakers or {})
    overall = sum((utterance.errors for utterance in utterances), WordErrors())
    marked = [column for utterance in utterances for column in utterance.alignment if column.mark]
    substituted = Counter((w.reference, w.hypothesis) for w in marked if w.mark == "S")
    return WerReport(
        normalization=normalization,
        overall=overall,
        speakers=_by_speaker(utterances),
        utterances=utterances,
        confusions=tuple(Confusion(str(r), str(h), n) for (r, h), n in _ranked(substituted)),
        insertions=_count_words(w.hypothesis for w in marked if w.mark == "I"),
        deletions=_count_words(w.reference for w in marked if w.mark == "D"),
        character_errors=sum(utterance.character_errors for utterance in utterances),
        reference_characters=sum(utterance.reference_characters for utterance in utterances),
        interval=bootstrap_interval([utterance.errors for utterance in utterances], seed=seed),
        missing=missing,
    )


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[WordErrors]:
    """Counts of each pair of texts as they are written, without all else that a report has."""
    if not references:
        return []
    words = jiwer.process_words(list(references), list(hypotheses))
    aligned = zip(words.references, words.hypotheses, words.alignments, strict=True)
    return [_count(_columns(*pair)) for pair in aligned]


def bootstrap_interval(
    counts: Sequence[WordErrors], *, level: float = 0.95, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the word error rate over utterances, as fractions.

    Resamples without a single reference word are left out; if none is left the interval is [WER, WER].
    """
    errors = np.array([count.errors for count in counts], dtype=np.int64)
    words = np.array([count.reference_words for count in counts], dtype=np.int64)
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(samples):
        drawn = rng.integers(len(counts), size=len(counts))
        if total := int(words[drawn].sum()):
            rates.append(int(errors[drawn].sum()) / total)
    if not rates:
        rate = _rate(int(errors.sum()), int(words.sum()))
        return rate, rate
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_ids(references: Mapping[str, str], hypotheses: Mapping[str, str], allow: bool) -> tuple[str, ...]:
    if not references:
        raise DataError("expected at least one reference to score against, found none")
    missing = tuple(key for key in references if key not in hypotheses)
    extra = [key for key in hypotheses if key not in references]
    if len(missing) == len(references):
        raise DataError(
            f"no id is on both sides: the references have {_named(missing)}, the hypotheses {_named(extra)}"
        )
    if missing and not allow:
        raise DataError(
            f"{len(missing)} of {len(references)} references have no hypothesis: {_named(missing)}"
        )
    if extra and not allow:
        raise DataError(f"{len(extra)} of {len(hypotheses)} hypotheses have no reference: {_named(extra)}")
    return missing


def _named(ids: Sequence[str]) -> str:
    if not ids:
        return "none"
    more = f" and {len(ids) - MAX_NAMED_IDS} more" if len(ids) > MAX_NAMED_IDS else ""
    return ", ".join(ids[:MAX_NAMED_IDS]) + more


def _score_utterances(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    normalization: str,
    speakers: Mapping[str, str],
) -> tuple[UtteranceScore, ...]:
    texts = [normalize(text, normalization) for text in references.values()]
    written = [normalize(hypotheses.get(key, ""), normalization) for key in references]
    words = jiwer.process_words(texts, written)
    characters = jiwer.process_characters(texts, written)
    scores = []
    for index, key in enumerate(references):
        alignment = _columns(words.references[index], words.hypotheses[index], words.alignments[index])
        scores.append(
            UtteranceScore(
                id=key,
                speaker=speakers.get(key),
                errors=_count(alignment),
                alignment=alignment,
                character_errors=_distance(characters.alignments[index]),
                reference_characters=len(texts[index]),
            )
        )
    return tuple(scores)


def _columns(
    reference: list[str], hypothesis: list[str], chunks: list[jiwer.AlignmentChunk]
) -> tuple[AlignedWord, ...]:
    columns: list[AlignedWord] = []
    for chunk in chunks:
        left: list[str | None] = [*reference[chunk.ref_start_idx : chunk.ref_end_idx]]
        right: list[str | None] = [*hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]]
        columns.extend(AlignedWord(r, h) for r, h in zip_longest(left, right))
    return tuple(columns)


def _count(alignment: Sequence[AlignedWord]) -> WordErrors:
    marks = Counter(column.mark for column in alignment)
    return WordErrors(
        substitutions=marks["S"],
        insertions=marks["I"],
        deletions=marks["D"],
        reference_words=len(alignment) - marks["I"],
        sentences=1,
        wrong_sentences=int(marks[""] < len(alignment)),
    )


def _distance(chunks: list[jiwer.AlignmentChunk]) -> int:
    """Edit operations of an alignment: a substituted chunk is as long on both sides."""
    return sum(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in chunks
        if chunk.type != "equal"
    )


def _by_speaker(utterances: Iterable[UtteranceScore]) -> dict[str, WordErrors]:
    totals: dict[str, WordErrors] = {}
    for utterance in utterances:
        if utterance.speaker is not None:
            totals[utterance.speaker] = totals.get(utterance.speaker, WordErrors()) + utterance.errors
    return dict(sorted(totals.items()))


def _count_words(words: Iterable[str | None]) -> tuple[WordCount, ...]:
    return tuple(WordCount(str(word), count) for word, count in _ranked(Counter(words)))


def _ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """Most frequent first, then by name, so that equal counts have one order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _rate(errors: int, total: int) -> float:
    if total == 0:
        return 0.0 if errors == 0 else math.inf
    return errors / total
