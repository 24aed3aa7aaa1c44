"""`asr train`: start a training run, or go on with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import ProfileOption


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="FILE.py:FUNCTION or FILE.yaml, e.g. egs/digits/lstm.py:streaming.", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Corpus directory: train and dev, .jsonl.gz or .shar; repeat it to mix corpora. Of a "
            "language model: text files, one sentence a line."
        ),
    ] = None,
    exp: Annotated[Path, typer.Option(help="Directory of the run; becomes the model directory.")] = Path(
        "exp/model"
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting, e.g. optimizer.lr=1e-3; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --exp.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    find_batch: Annotated[
        bool,
        typer.Option("--find-batch", help="Measure the largest batches.max_duration_s; train nothing."),
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="GiB that a step may take (--find-batch; tries may take twice that); 90 % of a GPU."
        ),
    ] = None,
    profile: ProfileOption = False,
) -> None:
    """Train a recogniser, or a language model. Ctrl-C saves and prints the command that goes on.

    Several processes: torchrun --nproc-per-node N -m asr train ..., each with a GPU of its own on cuda.
    """
    from asr.config import override
    from asr.errors import ConfigError
    from asr.forgetting import ForgettingCheck
    from asr.train.kinds import load_any_recipe
    from asr.train.lm_recipe import LmRecipe
    from asr.train.loop import train as run

    if resume and (recipe or settings):
        raise ConfigError(
            "--resume goes on with the recipe of the run: give only --exp (and --data if it moved)"
        )
    chosen = override(load_any_recipe(recipe), settings or []) if recipe else None
    if find_batch or memory is not None:
        from asr.train.find_batch import find_batch as find

        if not find_batch or chosen is None or not data:
            raise ConfigError("--find-batch needs a recipe and --data; --memory is for --find-batch")
        if isinstance(chosen, LmRecipe):
            raise ConfigError("--find-batch is for recognisers; a language model's is batches.max_labels")
        find(chosen, data, device=device, budget_bytes=None if memory is None else int(memory * 2**30))
        return
    comparison = ForgettingCheck(device)
    run(chosen, data, exp, comparison=comparison, resume=resume, profile=profile, device=device)
