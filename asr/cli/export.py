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
    """Write a model without its checkpoints and logs, its weights in a half or a quarter of the bytes.

    Of a training that has not ended, its newest checkpoint.
    """
    from asr.config import write_atomically
    from asr.errors import ConfigError
    from asr.model_directory import CARD, WEIGHTS, load_model, save_model
    from asr.train.setup import CHECKPOINTS, RECIPE
    from asr.train.unfinished import load_unfinished

    if out.resolve() == model.resolve():
        raise ConfigError(f"{out}: expected another directory than the model's: what is rounded is lost")
    if (model / CHECKPOINTS).is_dir() and not (model / WEIGHTS).is_file():
        loaded, card = load_unfinished(model)
    else:
        loaded = load_model(model)
        file = model / CARD
        card = file.read_text(encoding="utf-8") if file.is_file() else f"# {model.name}\n"
    save_model(out, loaded.config, loaded.network, loaded.tokenizer, card, weights)
    if (model / RECIPE).is_file():  # with it the model can be trained on (asr finetune)
        write_atomically(out / RECIPE, (model / RECIPE).read_bytes())
    print(f"model: {out}, {WEIGHTS} {(out / WEIGHTS).stat().st_size / 1e6:.1f} MB ({weights})")
