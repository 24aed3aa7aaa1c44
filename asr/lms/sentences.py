"""Sentences of text files as words, or as the labels of a model's tokenizer.

One sentence a line, UTF-8, gzipped if the name ends in .gz. Lines are normalised (`asr.text.normalize`), and
lines of which nothing remains are skipped. A line that the tokenizer cannot write is left out and counted,
and the first is told: of a large text, some lines always have a symbol that the model does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asr.errors import DataError, TokenError
from asr.text.lines import read_lines
from asr.text.normalize import normalizer
from asr.text.tokenizer import Tokenizer

MARKS = ("<s>", "</s>")
"""Stand around sentences; none may hold them."""


class Sentence(NamedTuple):
    """A line."""

    text: str
    """Normalised."""
    tokens: list[str]
    """Its words, or the symbols of its labels."""


class Sentences:
    """Iterates over the sentences of files, as often as wanted; knows of the last round what it left out.

    Raises ConfigError for a normalisation that there is not and, while it reads, ManifestError naming the
    file and line that is not UTF-8 text.
    """

    def __init__(
        self, paths: Sequence[Path], normalization: str = "basic", tokenizer: Tokenizer | None = None
    ) -> None:
        self.paths, self.tokenizer = list(paths), tokenizer
        self._normalize = normalizer(normalization)
        self.left_out = 0
        """Lines that cannot be written."""
        self.first_left_out = ""
        """Where the first of them is, and why."""

    def __iter__(self) -> Iterator[Sentence]:
        self.left_out, self.first_left_out = 0, ""
        for path in self.paths:
            for number, line in read_lines(path):
                text = self._normalize(line)
                if not text:
                    continue
                try:
                    yield Sentence(text, self._tokens(text))
                except TokenError as error:
                    self.first_left_out = self.first_left_out or f"{path}:{number}: {error}"
                    self.left_out += 1

    def at_least_one(self) -> Iterator[Sentence]:
        """The same; raises DataError at the end if there was none."""
        found = False
        for sentence in self:
            found = True
            yield sentence
        if not found:
            files = ", ".join(map(str, self.paths)) or "no file"
            why = f"; left out {self.left_out}, the first at {self.first_left_out}" if self.left_out else ""
            raise DataError(f"{files}: expected at least one sentence, found none{why}")

    def _tokens(self, text: str) -> list[str]:
        tokens = text.split()
        if self.tokenizer is not None:
            tokens = self.tokenizer.pieces(self.tokenizer.encode(text))
        for mark in MARKS:
            if mark in tokens:
                raise TokenError(f"a sentence may not hold {mark}, which is set around it; remove it")
        return tokens
