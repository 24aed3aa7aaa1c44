"""Recognised words with what is known of them (times, confidence), found again in the alignment of a scoring.

A scoring aligns normalised texts (asr.score.wer). A word that the normalisation makes two of ("can't", "can
not") stands for both; where it makes one of two, nothing says which is which and the utterance is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asr.text.normalize import normalize


class HeardWord(NamedTuple):
    """A word, its start and end in seconds and the confidence in it, in 0..1."""

    text: str
    start_s: float
    end_s: float
    confidence: float = 1.0


def in_place(
    words: Sequence[HeardWord], aligned: Sequence[str], normalization: str
) -> list[HeardWord] | None:
    """For each word of one side of an alignment the word that it was made of; None if that cannot be told."""
    made = [(part, word) for word in words for part in normalize(word.text, normalization).split()]
    if [part for part, _ in made] != list(aligned):
        return None
    return [word for _, word in made]
