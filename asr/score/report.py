"""The report of a scoring: one summary line for the terminal, `wer.txt` for reading.

`wer.txt` has the summary, a table by speaker, the most frequent confusions and every utterance's alignment,
most errors first:

    u17  theo  1 error in 3 words: 0 sub, 1 ins, 0 del
      REF: seven ***** three nine
      HYP: seven EIGHT three nine
                 I
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from asr.config import write_atomically
from asr.score.wer import AlignedWord, UtteranceScore, WerReport, WordErrors

TOP = 20
"""Confusions, insertions and deletions listed of each."""
LINE_WIDTH = 100
"""Columns of the terminal cells that an alignment row may take before it wraps."""
SYNTHETIC = " on SYNTHETIC speech"


def summary_line(report: WerReport, synthetic: bool = False) -> str:
    """Return `WER 0.83 % [0.40, 1.31] (10 errors / 1200 words: 6 sub, 3 ins, 1 del) over 300 utterances`."""
    low, high = report.interval
    words = report.overall
    return (
        f"WER {_percent(report.wer)} % [{_percent(low)}, {_percent(high)}] "
        f"({_plural(words.errors, 'error')} / {_plural(words.reference_words, 'word')}: {_edits(words)}) "
        f"over {_plural(len(report.utterances), 'utterance')}{SYNTHETIC if synthetic else ''}"
    )


def confusion_lines(report: WerReport, top: int = TOP) -> list[str]:
    """The most frequent substitutions, insertions and deletions, one a line, most frequent first."""
    lines = [f"{c.times:6d}  {c.reference} -> {c.hypothesis}" for c in report.confusions[:top]]
    lines += [f"{w.times:6d}  {w.word} inserted" for w in report.insertions[:top]]
    lines += [f"{w.times:6d}  {w.word} deleted" for w in report.deletions[:top]]
    return sorted(lines, key=lambda line: -int(line.split(maxsplit=1)[0]))[:top]


def worst_first(report: WerReport) -> list[UtteranceScore]:
    """Utterances, most errors first."""
    return sorted(report.utterances, key=lambda utterance: -utterance.errors.errors)


def alignment_lines(utterances: Iterable[UtteranceScore]) -> list[str]:
    """Reference and hypothesis of each below each other, a blank line between utterances."""
    blocks = [_utterance(utterance) for utterance in utterances]
    return [line for number, block in enumerate(blocks) for line in ([""] if number else []) + block]


def render_report(report: WerReport, title: str, notes: Sequence[str] = (), synthetic: bool = False) -> str:
    """Return the text of `wer.txt`; `notes` are lines below the title (model, data, command)."""
    words = report.overall
    head = [
        title,
        *notes,
        "",
        summary_line(report, synthetic),
        f"CER {_percent(report.cer)} % "
        f"({report.character_errors} / {report.reference_characters} characters, spaces counted)",
        f"utterances with errors {_percent(report.sentence_error_rate)} % "
        f"({words.wrong_sentences} / {words.sentences})",
        f"normalisation: {report.normalization}; in brackets: 95 % bootstrap interval over utterances",
    ]
    if report.missing:
        head.append(f"{len(report.missing)} without hypothesis, scored as empty: {' '.join(report.missing)}")
    sections = [head, _speaker_table(report), _confusions(report), _alignments(report)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def write_report(
    path: Path | str,
    report: WerReport,
    title: str,
    notes: Sequence[str] = (),
    synthetic: bool = False,
) -> None:
    """Write `render_report` to a file, aside and renamed."""
    write_atomically(Path(path), render_report(report, title, notes, synthetic).encode())


def _speaker_table(report: WerReport) -> list[str]:
    if not report.speakers:
        return []
    width = max(7, *(_width(name) for name in report.speakers))
    lines = ["BY SPEAKER", f"{'speaker':<{width}}    WER %  words   sub   ins   del  utterances"]
    for name, e in report.speakers.items():
        lines.append(
            f"{_pad(name, width)}  {_percent(e.wer):>7} {e.reference_words:6d} {e.substitutions:5d} "
            f"{e.insertions:5d} {e.deletions:5d} {e.sentences:11d}"
        )
    return lines


def _confusions(report: WerReport) -> list[str]:
    lines: list[str] = []
    for title, rows in (
        ("SUBSTITUTIONS", [(c.times, f"{c.reference} -> {c.hypothesis}") for c in report.confusions]),
        ("INSERTIONS", [(w.times, w.word) for w in report.insertions]),
        ("DELETIONS", [(w.times, w.word) for w in report.deletions]),
    ):
        more = f" (the {TOP} most frequent of {len(rows)})" if len(rows) > TOP else ""
        lines += [title + more, *(f"{times:6d}  {text}" for times, text in rows[:TOP])]
        lines += [] if rows else ["     -"]
    return lines


def _alignments(report: WerReport) -> list[str]:
    return ["UTTERANCES, most errors first", "", *alignment_lines(worst_first(report))]


def _utterance(utterance: UtteranceScore) -> list[str]:
    errors = utterance.errors
    speaker = f"  {utterance.speaker}" if utterance.speaker else ""
    counts = f"{_plural(errors.errors, 'error')} in {_plural(errors.reference_words, 'word')}"
    if not errors.errors:
        words = " ".join(column.reference or "" for column in utterance.alignment)
        return [f"{utterance.id}{speaker}  correct", f"  REF: {words}".rstrip()]
    return [
        f"{utterance.id}{speaker}  {counts}: {_edits(errors)}",
        *(line for row in _rows(utterance.alignment) for line in _draw(row)),
    ]


def _rows(alignment: Iterable[AlignedWord]) -> list[list[AlignedWord]]:
    rows: list[list[AlignedWord]] = [[]]
    used = 0
    for column in alignment:
        used += _column_width(column) + 1
        if rows[-1] and used > LINE_WIDTH:
            rows.append([])
            used = _column_width(column) + 1
        rows[-1].append(column)
    return rows


def _draw(row: Sequence[AlignedWord]) -> list[str]:
    """Draw REF, HYP and marks below each other; a gap is stars, a wrong hypothesis word is in capitals."""
    cells: list[tuple[str, str, str]] = []
    for column in row:
        width = _column_width(column)
        reference = "*" * width if column.reference is None else column.reference
        hypothesis = "*" * width if column.hypothesis is None else column.hypothesis
        shown = hypothesis.upper() if column.mark in {"S", "I"} else hypothesis
        # Capitals may be longer ('ß'); then the word stays as it is.
        hypothesis = shown if _width(shown) <= width else hypothesis
        cells.append((_pad(reference, width), _pad(hypothesis, width), _pad(column.mark, width)))
    heads = ("  REF: ", "  HYP: ", "       ")
    lines = [head + " ".join(line) for head, line in zip(heads, zip(*cells, strict=True), strict=True)]
    return [line.rstrip() for line in lines if line.strip()]


def _column_width(column: AlignedWord) -> int:
    return max(_width(column.reference or ""), _width(column.hypothesis or ""))


def _width(text: str) -> int:
    """Terminal cells: Chinese, Japanese and Korean characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _edits(errors: WordErrors) -> str:
    return f"{errors.substitutions} sub, {errors.insertions} ins, {errors.deletions} del"
