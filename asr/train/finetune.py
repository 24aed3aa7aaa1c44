"""The recipe of a fine-tuning: that of the model, made gentler where the user sets nothing.

- a fifth of the learning rate, a warm-up of at most 100 steps and a tenth of the run, at most 10 epochs;
- what a network learns in stages (layers that join, contexts, pruning) is over;
- features and network stay as they are, because the weights are theirs; only what matters in training
  alone may be set, and the latencies to train for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from asr.config import load_config, override
from asr.errors import ConfigError
from asr.model_directory import LoadedModel, load_model
from asr.search import FusionConfig
from asr.train.initial import tensor_shapes
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.train.setup import RECIPE, RUN, RunInfo
from asr.transducer import TransducerConfig

LR_SHARE = 0.2
WARMUP_STEPS, WARMUP_SHARE = 100, 0.1
EPOCHS = 10
STAGES = ("layer_steps", "context_warmup_steps")
"""Settings of encoders that learn in stages."""
FREE = {*STAGES, "contexts", "anywhere", "dropout", "checkpointing", "piece", "piece_context"}
"""Settings of the network that may change, beside its losses: no weight is read differently."""
LOSS = "network.loss."


class Difference(NamedTuple):
    """A setting that is not what it was."""

    key: str
    """Dotted, as in --set."""
    old: Any
    new: Any


def finetune_recipe(model: Path, settings: Sequence[str] = (), *, new_tokens: bool = False) -> Recipe:
    """The recipe of a run that begins with the model directory `model`; `settings` as in --set.

    Raises ModelError if there is no model, ConfigError naming a setting that does not fit its weights.
    """
    loaded = load_model(model)
    chosen = {setting.partition("=")[0].strip() for setting in settings}
    base = _gentle(_own_recipe(model, loaded), chosen, again=_was_finetuned(model))
    recipe = override(base, settings)
    _refuse(base, recipe, loaded, new_tokens)
    return recipe


def _own_recipe(model: Path, loaded: LoadedModel) -> Recipe:
    """The model's recipe.yaml, of a model without one the defaults; config.yaml decides what it is."""
    path, config = model / RECIPE, loaded.config
    recipe = load_config(path, Recipe) if path.is_file() else Recipe(name=model.resolve().name)
    # The language model of a model lies beside it, and speaks of other texts than those that are to come.
    search = config.search.model_copy(update={"fusion": FusionConfig()})
    own = {"features": config.features, "network": config.network, "search": search}
    return recipe.model_copy(update={**own, "tokenizer": loaded.tokenizer.config})


def _was_finetuned(model: Path) -> bool:
    return (model / RUN).is_file() and load_config(model / RUN, RunInfo).initial is not None


def gentle_optimizer(optimizer: OptimizerConfig, chosen: Collection[str], again: bool) -> OptimizerConfig:
    """The optimiser with a lower learning rate and a short warm-up; `chosen` are the settings of the user,
    `again` says whether it is of a fine-tuning already.
    """
    gentler: dict[str, Any] = {
        "lr": optimizer.lr * (1 if again else LR_SHARE),
        "warmup_steps": min(optimizer.warmup_steps, WARMUP_STEPS),
        # A number of steps that the user chooses is one, however long the run is.
        "warmup_share": 1.0 if "optimizer.warmup_steps" in chosen else WARMUP_SHARE,
    }
    return OptimizerConfig.model_validate({**optimizer.model_dump(), **gentler})


def gentle_training(training: TrainingConfig) -> TrainingConfig:
    """The same, shorter."""
    return training.model_copy(update={"epochs": min(training.epochs, EPOCHS)})


def _gentle(recipe: Recipe, chosen: set[str], again: bool) -> Recipe:
    batches = recipe.batches
    # Shares of the old corpora say nothing of the new ones, and nothing has to be easy at first.
    mixing = batches.mixing.model_copy(update={"weights": ()})
    return recipe.model_copy(
        update={
            "network": _past_its_stages(recipe.network),
            "optimizer": gentle_optimizer(recipe.optimizer, chosen, again),
            "training": gentle_training(recipe.training),
            "batches": batches.model_copy(update={"mixing": mixing, "curriculum_epochs": 0}),
        }
    )


def _past_its_stages(network: TransducerConfig) -> TransducerConfig:
    """The same network as it is trained at the end."""
    values = network.model_dump()
    for name in STAGES:
        if name in values["encoder"]:
            values["encoder"][name] = 0
    values["loss"]["transducer"].update(after_steps=0, max_after_steps=0)
    values["loss"]["transducer"]["pruned"]["warmup_steps"] = 0
    return TransducerConfig.model_validate(values)


def _refuse(base: Recipe, recipe: Recipe, model: LoadedModel, new_tokens: bool) -> None:
    """Raise ConfigError if the recipe does not fit the weights of the model."""
    losses = []
    for found in differences(base.model_dump(mode="json"), recipe.model_dump(mode="json")):
        section, name = found.key.split(".")[0], found.key.split(".")[-1]
        if found.key.startswith(LOSS):
            losses.append(found)
        elif section == "features" or (section == "network" and name not in FREE):
            refuse(found)
        elif section == "tokenizer" and not new_tokens:
            raise ConfigError(
                f"--set {found.key}: expected the model's own tokenizer ({found.old}), found {found.new}; "
                "leave it out, or add --new-tokens"
            )
    # Some settings of the losses add or remove a head.
    fitting = model.config.model_copy(update={"network": recipe.network})
    if losses and tensor_shapes(fitting) != tensor_shapes(model.config):
        refuse(losses[0]._replace(key=", ".join(found.key for found in losses)))


def refuse(difference: Difference) -> NoReturn:
    """Raise ConfigError for a setting that fine-tuning keeps."""
    raise ConfigError(
        f"--set {difference.key}: expected what the model has ({difference.old}), found {difference.new}; "
        "fine-tuning keeps features and network: leave it out, or train a new model (asr train)"
    )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Settings of which two configurations have not the same."""
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield Difference(prefix + name, before, after)
