"""The table and the picture of english.py, from what each system heard.

References and hypotheses go through the same function: numbers are written out (numerals.py), then
`asr.text.normalize`, "basic". The second word error rate is under "english", where "mr" and "mister",
"colour" and "color" are no difference. Factors are computing time over audio time, the loading of models
apart. The first word is counted in audio time from the onset of speech (onset.py) to the first partial result
that has a word, right or wrong; the computing of a piece comes on top.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from decoding import Part, Record
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numerals import spell_numbers

from asr.data.manifests import cut_text
from asr.errors import DataError
from asr.score.latency import Delays, summarize
from asr.score.picture import CURVES
from asr.score.wer import WerReport, score_pairs

COLUMNS = (
    *("part", "system", "utterances", "WER %, 95 % interval", 'WER %, "english"', "real-time factor: CPU"),
    *("wall", "peak memory, MiB", "first word after onset: median", "p90"),
)
WHOLE = "whole recording"


class Row(NamedTuple):
    """One system on one part."""

    part: str
    system: str
    of: int
    """Utterances that the part has; the report tells how many were scored."""
    report: WerReport
    english: WerReport
    cpu_factor: float
    wall_factor: float
    peak_mib: float
    first_word: Delays | None
    """None for a system that hears whole recordings."""


def measure(system: str, part: Part, records: Sequence[Record], streaming: bool) -> Row:
    """Score the part's recordings, of which all must have been heard; other records do not count.

    Raises DataError naming recordings without a record.
    """
    heard = {record.id: record for record in records}
    if absent := [cut.id for cut in part.cuts if cut.id not in heard]:
        raise DataError(f"{system}, {part.name}: {len(absent)} recordings are not decoded ({absent[0]}, ...)")
    counted = [heard[cut.id] for cut in part.cuts]
    references = {cut.id: cut_text(cut) for cut in part.cuts}
    hypotheses = {record.id: record.text for record in counted}
    audio_s = sum(record.audio_s for record in counted)
    return Row(
        part.name,
        system,
        part.of,
        report=score_pairs(_spelled(references), _spelled(hypotheses), normalization="basic"),
        english=score_pairs(references, hypotheses, normalization="english"),
        cpu_factor=sum(record.cpu_s for record in counted) / audio_s,
        wall_factor=sum(record.wall_s for record in counted) / audio_s,
        peak_mib=max(record.peak_mib for record in counted),
        first_word=summarize(first_word_delays(counted)) if streaming else None,
    )


def first_word_delays(records: Sequence[Record]) -> list[float]:
    """Seconds from the onset of speech to the first word; without either, a recording is left out."""
    return [
        r.first_word_s - r.onset_s for r in records if r.first_word_s is not None and r.onset_s is not None
    ]


def _spelled(texts: dict[str, str]) -> dict[str, str]:
    return {key: spell_numbers(text) for key, text in texts.items()}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, part by part."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return "\n".join([*lines, *(_line(_cells(row)) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    count = len(row.report.utterances)
    return [
        row.part,
        row.system,
        f"{count} of {row.of}" if count < row.of else f"all {count}",
        f"{_percent(row.report.wer)} [{', '.join(map(_percent, row.report.interval))}]",
        _percent(row.english.wer),
        f"{row.cpu_factor:.3f}",
        f"{row.wall_factor:.3f}",
        f"{row.peak_mib:.0f}",
        *_first_word(row.first_word),
    ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _first_word(delays: Delays | None) -> tuple[str, str]:
    if delays is None:
        return WHOLE, WHOLE
    values_s = (delays.median_s, delays.p90_s)
    median, p90 = ("not measured" if math.isnan(s) else f"{1000 * s:.0f} ms" for s in values_s)
    return median, p90


def draw(rows: Sequence[Row], path: Path) -> None:
    """Word error rates with their intervals, a group of bars for each part, as an SVG file."""
    parts, systems = ([*dict.fromkeys(getattr(row, key) for row in rows)] for key in ("part", "system"))
    figure = Figure(figsize=(2.6 + 1.8 * len(parts), 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    width = 0.8 / len(systems)
    for number, (system, color) in enumerate(zip(systems, itertools.cycle(CURVES), strict=False)):
        own = [row for row in rows if row.system == system]
        places = [parts.index(row.part) + (number - (len(systems) - 1) / 2) * width for row in own]
        rates = [100 * row.report.wer for row in own]
        below = [rate - 100 * row.report.interval[0] for rate, row in zip(rates, own, strict=True)]
        above = [100 * row.report.interval[1] - rate for rate, row in zip(rates, own, strict=True)]
        # The bootstrap's quantiles may lie on one side of the rate where errors are few.
        errors = [[max(0.0, x) for x in below], [max(0.0, x) for x in above]]
        axes.bar(
            places, rates, 0.92 * width, yerr=errors, capsize=3, color=color, ecolor="#1b1f3b", label=system
        )
    axes.set_xticks(range(len(parts)), [_label(part, rows) for part in parts])
    axes.set_ylabel("WER %, 95 % interval")
    axes.tick_params(length=0)
    axes.grid(True, axis="y", lw=0.4, color="#d5d7e0")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(systems), fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "comparison"}):
        figure.savefig(path, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _label(part: str, rows: Sequence[Row]) -> str:
    row = next(row for row in rows if row.part == part)
    count = len(row.report.utterances)
    return f"{part.removeprefix('test-')}\n" + (f"{count} of {row.of}" if count < row.of else f"all {count}")
