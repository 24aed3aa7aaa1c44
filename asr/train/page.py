"""What a run did, on one page to look at or send: EXP/report.html, with its pictures inside.

Curves, what was left out, the dev set with the weights that were kept (summary, confusions, alignments, the
emission times of a few recordings), recipe and environment. Nothing on the page is fetched or runs.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from asr.config import write_atomically
from asr.drawing import draw_recording
from asr.recognizer import load
from asr.score.report import alignment_lines, confusion_lines, summary_line, worst_first
from asr.score.wer import UtteranceScore, WerReport
from asr.train.environment import Environment
from asr.train.metrics import read_log
from asr.train.setup import RECIPE, RunSetup

PAGE = "report.html"
DRAWN = 3
"""Recordings of dev that are drawn."""
LONGEST_DRAWN_S = 30.0
ALIGNED = 20
"""Utterances of dev whose alignments are shown."""
CONFUSIONS = 10
SKIPPED = 50
"""Lines at most about what training left out; log.jsonl has them all."""


class Drawn(NamedTuple):
    """A recording on the page."""

    id: str
    picture: str
    """PNG as a data URL."""


def write_page(exp: Path, setup: RunSetup, facts: Sequence[tuple[str, str]], dev: WerReport) -> Path:
    """Write the page of a run whose model is in `exp`; `facts` are what stands at the top."""
    ranked = worst_first(dev)
    return _write(
        exp,
        setup.info.environment,
        title=setup.recipe.name,
        synthetic=setup.info.synthetic,
        facts=facts,
        summary=summary_line(dev, setup.info.synthetic),
        confusions=confusion_lines(dev, CONFUSIONS),
        recordings=list(_drawings(exp, setup, ranked)),
        alignments=alignment_lines(ranked[:ALIGNED]),
    )


def write_lm_page(
    exp: Path, title: str, facts: Sequence[tuple[str, str]], environment: Environment, summary: str
) -> Path:
    """The same of a language model; `summary` says what was measured on dev."""
    return _write(exp, environment, title=title, facts=facts, summary=summary)


def _write(exp: Path, environment: Environment, **content: Any) -> Path:
    """The page of `content`, and of what every run has."""
    template = resources.files(__package__).joinpath("templates", PAGE).read_text(encoding="utf-8")
    html = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            **content,
            curves=_data_url(exp / "training.png"),
            skipped=_skipped(read_log(exp)),
            recipe=(exp / RECIPE).read_text(encoding="utf-8"),
            environment=[
                ("hardware", environment.hardware),
                ("started", environment.started),
                ("commit", environment.commit),
                ("Python", environment.python),
                *environment.versions.items(),
            ],
        )
    )
    path = exp / PAGE
    write_atomically(path, html.encode())
    return path


def _drawings(exp: Path, setup: RunSetup, ranked: Sequence[UtteranceScore]) -> Iterator[Drawn]:
    """The recordings with most errors, of those that are short enough to be seen."""
    recognizer = load(exp)
    places = {
        part.words(number).id: (part, number)
        for part in setup.dev.pool.parts
        for number, duration_s in enumerate(part.durations_s)
        if duration_s <= LONGEST_DRAWN_S
    }
    chosen = [utterance.id for utterance in ranked if utterance.id in places][:DRAWN]
    with tempfile.TemporaryDirectory() as folder:
        for index, id in enumerate(chosen):
            part, number = places[id]
            path = Path(folder, f"{index}.png")
            draw_recording(path, recognizer, part.samples(number, recognizer.sample_rate), id)
            yield Drawn(id, _data_url(path))


def _skipped(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step and reason of what was left out, utterances named."""
    lines = []
    for record in records:
        if record["kind"] in ("skip", "corrupt"):
            names, why = ", ".join(record.get("utterances", ())), record.get("why", "cannot be read")
            why = f"{why}: {names}" if names else why
            lines.append({"step": record["step"], "why": why})
    if len(lines) > SKIPPED:
        lines[SKIPPED:] = [{"step": "...", "why": f"and {len(lines) - SKIPPED} more in log.jsonl"}]
    return lines


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
