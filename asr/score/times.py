"""How far the times of recognised words are from the truth, say from a forced alignment of the reference.

Only words that were recognised correctly are compared, those that the alignment of the scoring marks as such;
each end of a word has its absolute error and, with its sign, whether it comes late or early on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asr.score.latency import Delays, summarize
from asr.score.wer import UtteranceScore, WerReport
from asr.score.words import HeardWord, in_place


@dataclass(frozen=True)
class TimeReport:
    """Errors of times over a test set."""

    start: Delays
    """Of absolute errors of starts."""
    end: Delays
    start_late_s: float
    """Mean error with its sign, above 0 where words are said to begin later than they do; NaN without any."""
    end_late_s: float
    left_out: int
    """Utterances whose words do not fit those that were scored."""

    def lines(self) -> list[str]:
        """For the terminal."""
        skipped = [f"times of {self.left_out} utterances left out"] if self.left_out else []
        return [
            f"word start error   {self.start}{_late(self.start_late_s)}",
            f"word end error     {self.end}{_late(self.end_late_s)}",
            *skipped,
        ]


def measure_times(
    report: WerReport,
    recognised: Mapping[str, Sequence[HeardWord]],
    truth: Mapping[str, Sequence[HeardWord]],
) -> TimeReport:
    """The errors of times in the utterances of a scoring for which, by id, there is a truth."""
    starts, ends, left_out = list[float](), list[float](), 0
    for utterance in report.utterances:
        if utterance.id not in truth:
            continue
        pairs = _pairs(utterance, recognised.get(utterance.id, ()), truth[utterance.id], report.normalization)
        if pairs is None:
            left_out += 1
            continue
        starts += [heard.start_s - said.start_s for heard, said in pairs]
        ends += [heard.end_s - said.end_s for heard, said in pairs]
    return TimeReport(
        summarize(map(abs, starts)),
        summarize(map(abs, ends)),
        float(np.mean(starts)) if starts else math.nan,
        float(np.mean(ends)) if ends else math.nan,
        left_out,
    )


def _pairs(
    utterance: UtteranceScore, heard: Sequence[HeardWord], said: Sequence[HeardWord], normalization: str
) -> list[tuple[HeardWord, HeardWord]] | None:
    """Recognised and true words of the correct columns; None if the words are not those that were scored."""
    columns = utterance.alignment
    ours = in_place(heard, [c.hypothesis for c in columns if c.hypothesis is not None], normalization)
    theirs = in_place(said, [c.reference for c in columns if c.reference is not None], normalization)
    if ours is None or theirs is None:
        return None
    left, right, pairs = iter(ours), iter(theirs), []
    for column in columns:
        pair = (
            next(left) if column.hypothesis is not None else None,
            next(right) if column.reference is not None else None,
        )
        if not column.mark and pair[0] is not None and pair[1] is not None:
            pairs.append((pair[0], pair[1]))
    return pairs


def _late(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"; on average {1000 * seconds:+.0f} ms"
