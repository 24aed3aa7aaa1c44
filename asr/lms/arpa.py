r"""Reader of ARPA files: back-off n-gram language models as text, plain or gzipped.

::

    \data\
    ngram 1=4
    ngram 2=2

    \1-grams:
    -0.6  <unk>
    -99   <s>   -0.3
    -0.4  </s>
    -0.5  one   -0.2

    \2-grams:
    -0.2  <s> one
    -0.4  one </s>

    \end\

A line of a section holds the log10 probability of the last word given those before it, the words, and the
log10 back-off weight of all of them as a context; a weight that is not written is 0. What an n-gram that is
not listed costs, `asr.lms.ngram` says. Empty lines, text before `\data\` and behind `\end\` are skipped.

Written so by KenLM, SRILM, IRSTLM, CMU Sphinx and MITLM: `-99` stands for a probability of zero (`<s>` is
never predicted), `<s>`, `</s>` and `<unk>` may be missing, the highest order has no weights, words are UTF-8.

The file is read in blocks, so its size is no matter; the counts of the header are checked but reserve no
memory. Every error is a ModelError that names the file, the line, what was expected and found.

Source: the format is that of Doug Paul's ARPA CSR language models, as SRILM's ngram-format(5) describes it.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from asr.errors import ModelError

MAX_ORDER = 16
"""Longest n-gram; more than letter models need."""
MAX_NGRAMS = 200_000_000
"""N-grams of one order; a file of so many takes tens of gigabytes."""
MAX_LINE_BYTES = 1 << 16
"""Sixteen words of 4 kB."""
MAX_WEIGHT = 1e6
"""Of a back-off weight, as log10; real ones are between -99 and about 1."""
MAX_PREAMBLE_LINES = 10_000
"""Lines before `\\data\\`."""

_BLOCK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class ArpaSection(NamedTuple):
    """The n-grams of one order, in the order of the file."""

    words: NDArray[np.int32]
    """(M, order) indices into `Arpa.words`, the predicted word last."""
    log10: NDArray[np.float32]
    """(M,) log10 probabilities, at most 0; -inf where the file says so."""
    backoff: NDArray[np.float32]
    """(M,) log10 back-off weights, 0 where none is written."""
    lines: NDArray[np.int64]
    """(M,) numbers of the lines, from 1."""


class Arpa(NamedTuple):
    """What an ARPA file holds."""

    path: str
    words: tuple[str, ...]
    """The vocabulary, in the order of the unigrams."""
    sections: tuple[ArpaSection, ...]
    """Orders 1, 2, ..."""


def read_arpa(path: Path | str) -> Arpa:
    """Read an ARPA file, gzipped or not (its first bytes tell).

    Raises ModelError, which names file and line, if it is missing, malformed, cut off or beyond the bounds of
    this module.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: expected an ARPA language model, found no file there")
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        stream = cast(BinaryIO, gzip.open(raw)) if zipped else raw  # noqa: SIM115 it closes nothing
        lines = _Lines(path, stream)
        try:
            return _Reader(path, lines).read()
        except (EOFError, OSError, zlib.error) as error:
            lines.fail("readable text", f"a damaged or cut off file ({error}); fetch it again")


