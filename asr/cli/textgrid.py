"""Praat's TextGrid, the long text format: tiers of labelled intervals that fill a recording without gaps.

Source: the Praat manual, "TextGrid file formats". Every tier reaches from 0 to the same end in contiguous
intervals of a positive length; where nothing is said an interval has an empty text. A quotation mark inside a
text is doubled.

Emitted symbols may overlap, touch or share a frame; a tier may not. An interval ends at the latest where the
next one starts, and those that start together share their time evenly, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

_UNITS = 1_000_000
"""Microseconds: fine enough to share a frame among as many symbols as can be on it."""


class Interval(NamedTuple):
    """A labelled stretch of time, in seconds."""

    start_s: float
    end_s: float
    text: str


def textgrid(duration_s: float, tiers: Mapping[str, Sequence[Interval]]) -> str:
    """The text of a TextGrid file, to be written as UTF-8.

    The intervals of each tier are in order of their starts; its end is `duration_s`, or later if one is.
    """
    last = max((interval.end_s for tier in tiers.values() for interval in tier), default=0.0)
    filled = {name: _fill(tier, _units(max(duration_s, last))) for name, tier in tiers.items()}
    end = max([1, _units(max(duration_s, last)), *(tier[-1][1] for tier in filled.values())])
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_seconds(end)}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, tier) in enumerate(filled.items(), 1):
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {_seconds(end)}",
            f"        intervals: size = {len(tier)}",
        ]
        for index, (start, stop, text) in enumerate(tier, 1):
            stop = end if index == len(tier) else stop
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {_seconds(start)}",
                f"            xmax = {_seconds(stop)}",
                f"            text = {_quoted(text)}",
            ]
    return "\n".join(lines) + "\n"


def _fill(tier: Sequence[Interval], end: int) -> list[tuple[int, int, str]]:
    """Contiguous intervals (start, end, text) from 0 to at least `end`."""
    groups = [list(group) for _, group in groupby(tier, key=lambda interval: _units(interval.start_s))]
    filled: list[tuple[int, int, str]] = []
    at = 0
    for index, group in enumerate(groups):
        start = max(at, _units(group[0].start_s))
        stop = max(_units(interval.end_s) for interval in group)
        if index + 1 < len(groups):
            stop = min(stop, _units(groups[index + 1][0].start_s))
        stop = max(stop, start + len(group))
        if start > at:
            filled.append((at, start, ""))
        for i, interval in enumerate(group):
            shares = (start + (stop - start) * j // len(group) for j in (i, i + 1))
            filled.append((*shares, interval.text))  # type: ignore[arg-type]
        at = stop
    if at < end or not filled:
        filled.append((at, max(end, at + 1), ""))
    return filled


def _units(seconds: float) -> int:
    return round(seconds * _UNITS)


def _seconds(units: int) -> str:
    """Without trailing zeros."""
    whole, rest = divmod(units, _UNITS)
    return f"{whole}.{rest:06d}".rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
