"""A model directory that holds what using a model needs and no more, its weights in fewer bytes.

Of a training that has not ended, the model is that of its newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from asr.config import load_config, override, write_atomically
from asr.errors import ConfigError
from asr.lms import NgramModel
from asr.model_directory import (
    CARD,
    WEIGHTS,
    LoadedModel,
    build_network,
    load_model,
    load_weights,
    save_model,
)
from asr.search import SearchConfig
from asr.text.tokenizer import load_tokenizer
from asr.train import checkpoint
from asr.train.recipe import Recipe
from asr.train.setup import CHECKPOINTS, RECIPE, RUN, RunInfo, describe_model
from asr.weights import Storage


def export_model(model: Path, out: Path, storage: Storage, settings: Sequence[str] = ()) -> int:
    """Write the model directory or run `model` to `out`; returns the bytes of its weights.

    Its recipe comes along, so that it can be trained on (`asr finetune`), and its language model. `settings`
    change its search, as in `asr.recognizer.load`; an n-gram model that they name is packed and comes along.
    Raises ConfigError if both are the same directory or a setting is none, TrainingError or ModelError naming
    what cannot be read.
    """
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out}: expected another directory than the model's: what is rounded is lost")
    if (model / CHECKPOINTS).is_dir() and not (model / WEIGHTS).is_file():
        loaded, card = _unfinished(model)
    else:
        loaded, card = load_model(model), _card(model)
    search, ngram = _changed(loaded.config.search, settings)
    config = loaded.config.model_copy(update={"search": search})
    save_model(out, config, loaded.network, loaded.tokenizer, card, storage)
    if ngram is not None:
        assert search.fusion.lm is not None
        ngram.save(out / search.fusion.lm, compact=True)
    for name in (RECIPE, None if ngram else search.fusion.lm):
        # A language model that lies elsewhere stays there, and nothing is written elsewhere.
        if name is not None and Path(name).name == name and (model / name).is_file():
            write_atomically(out / name, (model / name).read_bytes())
    return (out / WEIGHTS).stat().st_size


class _Changed(NamedTuple):
    """How the exported model searches."""

    search: SearchConfig
    ngram: NgramModel | None
    """A language model that it did not have."""


def _changed(own: SearchConfig, settings: Sequence[str]) -> _Changed:
    """The settings applied; a language model that they name, and the model's own configuration does not."""
    search = override(own, settings, "--search")
    fusion = search.fusion
    if fusion.lm is None or fusion.lm == own.fusion.lm:
        return _Changed(search, None)
    ngram = NgramModel.read(fusion.lm)
    fusion = fusion.model_copy(update={"lm": f"{fusion.lm_unit}.safetensors"})
    return _Changed(search.model_copy(update={"fusion": fusion}), ngram)


def _card(model: Path) -> str:
    file = model / CARD
    return file.read_text(encoding="utf-8") if file.is_file() else f"# {model.name}\n"


def _unfinished(exp: Path) -> tuple[LoadedModel, str]:
    """The model of a run that has not ended, and its card."""
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
