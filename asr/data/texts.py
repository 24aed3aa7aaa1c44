"""Batches of sentences for language models, from text files of any size: one sentence a line, in UTF-8.

A file is read in windows of some megabytes that end where a line does. A window's sentences are encoded,
ordered by length with some shuffling, and packed (asr.data.plan.pack) so that sentences times the longest,
its end included, is at most `max_labels`. Two windows are in memory at most, whatever the size of the files.

Held out for dev are all sentences whose CRC-32 is a multiple of `dev_every`: the same ones in every run, and
no sentence is both learnt from and held out, however often it is there.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.data.plan import KEPT_WINDOWS, PLAN, EpochPlan, pack
from asr.data.planned import PlannedBatches
from asr.errors import AsrError, DataError
from asr.text.tokenizer import Tokenizer

MAX_LINE_BYTES = 1_000_000
"""No sentence is longer; a file without line ends is not read into memory."""

Side = Literal["train", "dev", "all"]


class TextBatchesConfig(Config):
    """How sentences are grouped into batches."""

    max_labels: int = Field(4096, ge=1)
    """Labels in a batch, padding and ends included: sentences times the longest."""
    max_sentences: int = Field(512, ge=1)
    num_buckets: int = Field(20, ge=1)
    """As batches.num_buckets of recordings."""
    max_length: int = Field(2000, ge=1)
    """Labels of the longest sentence; a longer one is an error that names its line."""
    shuffle: bool = True
    seed: int = Field(0, ge=0)
    dev_every: int = Field(50, ge=2)
    """One of so many sentences is held out for dev, unless there are files for it."""
    window_mb: float = Field(8.0, gt=0, le=1024)
    """Text that is in memory at a time, twice."""


@dataclass(frozen=True)
class TextBatch:
    """B sentences."""

    labels: Tensor
    """(B, U) int64, padded with 0."""
    lengths: Tensor
    """(B,) int64, ends not counted."""
    words: int
    """In all of them."""
    ids: tuple[str, ...]
    """FILE:LINE of each."""
    seed: int = 0
    """Of what is drawn while the model goes through it."""
    borrowed: bool = False
    """Another process learns from it."""


class Window(NamedTuple):
    """Lines of a file that are read together."""

    file: int
    begin: int
    """Byte of its first line."""
    end: int
    line: int
    """Number of its first line, from 1."""


class TextPlan(NamedTuple):
    """One batch to make."""

    window: int
    rows: tuple[int, ...]
    """Sentences, counted within the window."""
    seed: int


@dataclass(frozen=True)
class _Sentences:
    """A window in memory; row i is labels[starts[i] : starts[i + 1]]."""

    labels: np.ndarray
    starts: np.ndarray
    words: np.ndarray
    lines: np.ndarray


class TextBatches(PlannedBatches[TextPlan, TextBatch]):
    """Batches of the sentences of `files`, epoch after epoch."""

    def __init__(
        self,
        files: Sequence[Path],
        config: TextBatchesConfig,
        tokenizer: Tokenizer,
        *,
        side: Side,
        training: bool,
    ) -> None:
        """`side` says which sentences. Goes through the files once.

        Raises DataError if one cannot be read or there is no sentence.
        """
        super().__init__(training)
        self.files, self.config, self.tokenizer, self.side = tuple(files), config, tokenizer, side
        self._windows, self._digest = _windows(self.files, int(config.window_mb * 1e6))
        self._kept: OrderedDict[int, _Sentences] = OrderedDict()

    def fingerprint(self) -> str:
        """See PlannedBatches.fingerprint."""
        settings = f"{self.config.model_dump_json()}{self.side}{self.tokenizer.symbols}{self._digest}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def texts(self) -> Iterator[str]:
        """The sentences of this side, as they stand in the files, without white space around them."""
        for number in range(len(self._windows)):
            for _, text in self._lines(number):
                yield text

    def _plan(self) -> EpochPlan[TextPlan]:
        """Raises DataError naming the line that cannot be a sentence, or if there is none at all."""
        epoch = self._epoch if self.training else 0
        order = np.arange(len(self._windows))
        if self.training and self.config.shuffle:
            order = np.random.default_rng([self.config.seed, epoch, PLAN, 2]).permutation(order)
        plans = EpochPlan(len(order), lambda number: self._plan_window(int(order[number]), epoch))
        if not len(plans):
            which = {"train": "to learn from", "dev": "held out for dev", "all": "in them"}[self.side]
            names = ", ".join(map(str, self.files))
            raise DataError(
                f"{names}: no sentence {which}; give more text, or another batches.dev_every "
                f"({self.config.dev_every})"
            )
        return plans

    def _plan_window(self, window: int, epoch: int) -> list[TextPlan]:
        config = self.config
        packed = pack(
            np.diff(self._sentences(window).starts) + 1,
            most=config.max_labels,
            count=config.max_sentences,
            num_buckets=config.num_buckets,
            shuffle=config.shuffle and self.training,
            seed=config.seed,
            epoch=epoch,
            window=window,
        )
        return [TextPlan(window, tuple(batch.rows), batch.seed) for batch in packed]

    def _made(self) -> Iterator[TextBatch | AsrError]:
        return (self.make(plan) for plan in self.remaining())

    def make(self, plan: TextPlan) -> TextBatch:
        """The batch of a plan."""
        kept, rows = self._sentences(plan.window), np.array(plan.rows)
        lengths = np.diff(kept.starts)[rows]
        labels = np.zeros((len(rows), int(lengths.max(initial=0))), dtype=np.int64)
        for place, row in enumerate(rows):
            labels[place, : lengths[place]] = kept.labels[kept.starts[row] : kept.starts[row + 1]]
        file = self.files[self._windows[plan.window].file]
        return TextBatch(
            torch.from_numpy(labels),
            torch.from_numpy(lengths.astype(np.int64)),
            int(kept.words[rows].sum()),
            tuple(f"{file}:{line}" for line in kept.lines[rows]),
            plan.seed,
        )

    def _sentences(self, window: int) -> _Sentences:
        if window not in self._kept:
            if len(self._kept) == KEPT_WINDOWS:
                self._kept.popitem(last=False)
            self._kept[window] = self._encoded(window)
        self._kept.move_to_end(window)
        return self._kept[window]

    def _encoded(self, window: int) -> _Sentences:
        labels, starts, words, lines = list[np.ndarray](), [0], list[int](), list[int]()
        file = self.files[self._windows[window].file]
        for line, text in self._lines(window):
            row = self.tokenizer.encode(text, f"{file}:{line}")
            if len(row) > self.config.max_length:
                raise DataError(
                    f"{file}:{line}: expected a sentence of at most {self.config.max_length} labels, found "
                    f"{len(row)}; write one sentence a line, or raise batches.max_length"
                )
            labels.append(np.array(row, dtype=np.int32))
            starts.append(starts[-1] + len(row))
            words.append(len(text.split()))
            lines.append(line)
        joined = np.concatenate(labels) if labels else np.zeros(0, dtype=np.int32)
        return _Sentences(joined, np.array(starts), np.array(words, np.int64), np.array(lines, np.int64))

    def _lines(self, window: int) -> Iterator[tuple[int, str]]:
        """Line numbers and sentences of this side; empty lines are none."""
        number, begin, end, first = self._windows[window]
        file = self.files[number]
        with file.open("rb") as stream:
            stream.seek(begin)
            content = stream.read(end - begin)
        for line, raw in enumerate(content.split(b"\n"), first):
            try:
                text = raw.decode().strip()
            except UnicodeDecodeError:
                raise DataError(f"{file}:{line}: expected text in UTF-8, found other bytes") from None
            if text and self._is_wanted(text):
                yield line, text

    def _is_wanted(self, text: str) -> bool:
        if self.side == "all":
            return True
        held_out = zlib.crc32(" ".join(text.split()).encode()) % self.config.dev_every == 0
        return held_out == (self.side == "dev")


def _windows(files: Sequence[Path], size: int) -> tuple[list[Window], str]:
    """The windows of all files, and a digest of their content; raises DataError."""
    windows, digest = list[Window](), hashlib.sha256()
    for number, file in enumerate(files):
        if not file.is_file():
            raise DataError(f"{file}: expected a text file, one sentence a line; found none there")
        begin, line = 0, 1
        with file.open("rb") as stream:
            while content := stream.read(size):
                ends, rest = content.count(b"\n"), stream.readline(MAX_LINE_BYTES)
                if len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    raise DataError(
                        f"{file}:{line + ends}: expected lines of at most {MAX_LINE_BYTES} "
                        "bytes, found a longer one; write one sentence a line"
                    )
                digest.update(content + rest)
                end = begin + len(content) + len(rest)
                windows.append(Window(number, begin, end, line))
                line += ends + rest.count(b"\n")
                begin = end
        digest.update(b"\0")
    return windows, digest.hexdigest()
