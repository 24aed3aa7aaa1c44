"""Language models over the labels of a recogniser, and what else scores a hypothesis."""

from __future__ import annotations

from asr.lms.base import Scorer
from asr.lms.ngram import NgramModel
from asr.lms.tokens import TokenNgram
from asr.lms.words import WordNgram, WordNgramConfig

__all__ = ["NgramModel", "Scorer", "TokenNgram", "WordNgram", "WordNgramConfig"]
