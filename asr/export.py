"""A model directory that holds what using a model needs and no more, its weights in fewer bytes.

Of a training that has not ended, the model is that of its newest checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from asr.config import load_config, write_atomically
from asr.directory import WEIGHTS, load_weights, read_card
from asr.errors import ConfigError
from asr.lm_directory import LmModelConfig, LoadedLm, is_lm_directory, load_lm, save_lm
from asr.lms import build_neural_lm
from asr.model_directory import LoadedModel, build_network, load_model, save_model
from asr.text.tokenizer import load_tokenizer
from asr.train import checkpoint
from asr.train.environment import Environment
from asr.train.kinds import is_lm_run
from asr.train.language import LmRunInfo
from asr.train.lm_recipe import LmRecipe
from asr.train.recipe import Recipe
from asr.train.setup import CHECKPOINTS, RECIPE, RUN, RunInfo, describe_model
from asr.train.task import AnyRecipe
from asr.weights import Storage


def export_model(model: Path, out: Path, storage: Storage) -> int:
    """Write the model directory or run `model` to `out`; returns the bytes of its weights.

    Its recipe comes along, so that it can be trained on (`asr finetune`), and its language models. A language
    model's directory is written just so. Raises ConfigError if both are the same directory, TrainingError or
    ModelError naming what cannot be read.
    """
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out}: expected another directory than the model's: what is rounded is lost")
    unfinished = (model / CHECKPOINTS).is_dir() and not (model / WEIGHTS).is_file()
    if is_lm_run(model) if unfinished else is_lm_directory(model):
        _export_lm(model, out, storage, unfinished)
    else:
        _export_recogniser(model, out, storage, unfinished)
    return (out / WEIGHTS).stat().st_size


def _export_recogniser(model: Path, out: Path, storage: Storage, unfinished: bool) -> None:
    loaded, card = _unfinished(model) if unfinished else (load_model(model), read_card(model))
    save_model(out, loaded.config, loaded.network, loaded.tokenizer, card, storage)
    _copy(model, out, RECIPE)
    for lm in loaded.config.search.fusion.lms:
        # A language model that lies elsewhere stays there, and nothing is written elsewhere.
        if Path(lm.lm).name == lm.lm:
            _copy(model, out, lm.lm)
            if is_lm_directory(model / lm.lm):
                _export_lm(model / lm.lm, out / lm.lm, storage, unfinished=False)


def _export_lm(model: Path, out: Path, storage: Storage, unfinished: bool) -> None:
    loaded, card = _unfinished_lm(model) if unfinished else (load_lm(model), read_card(model))
    save_lm(out, loaded.config, loaded.network, loaded.tokenizer, card, storage)
    _copy(model, out, RECIPE)


def _copy(model: Path, out: Path, name: str) -> None:
    """A file of the model, if it is there."""
    if (model / name).is_file():
        write_atomically(out / name, (model / name).read_bytes())


def _unfinished(exp: Path) -> tuple[LoadedModel, str]:
    """The model of a run that has not ended, and its card."""
    recipe, info = load_config(exp / RECIPE, Recipe), load_config(exp / RUN, RunInfo)
    tokenizer = load_tokenizer(exp)
    config = describe_model(recipe, info, tokenizer)
    network = build_network(config)
    card = _fill(network, exp, recipe, f"- corpus: {info.corpus}", info.environment)
    return LoadedModel(config, network.eval(), tokenizer), card


def _unfinished_lm(exp: Path) -> tuple[LoadedLm, str]:
    """The same of a language model."""
    recipe, info = load_config(exp / RECIPE, LmRecipe), load_config(exp / RUN, LmRunInfo)
    tokenizer = load_tokenizer(exp)
    config = LmModelConfig(network=recipe.network, vocab_size=tokenizer.vocab_size)
    network = build_neural_lm(config.network, config.vocab_size)
    card = _fill(network, exp, recipe, f"- text: {', '.join(info.data)}", info.environment)
    return LoadedLm(config, network.eval(), tokenizer), card


def _fill(
    network: nn.Module, exp: Path, recipe: AnyRecipe, learnt_from: str, environment: Environment
) -> str:
    """Give `network` the weights of the newest checkpoint of a run; returns what is to be said of them."""
    path = checkpoint.latest(exp / CHECKPOINTS)
    progress = checkpoint.read_progress(path)
    load_weights(network, path / WEIGHTS)
    epochs = f"{progress.epoch} of {recipe.training.epochs} epochs"
    return f"""# {recipe.name}

- unfinished: step {progress.step} of {progress.total_steps}, {epochs}
{learnt_from}
- started: {environment.started}, commit {environment.commit}
"""
