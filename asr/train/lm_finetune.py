"""The recipe of a language model's fine-tuning: that of the model, made gentler where the user sets nothing.

As for recognisers (asr.train.finetune): a lower learning rate, a short warm-up, fewer epochs. The network
stays as it is, because the weights are its own, and so do the labels; what is dropped and penalised in
training may be set. Dev is held out of the new text unless it is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asr.config import load_config, override
from asr.errors import ConfigError
from asr.lm_directory import load_lm
from asr.train.finetune import differences, gentle_optimizer, gentle_training, refuse
from asr.train.language import LmRunInfo
from asr.train.lm_recipe import LmRecipe
from asr.train.setup import RECIPE, RUN

FREE = {
    "ar",
    "dropout",
    "embedding_dropout",
    "hidden_dropout",
    "input_dropout",
    "output_dropout",
    "tar",
    "weight_drop",
}
"""Settings of networks that may change: they matter in training alone."""


def finetune_lm_recipe(model: Path, settings: Sequence[str] = ()) -> LmRecipe:
    """The recipe of a run that begins with the language model in `model`; `settings` as in --set.

    Raises ModelError if there is none, ConfigError naming a setting that does not fit its weights.
    """
    config = load_lm(model).config
    path = model / RECIPE
    recipe = load_config(path, LmRecipe) if path.is_file() else LmRecipe(name=model.resolve().name)
    chosen = {setting.partition("=")[0].strip() for setting in settings}
    base = recipe.model_copy(
        update={
            "network": config.network,
            "recogniser": str(model.resolve()),  # its tokenizer lies in the language model's directory
            "dev": (),
            "optimizer": gentle_optimizer(recipe.optimizer, chosen, again=_was_finetuned(model)),
            "training": gentle_training(recipe.training),
        }
    )
    found = override(base, settings)
    if found.recogniser != base.recogniser:
        raise ConfigError(
            f"--set recogniser: expected the labels of {model}, found those of {found.recogniser}; "
            "fine-tuning keeps them: leave it out, or train a new model (asr train)"
        )
    for difference in differences(base.network.model_dump(), found.network.model_dump(), "network."):
        if difference.key.split(".")[-1] not in FREE:
            refuse(difference)
    return found


def _was_finetuned(model: Path) -> bool:
    return (model / RUN).is_file() and load_config(model / RUN, LmRunInfo).initial is not None
