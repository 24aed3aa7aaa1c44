"""How good confidences are, over recognised words of which a reference says whether they are right.

With c_i the confidence in word i of N and n words right, p = n / N::

    NCE = (H + sum_right log2 c_i + sum_wrong log2 (1 - c_i)) / H,   H = -n log2 p - (N - n) log2 (1 - p)
    ECE = sum_b N_b / N |share of right words in b - mean confidence in b|,   b: ten bins of equal width
    AUC = P(c of a right word > c of a wrong one) + P(they are equal) / 2

The normalised cross entropy is that of the NIST (Siu and Gish 1999; sclite): 1 for an oracle, 0 for saying p
of every word, below 0 for worse. Confidences are kept LEAST away from 0 and 1, as a wrong word of confidence
1 would be infinitely bad. The expected calibration error is that of Guo et al., *On calibration of modern
neural networks* (2017). Deleted words have no confidence and take no part.

`fit_temperature` finds the T for which c^(1/T) has the least cross entropy. It is convex in 1/T, and its
derivative, with x = -ln c, is

    sum_right x - sum_wrong x / (exp(x / T) - 1)

whose only zero is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from asr.score.wer import WerReport
from asr.score.words import HeardWord, in_place

LEAST = 1e-4
BINS = 10
TEMPERATURES = (1e-3, 1e3)
"""Temperatures that may be found."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """Recognised words, one by one."""

    confidence: Floats
    """(N,) in 0..1."""
    right: npt.NDArray[np.bool_]
    """(N,)."""
    left_out: int = 0
    """Utterances whose words the normalisation has mixed up."""

    def tempered(self, temperature: float) -> Judged:
        """The same with other confidences."""
        return Judged(self.confidence ** (1 / temperature), self.right, self.left_out)


class Bin(NamedTuple):
    """Words of about one confidence."""

    words: int
    confidence: float
    """Mean; NaN without words."""
    right: float
    """Share; NaN without words."""


@dataclass(frozen=True)
class ConfidenceReport:
    """Quality of confidences; what cannot be measured is NaN."""

    count: int
    right: int
    nce: float
    """Undefined if all words are right, or none."""
    ece: float
    auc: float
    bins: tuple[Bin, ...]
    """From the least confidence to the most, all of one width."""
    left_out: int = 0

    def __str__(self) -> str:
        return f"NCE {self.nce:.3f}, ECE {100 * self.ece:.1f} %, AUC {self.auc:.3f}"

    def lines(self) -> list[str]:
        """For the terminal."""
        if not self.count:
            return []
        share = f"{100 * self.right / self.count:.1f} % of {self.count} words right"
        skipped = f"; {self.left_out} utterances left out" if self.left_out else ""
        return [f"confidence: {self} ({share}{skipped})"]


def judge(report: WerReport, words: Mapping[str, Sequence[HeardWord]]) -> Judged:
    """The recognised words of every utterance of a scoring, by id, with whether they are right."""
    confidence, right, left_out = list[float](), list[bool](), 0
    for utterance in report.utterances:
        columns = [column for column in utterance.alignment if column.hypothesis is not None]
        aligned = [str(column.hypothesis) for column in columns]
        found = in_place(words.get(utterance.id, ()), aligned, report.normalization)
        if found is None:
            left_out += 1
            continue
        confidence += [word.confidence for word in found]
        right += [not column.mark for column in columns]
    return Judged(np.array(confidence, dtype=np.float64), np.array(right, dtype=np.bool_), left_out)


def measure_confidence(judged: Judged) -> ConfidenceReport:
    """The quality of confidences."""
    count, right = len(judged.right), int(judged.right.sum())
    bins = tuple(_bin(judged, number) for number in range(BINS))
    off = [b.words * abs(b.right - b.confidence) for b in bins if b.words]
    return ConfidenceReport(
        count,
        right,
        _nce(judged),
        sum(off) / count if count else math.nan,
        _auc(judged.confidence[judged.right], judged.confidence[~judged.right]),
        bins,
        judged.left_out,
    )


def fit_temperature(judged: Judged) -> float | None:
    """The temperature with the least cross entropy; None if all words are right, or all wrong."""
    x = -np.log(judged.confidence.clip(1e-12, 1 - LEAST / 2))
    right, wrong = x[judged.right], x[~judged.right]
    if not len(right) or not len(wrong):
        return None
    low, high = (math.log(temperature) for temperature in TEMPERATURES)
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(over="ignore"):
            slope = right.sum() - (wrong / np.expm1(wrong / math.exp(middle))).sum()
        # The slope is in 1/T: above 0 that is too large.
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def confidence_lines(
    judged: Judged,
    title: str,
    calibrate: bool = False,
    picture: Path | None = None,
    temperature: float = 1.0,
) -> list[str]:
    """What a report says about confidences, nothing if there are none; drawn, if asked, into a PNG file.

    calibrate: also which temperature would fit these words, of which confidences had `temperature`.
    """
    report = measure_confidence(judged)
    lines, reports = report.lines(), {str(report): report}
    fitted = fit_temperature(judged) if calibrate else None
    if fitted is not None:
        better, setting = measure_confidence(judged.tempered(fitted)), f"{temperature * fitted:.3g}"
        reports[f"temperature {setting}: {better}"] = better
        lines += [
            f"temperature that fits best here: {setting} ({better}); on a dev set, use --search "
            f"confidence.temperature={setting} or search.confidence.temperature in the model's config.yaml"
        ]
    elif calibrate:
        lines += ["no temperature can be fitted: expected words with confidences, right ones and wrong ones"]
    if picture is not None:
        from asr.score.picture import draw_reliability  # takes a second to import

        draw_reliability(picture, reports, title)
    return lines


def _nce(judged: Judged) -> float:
    count, right = len(judged.right), int(judged.right.sum())
    if right in (0, count):
        return math.nan
    share = right / count
    most = -right * math.log2(share) - (count - right) * math.log2(1 - share)
    c = judged.confidence.clip(LEAST, 1 - LEAST)
    return float((most + np.log2(c[judged.right]).sum() + np.log2(1 - c[~judged.right]).sum()) / most)


def _auc(right: Floats, wrong: Floats) -> float:
    if not len(right) or not len(wrong):
        return math.nan
    wrong = np.sort(wrong)
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.sum() / 2 / (len(right) * len(wrong)))


def _bin(judged: Judged, number: int) -> Bin:
    there = np.minimum((judged.confidence * BINS).astype(np.int64), BINS - 1) == number
    count = int(there.sum())
    if not count:
        return Bin(0, math.nan, math.nan)
    return Bin(count, float(judged.confidence[there].mean()), float(judged.right[there].mean()))
