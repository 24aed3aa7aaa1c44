"""`asr export`: a model directory that holds what using it needs, in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from asr.cli.options import BeamOption, LmOption, SearchOption, search_settings


def export(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    weights: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="How weights are stored.")
    ] = "int8",
    beam: BeamOption = None,
    lm: LmOption = None,
    search: SearchOption = None,
) -> None:
    """Write a model without its checkpoints and logs, its weights in a half or a quarter of the bytes.

    Of a training that has not ended, its newest checkpoint. What is said of the search becomes the model's
    own, and language models come along.
    """
    from asr.export import export_model
    from asr.model_directory import WEIGHTS

    size = export_model(model, out, weights, search_settings(beam, lm, search))
    print(f"model: {out}, {WEIGHTS} {size / 1e6:.1f} MB ({weights})")
