"""A model directory that holds what using a model needs and no more, its weights in fewer bytes.

Of a training that has not ended, the model is that of its newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from asr.config import load_config, override, save_config, write_atomically
from asr.directory import WEIGHTS, load_weights, read_card
from asr.errors import ConfigError
from asr.lm_directory import LmModelConfig, LoadedLm, is_lm_directory, load_lm, save_lm
from asr.lms import NgramModel, build_neural_lm
from asr.losses import TwinConfig
from asr.model_directory import LoadedModel, ModelConfig, build_network, load_model, save_model
from asr.pipeline import Pipeline
from asr.search import FusionConfig, SearchConfig
from asr.text.tokenizer import Tokenizer, load_tokenizer
from asr.train import checkpoint
from asr.train.environment import Environment
from asr.train.kinds import is_lm_run
from asr.train.language import LmRunInfo
from asr.train.lm_recipe import LmRecipe
from asr.train.recipe import Recipe
from asr.train.setup import CHECKPOINTS, RECIPE, RUN, RunInfo, describe_model
from asr.train.task import AnyRecipe
from asr.transducer import Transducer
from asr.weights import Storage


def export_model(model: Path, out: Path, storage: Storage, settings: Sequence[str] = ()) -> int:
    """Write the model directory or run `model` to `out`; returns the bytes of its weights.

    Its recipe comes along, so that it can be trained on (`asr finetune`), but for paths of recorded noise and
    responses, and so do its language models and files of licences (LICEN*). `settings` change its search, as
    in `asr.recognizer.load`; n-gram models that they name are packed and come along, neural ones are
    exported. A language model's directory is written just so, and has no search. Raises ConfigError if both
    are the same directory, a setting is none or the model cannot be searched so, TrainingError or ModelError
    naming what cannot be read.
    """
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out}: expected another directory than the model's: what is rounded is lost")
    unfinished = (model / CHECKPOINTS).is_dir() and not (model / WEIGHTS).is_file()
    if is_lm_run(model) if unfinished else is_lm_directory(model):
        if settings:
            raise ConfigError(
                f"{model}: expected a recogniser with settings of a search, found a language model"
            )
        _export_lm(model, out, storage, unfinished)
    else:
        _export_recogniser(model, out, storage, unfinished, settings)
    return (out / WEIGHTS).stat().st_size


def _export_recogniser(
    model: Path, out: Path, storage: Storage, unfinished: bool, settings: Sequence[str]
) -> None:
    loaded, card = _unfinished(model) if unfinished else (load_model(model), read_card(model))
    write_recogniser(loaded, card, model, out, storage, settings)


def write_recogniser(
    loaded: LoadedModel, card: str, model: Path, out: Path, storage: Storage, settings: Sequence[str] = ()
) -> None:
    """Write `loaded` to `out`, with what lies beside it in the directory `model`; see `export_model`."""
    own, search = loaded.config.search.fusion, override(loaded.config.search, settings, "--search")
    added = _added(own, search.fusion, loaded.tokenizer)
    fusion = search.fusion.renamed(lambda lm: added[lm].name if lm in added else lm)
    config = loaded.config.model_copy(update={"search": search.model_copy(update={"fusion": fusion})})
    config, network = _without_twin(config, loaded.network)
    # What the model cannot do must not be found out by whoever gets it.
    found = search.model_copy(update={"fusion": search.fusion.beside(model)})
    Pipeline(LoadedModel(config, network, loaded.tokenizer), found)
    recipe = load_config(model / RECIPE, Recipe) if (model / RECIPE).is_file() else None
    if recipe is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_config(_for_elsewhere(recipe, config.search), out / RECIPE)
    save_model(out, config, network, loaded.tokenizer, card, storage)
    for licence in sorted(model.glob("LICEN*")):
        _copy(model, out, licence.name)
    for name in {lm.lm for lm in search.fusion.lms} - set(added):
        # A language model that lies elsewhere stays there, and nothing is written elsewhere.
        if Path(name).name == name:
            _copy(model, out, name)
            if is_lm_directory(model / name):
                _export_lm(model / name, out / name, storage, unfinished=False)
    for lm in added.values():
        if lm.ngram is None:
            _export_lm(lm.path, out / lm.name, storage, unfinished=False)
        else:
            lm.ngram.save(out / lm.name, compact=True)


def _for_elsewhere(recipe: Recipe, search: SearchConfig) -> Recipe:
    """The same with the model's search, and without files of this machine.

    Noise and rooms are generated instead of those recorded; its language models are the model's.
    """
    augment, nowhere = recipe.augment, {"source": None}
    noise, reverb = (each.model_copy(update=nowhere) for each in (augment.noise, augment.reverb))
    return recipe.model_copy(
        update={
            "augment": augment.model_copy(update={"noise": noise, "reverb": reverb}),
            "search": search.model_copy(update={"fusion": FusionConfig()}),
        }
    )


def _without_twin(config: ModelConfig, network: Transducer) -> tuple[ModelConfig, Transducer]:
    """The same without what only training needs."""
    loss = config.network.loss
    if not loss.twin.weight:
        return config, network
    loss = loss.model_copy(update={"twin": TwinConfig()})
    config = config.model_copy(update={"network": config.network.model_copy(update={"loss": loss})})
    smaller = build_network(config).eval()
    smaller.load_state_dict({name: network.state_dict()[name] for name in smaller.state_dict()})
    return config, smaller


class _Added(NamedTuple):
    """A language model that the recogniser did not have."""

    path: Path
    name: str
    """In the new directory."""
    ngram: NgramModel | None
    """None: it is a neural one."""


def _added(own: FusionConfig, fusion: FusionConfig, tokenizer: Tokenizer) -> dict[str, _Added]:
    """By its path, each language model of `fusion` that is none of the recogniser's own; all can be read."""
    before, found = {lm.lm for lm in own.lms}, dict[str, _Added]()
    taken = before & {lm.lm for lm in fusion.lms}
    for lm in fusion.lms:
        if lm.lm in before or lm.lm in found:
            continue
        path, ngram = Path(lm.lm), None
        if path.is_dir():
            load_lm(path, tokenizer)
            name = path.resolve().name
        else:
            ngram, name = NgramModel.read(path), f"{lm.unit}.safetensors"
        while name in taken:
            name = f"more-{name}"
        taken.add(name)
        found[lm.lm] = _Added(path, name, ngram)
    return found


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
