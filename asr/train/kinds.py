"""Which kind of model a recipe, or a run on disk, is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr.config import Config, load_recipe, load_yaml, validate
from asr.errors import ConfigError
from asr.train import language, setup
from asr.train.checkpoint import checkpoints
from asr.train.distributed import World
from asr.train.initial import Initial
from asr.train.lm_recipe import LmRecipe
from asr.train.recipe import Recipe
from asr.train.recogniser import RecogniserTask
from asr.train.setup import CHECKPOINTS, RECIPE
from asr.train.task import AnyRecipe, Task


def load_any_recipe(reference: str) -> AnyRecipe:
    """The recipe of a recogniser or of a language model that `FILE.py:FUNCTION` makes or `FILE.yaml` holds.

    Raises ConfigError.
    """
    if reference.endswith((".yaml", ".yml")):
        values = load_yaml(reference)
        if _is_lm(values):
            return validate(values, LmRecipe, reference)
        return validate(values, Recipe, reference)
    recipe = load_recipe(reference, Config)
    if not isinstance(recipe, Recipe | LmRecipe):
        raise ConfigError(f"{reference}: expected a Recipe or LmRecipe, found a {type(recipe).__name__}")
    return recipe


def start_task(
    recipe: AnyRecipe, data: Sequence[Path], exp: Path, world: World, initial: Initial | None
) -> Task:
    """A new run in `exp`; raises TrainingError if there is one already."""
    if isinstance(recipe, LmRecipe):
        return language.start_run(recipe, data, exp, world, initial)
    return RecogniserTask(setup.start_run(recipe, data, exp, world, initial))


def resume_task(exp: Path, data: Sequence[Path]) -> Task:
    """The run in `exp` again, its data now in `data` if given; raises TrainingError if there is none."""
    if checkpoints(exp / CHECKPOINTS) and is_lm_run(exp):
        return language.resume_run(exp, data)
    return RecogniserTask(setup.resume_run(exp, data))


def open_task(exp: Path) -> Task:
    """The run in `exp` as the main process has begun it."""
    if is_lm_run(exp):
        return language.open_run(exp)
    return RecogniserTask(setup.open_run(exp))


def is_begun(exp: Path, recipe: AnyRecipe, data: Sequence[Path], initial: Initial | None) -> bool:
    """Whether the run in `exp` is one of this recipe, data and first model, and can be resumed."""
    if not checkpoints(exp / CHECKPOINTS) or is_lm_run(exp) != isinstance(recipe, LmRecipe):
        return False
    if isinstance(recipe, LmRecipe):
        return language.is_run(exp, recipe, data, initial)
    return setup.is_run(exp, recipe, data, initial)


def is_lm_run(exp: Path) -> bool:
    """Whether the run in `exp` is a language model's. Raises ConfigError if there is none."""
    return _is_lm(load_yaml(exp / RECIPE))


def _is_lm(recipe: dict[str, Any]) -> bool:
    return recipe.get("kind") == "lm"
