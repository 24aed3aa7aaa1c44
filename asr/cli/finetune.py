"""`asr finetune`: go on training a model on other recordings, a language model on other texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import ProfileOption


def finetune(
    exp: Annotated[Path, typer.Option(help="Directory of the run; becomes the new model directory.")],
    model: Annotated[
        Path | None, typer.Argument(help="Model directory to begin with.", show_default=False)
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Corpus directory: train and dev, .jsonl.gz or .shar; of a language model a text file, one "
            "sentence a line; repeat it to mix them."
        ),
    ] = None,
    new_tokens: Annotated[
        bool, typer.Option("--new-tokens", help="Also learn symbols of the new texts that the model lacks.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            help="Old test set on which the model before and after is compared: a corpus directory (its "
            "test), a manifest, shards, or a split of the model's corpus.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting, e.g. optimizer.lr=1e-4; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --exp.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    profile: ProfileOption = False,
) -> None:
    """Fine-tune a model: its recipe with a lower learning rate, from its weights.

    Interrupted and resumed as a training is, by several processes as well: torchrun ... -m asr finetune ...
    """
    from asr.errors import ConfigError
    from asr.forgetting import ForgettingCheck, find_check
    from asr.lm_directory import is_lm_directory
    from asr.train.finetune import finetune_recipe
    from asr.train.initial import Initial
    from asr.train.lm_finetune import finetune_lm_recipe
    from asr.train.loop import train
    from asr.train.task import AnyRecipe

    recipe: AnyRecipe | None = None
    initial: Initial | None = None
    if resume:
        if model or settings or new_tokens or check:
            raise ConfigError("--resume goes on with the run: give only --exp (and --data if it moved)")
    elif model is None or not data:
        raise ConfigError("expected a model directory and --data; only --resume needs neither")
    elif is_lm_directory(model):
        if new_tokens or check:
            option = "--new-tokens" if new_tokens else "--check"
            raise ConfigError(f"{option} is for recognisers, {model} is a language model: leave it out")
        recipe = finetune_lm_recipe(model, settings or [])
        initial = Initial(model=str(model.resolve()))
    else:
        recipe = finetune_recipe(model, settings or [], new_tokens=new_tokens)
        test = None if check is None else str(find_check(model, check))
        initial = Initial(model=str(model.resolve()), new_tokens=new_tokens, check=test)
    comparison = ForgettingCheck(device)
    train(
        recipe,
        data,
        exp,
        initial=initial,
        comparison=comparison,
        resume=resume,
        profile=profile,
        device=device,
    )
