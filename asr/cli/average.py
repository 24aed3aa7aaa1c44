"""`asr average`: several models of one origin as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import weighted


def average(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[:WEIGHT]...", help="Model directories; weights are 1, or as given."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    part: Annotated[
        list[str] | None,
        typer.Option(help="Average this part alone, e.g. encoder; the rest is the first's; repeatable."),
    ] = None,
) -> None:
    """Average the weights of models that began alike, as of a fine-tuned one and the one that it began with.

    Its search, labels and language models are those of the first.
    """
    from asr.average import Member, average_models

    chosen = [(path, 1.0 if weight is None else weight) for path, weight in map(weighted, models)]
    average_models([Member(Path(path), weight) for path, weight in chosen], out, part or [])
    print(f"model: {out}")
