"""How often words change that a live transcript has shown.

Of two texts shown one after the other, the words of the first that are not, in their order, in the second
have changed; a word that merely moves has not. The last word of the first may go on in the second ("th",
"the"): it has grown, which is counted by itself. Over the texts of an utterance, the last of them final::

    words shown = words of the final text + words that changed
    unstable partial word ratio = words that changed / words of the final text

The ratio, and the share of utterances in which any word changed, are in the manner of Shangguan et al.,
*Analyzing the quality and stability of a streaming end-to-end on-device speech recognizer* (2020); what
counts as a change is defined here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rapidfuzz.distance import LCSseq


class Change(NamedTuple):
    """What became of the words of a text in the next one."""

    changed: int
    grown: int


@dataclass(frozen=True)
class Stability:
    """Counts over utterances; they add up with `+`."""

    final: int = 0
    """Words of final texts."""
    changed: int = 0
    grown: int = 0
    utterances: int = 0
    unstable: int = 0
    """Utterances in which a word changed."""

    @property
    def share(self) -> float:
        """Changed words of all that were shown; NaN without any."""
        shown = self.final + self.changed
        return self.changed / shown if shown else math.nan

    @property
    def unstable_partial_word_ratio(self) -> float:
        """Changed words per word of the final texts; NaN without any."""
        return self.changed / self.final if self.final else math.nan

    def __add__(self, other: Stability) -> Stability:
        return Stability(
            self.final + other.final,
            self.changed + other.changed,
            self.grown + other.grown,
            self.utterances + other.utterances,
            self.unstable + other.unstable,
        )

    def lines(self) -> list[str]:
        """For the terminal."""
        shown = self.final + self.changed
        if not shown:
            return []
        return [
            f"shown words that changed {100 * self.share:.1f} % ({self.changed} / {shown}), "
            f"unstable partial word ratio {self.unstable_partial_word_ratio:.3f}, "
            f"in {self.unstable} of {self.utterances} utterances; {self.grown} words grew"
        ]


def compare(before: Sequence[str], after: Sequence[str]) -> Change:
    """What became of the words `before` in `after`."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    before, after = before[same:], after[same:]
    equal = _in_common(before, after)
    # The last word as any of those that it may have become.
    grown = {word for word in after if word.startswith(before[-1])} if before else set()
    going_on = max([equal, *(_in_common([*before[:-1], word], after) for word in grown)])
    return Change(len(before) - going_on, going_on - equal)


def _in_common(before: Sequence[str], after: Sequence[str]) -> int:
    """Most words of one that are, in their order, in the other."""
    return LCSseq.similarity(before, after)
