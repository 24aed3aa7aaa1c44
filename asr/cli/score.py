"""`asr score REF HYP`: word error rate of transcripts that are already there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import CalibrateOption, ReliabilityOption


def score(
    ref: Annotated[
        Path, typer.Argument(help="Reference transcripts: JSON lines, lhotse cuts, Kaldi text or .txt.")
    ],
    hyp: Annotated[Path, typer.Argument(help="Recognised transcripts, in any of these formats.")],
    normalization: Annotated[
        str, typer.Option(help="What to even out before comparing: none, basic or english.")
    ] = "none",
    report: Annotated[Path | None, typer.Option(help="Also write the full report to this file.")] = None,
    allow_missing: Annotated[
        bool, typer.Option(help="Score absent hypotheses as empty, leave surplus ones out.")
    ] = False,
    hotwords: Annotated[
        Path | None, typer.Option(help="Phrases, one a line: also print how well they were recognised.")
    ] = None,
    calibrate: CalibrateOption = False,
    reliability: ReliabilityOption = None,
    top: Annotated[int, typer.Option(min=0, help="How many confusions to print.")] = 10,
) -> None:
    """Print the word error rate of HYP against REF, with a confidence interval and the top confusions.

    If HYP has the words' confidences, as hyp.jsonl of `asr decode` has, their quality is printed too.
    """
    from asr.score.biasing import score_phrases
    from asr.score.confidence import confidence_lines, judge
    from asr.score.report import confusion_lines, summary_line, write_report
    from asr.score.transcripts import read_transcript_lines
    from asr.score.wer import score_pairs
    from asr.text.hotwords import read_hotwords

    lines, heard = read_transcript_lines(ref), read_transcript_lines(hyp)
    result = score_pairs(
        {line.id: line.text for line in lines},
        {line.id: line.text for line in heard},
        normalization=normalization,
        speakers={line.id: line.speaker for line in lines if line.speaker is not None},
        allow_missing=allow_missing,
    )
    typer.echo(summary_line(result))
    if hotwords is not None:
        for line in score_phrases(result, [phrase.text for phrase in read_hotwords(hotwords)]).lines():
            typer.echo(line)
    judged = judge(result, {line.id: line.words for line in heard if line.words})
    quality = confidence_lines(judged, f"{hyp} against {ref}", calibrate, reliability)
    for line in [*confusion_lines(result, top), *quality]:
        typer.echo(line)
    if report is not None:
        write_report(report, result, f"{hyp} against {ref}", quality)
        typer.echo(f"report: {report}")