class _Lines:
    """The lines of a file with their numbers, one by one or by the run."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.number = path, 0
        self._blocks, self._block, self._at = self._read(stream), list[bytes](), 0

    def fail(self, expected: str, found: str, line: int | None = None) -> NoReturn:
        """Raise the error of a line, by default the one that was read last."""
        raise ModelError(f"{self.path}:{line or self.number}: expected {expected}, found {found}")

    def next(self) -> bytes | None:
        """The next line that is not empty, stripped; None at the end of the file."""
        while self._fill():
            line = self._block[self._at].strip()
            self._at += 1
            self.number += 1
            if line:
                return line
        return None

    def run(self) -> tuple[int, list[bytes]]:
        """The number of the next line, and lines from there on up to one that begins with a backslash.

        There may be more of them behind these; none at all means that such a line, or the end, is next.
        """
        if not self._fill():
            return self.number + 1, []
        start, block = self._at, self._block
        stop = next((i for i in range(start, len(block)) if block[i][:1] == b"\\"), len(block))
        first = self.number + 1
        self._at, self.number = stop, self.number + stop - start
        return first, block[start:stop]

    def _fill(self) -> bool:
        while self._at == len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._block, self._at = block, 0
        return True

    def _read(self, stream: BinaryIO) -> Iterator[list[bytes]]:
        rest = b""
        while block := stream.read(_BLOCK_BYTES):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            yield lines
            if len(rest) > MAX_LINE_BYTES:
                self.number += 1
                self.fail(f"at most {MAX_LINE_BYTES} bytes in a line", "more; is this an ARPA file?")
        if rest:
            yield [rest]


class _Reader:
    """Reads one file; the format, top to bottom."""

    def __init__(self, path: Path, lines: _Lines) -> None:
        self.path, self.lines = path, lines
        self.ids: dict[bytes, int] = {}

    def read(self) -> Arpa:
        self._skip_preamble()
        counts, line = self._counts()
        sections = []
        for order, stated in enumerate(counts, 1):
            title = f"\\{order}-grams:"
            if line != title.encode():
                self._fail(title, line)
            sections.append(self._section(order, stated))
            line = self.lines.next()
        if line != b"\\end\\":
            self._fail("\\end\\", line)
        return Arpa(str(self.path), self._decoded(sections[0].lines), tuple(sections))

    def _skip_preamble(self) -> None:
        for number in count():
            line = self.lines.next()
            if line == b"\\data\\":
                return
            if line is None or number == MAX_PREAMBLE_LINES:
                self._fail("\\data\\, the beginning of an ARPA language model", line)

    def _counts(self) -> tuple[list[int], bytes | None]:
        """The number of n-grams of each order, and the line behind them."""
        counts: list[int] = []
        while True:
            line = self.lines.next()
            match = re.fullmatch(rb"ngram\s+([0-9]{1,9})\s*=\s*([0-9]{1,18})", line or b"")
            if match is None:
                if not counts:
                    self._fail("ngram 1=COUNT", line)
                return counts, line
            order, stated = int(match[1]), int(match[2])
            if order != len(counts) + 1:
                self._fail(f"ngram {len(counts) + 1}=COUNT", line)
            if order > MAX_ORDER:
                self._fail(f"n-grams of at most {MAX_ORDER} words", line)
            if stated > MAX_NGRAMS:
                self._fail(f"at most {MAX_NGRAMS} n-grams of an order", line)
            counts.append(stated)

    def _section(self, order: int, stated: int) -> ArpaSection:
        parts, total, title = [self._part(order, 0, [])], 0, self.lines.number
        while True:
            first, lines = self.lines.run()
            if not lines:
                break
            part = self._part(order, first, lines)
            total += len(part.lines)
            if total > stated:
                line = int(part.lines[stated - total])
                self.lines.fail(f"{stated} {order}-grams, as the header says", "more", line)
            parts.append(part)
        if total < stated:
            found = f"{total} of them behind line {title}; is the file cut off?"
            self.lines.fail(f"{stated} {order}-grams, as the header says", found, self.lines.number + 1)
        return ArpaSection(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _part(self, order: int, first: int, lines: list[bytes]) -> ArpaSection:
        """Some lines of a section, of which the first has a number."""
        rows = [line.split() for line in lines]
        numbers = np.arange(first, first + len(rows), dtype=np.int64)
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        if not sizes.all():
            numbers, sizes, rows = numbers[sizes > 0], sizes[sizes > 0], [row for row in rows if row]
        strange = (sizes != order + 1) & (sizes != order + 2)
        if strange.any():
            at = int(strange.argmax())
            self._check(order, rows[at], int(numbers[at]))
        weighed = bool((sizes == order + 2).any())
        if weighed:
            for at in np.flatnonzero(sizes == order + 1).tolist():
                rows[at].append(b"0")
        columns = list(zip(*rows, strict=True)) or [()] * (order + 2)
        try:
            log10 = np.fromiter(map(float, columns[0]), np.float64, len(rows))
            backoff = np.zeros(len(rows))
            if weighed:
                backoff = np.fromiter(map(float, columns[-1]), np.float64, len(rows))
            sound = bool((log10 <= 0).all() and (np.abs(backoff) < MAX_WEIGHT).all())
            words = self._words(order, columns[1 : order + 1]) if sound else None
        except (ValueError, KeyError):
            words = None
        if words is None:
            for row, number in zip(rows, numbers.tolist(), strict=True):
                self._check(order, row, number)
        assert words is not None
        with np.errstate(over="ignore"):  # -1e300 is a probability of zero, too
            return ArpaSection(words, log10.astype(np.float32), backoff.astype(np.float32), numbers)

    def _words(self, order: int, columns: Sequence[tuple[bytes, ...]]) -> NDArray[np.int32]:
        """(M, order) ids of columns of words; KeyError if one is not, or as a unigram already, known."""
        if order == 1:
            if len(set(columns[0])) < len(columns[0]) or not self.ids.keys().isdisjoint(columns[0]):
                raise KeyError
            self.ids.update(zip(columns[0], count(len(self.ids)), strict=False))
        ids = self.ids.__getitem__
        return np.stack([np.fromiter(map(ids, words), np.int32, len(words)) for words in columns], 1)

    def _check(self, order: int, row: list[bytes], line: int) -> None:
        """Raise the error of the first thing wrong in a line of a section, if there is one."""
        shape = f"log10-probability, {order} word{'s'[: order > 1]} and perhaps a back-off weight"
        if not order + 1 <= len(row) <= order + 2:
            self.lines.fail(shape, f"{len(row)} field{'s'[: len(row) > 1]}: {_shown(b' '.join(row))}", line)
        if not _number(row[0]) <= 0:
            self.lines.fail("a log10 probability of at most 0", _shown(row[0]), line)
        if len(row) == order + 2 and not abs(_number(row[-1])) < MAX_WEIGHT:
            self.lines.fail("a finite log10 back-off weight", _shown(row[-1]), line)
        for word in row[1 : order + 1]:
            if order > 1 and word not in self.ids:
                self.lines.fail("words that are among the 1-grams", _shown(word), line)
            if order == 1 and word in self.ids:
                self.lines.fail("every word once among the 1-grams", f"{_shown(word)} again", line)
            self.ids[word] = 0  # nothing comes of this reading any more

    def _decoded(self, lines: NDArray[np.int64]) -> tuple[str, ...]:
        words = []
        for word, line in zip(self.ids, lines.tolist(), strict=True):
            try:
                words.append(word.decode())
            except UnicodeDecodeError:
                self.lines.fail("words in UTF-8", _shown(word), line)
        return tuple(words)

    def _fail(self, expected: str, line: bytes | None) -> NoReturn:
        """Raise the error of a line that belongs elsewhere."""
        if line is None:
            self.lines.fail(expected, "the end of the file", self.lines.number + 1)
        self.lines.fail(expected, _shown(line))


def _number(field: bytes) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan


def _shown(field: bytes) -> str:
    text = repr(field[:60].decode(errors="replace"))
    return text if len(field) <= 60 else f"{text[:-1]}...'"
