"""`asr export`: a model directory that holds what using it needs, in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    weights: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="How weights are stored.")
    ] = "int8",
) -> None:
    """Write a model without its checkpoints and logs, its weights in a half or a quarter of the bytes."""
    from asr.errors import ConfigError
    from asr.model_directory import CARD, WEIGHTS, load_model, save_model

    if out.resolve() == model.resolve():
        raise ConfigError(f"{out}: expected another directory than the model's: what is rounded is lost")
    loaded = load_model(model)
    card = model / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {model.name}\n"
    save_model(out, loaded.config, loaded.network, loaded.tokenizer, text, weights)
    print(f"model: {out}, {WEIGHTS} {(out / WEIGHTS).stat().st_size / 1e6:.1f} MB ({weights})")
