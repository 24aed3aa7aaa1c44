"""The model that a run has come to before its end: the weights of its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from asr.config import load_config
from asr.model_directory import WEIGHTS, LoadedModel, build_network, load_weights
from asr.text.tokenizer import load_tokenizer
from asr.train import checkpoint
from asr.train.recipe import Recipe
from asr.train.setup import CHECKPOINTS, RECIPE, RUN, RunInfo, describe_model


def load_unfinished(exp: Path) -> tuple[LoadedModel, str]:
    """The model of a run that has not ended, on the CPU, and its card.

    Raises TrainingError if there is no checkpoint, ConfigError or ModelError naming an unreadable file.
    """
    path = checkpoint.latest(exp / CHECKPOINTS)
    progress = checkpoint.read_progress(path)
    recipe, info = load_config(exp / RECIPE, Recipe), load_config(exp / RUN, RunInfo)
    tokenizer = load_tokenizer(exp)
    config = describe_model(recipe, info, tokenizer)
    network = build_network(config)
    load_weights(network, path / WEIGHTS)
    epochs = f"{progress.epoch} of {recipe.training.epochs} epochs"
    card = f"""# {recipe.name}

- unfinished: step {progress.step} of {progress.total_steps}, {epochs}
- corpus: {info.corpus}
- started: {info.environment.started}, commit {info.environment.commit}
"""
    return LoadedModel(config, network.eval(), tokenizer), card
