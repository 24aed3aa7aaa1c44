"""Several models of one origin as one: the average of their weights, number by number.

    theta = sum_i w_i theta_i / sum_i w_i

Fine-tuning takes a model towards its recordings and away from all others. Part of the way back, it has most
of what it had forgotten and nearly all that it has learnt (WiSE-FT: Wortsman et al. 2022, *Robust fine-tuning
of zero-shot models*), and runs that began alike are better together than each alone (Wortsman et al. 2022,
*Model soups*). Where models have no common beginning, the average of their weights is none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from asr.directory import read_card
from asr.errors import ConfigError
from asr.export import write_recogniser
from asr.model_directory import LoadedModel, load_model
from asr.train.finetune import FREE, differences
from asr.train.optim import is_within
from asr.weights import weighted_mean

WITHOUT_LABELS = ("encoder", "norm")
"""Parts of the network to which the labels do not matter."""


class Member(NamedTuple):
    """A model directory and how much it counts."""

    model: Path
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.model}:{self.weight:g}"


def average_models(members: Sequence[Member], out: Path, parts: Sequence[str] = ()) -> None:
    """Write the average of recognisers to the directory `out`; all else that it has is the first one's.

    parts: beginnings of parameters' names, such as "encoder", that are averaged; all without any. Raises
    ConfigError if there are fewer than two models, a weight is not above 0, or the models do not suit each
    other or have no such part, ModelError naming what cannot be read.
    """
    if len(members) < 2:
        raise ConfigError(f"expected two models or more to average, found {len(members)}")
    for member in members:
        if not 0 < member.weight < math.inf:
            raise ConfigError(f"{member}: expected a weight above 0")
        if member.model.resolve() == out.resolve():
            raise ConfigError(f"{out}: expected another directory than those of the models")
    first, *others = [load_model(member.model) for member in members]
    weights = first.network.state_dict()
    names = [name for name in weights if not parts or any(is_within(name, part) for part in parts)]
    for part in parts:
        if not any(is_within(name, part) for name in names):
            own = ", ".join(dict.fromkeys(name.split(".")[0] for name in weights))
            raise ConfigError(f"{part}: expected a part of the network ({own}, or a part of these)")
    for member, other in zip(members[1:], others, strict=True):
        _check(members[0].model, first, member.model, other, names)
    shares = _shares([member.weight for member in members])
    states = (each.network.state_dict() for each in (first, *others))
    taken = ({name: state[name] for name in names} for state in states)
    first.network.load_state_dict({**weights, **weighted_mean(zip(taken, shares, strict=True))})
    said = ", ".join(
        f"{100 * share:.3g} % of {member.model}" for share, member in zip(shares, members, strict=True)
    )
    of = f" of {', '.join(parts)}" if parts else ""
    card = f"{read_card(members[0].model).rstrip()}\n\n- average{of}: {said}\n"
    synthetic = any(each.config.synthetic for each in (first, *others))
    config = first.config.model_copy(update={"synthetic": synthetic})
    write_recogniser(first._replace(config=config), card, members[0].model, out, "float32")


def _shares(weights: Sequence[float]) -> list[float]:
    """Of weights above 0; their sum is 1."""
    most = max(weights)
    total = sum(weight / most for weight in weights)
    return [weight / most / total for weight in weights]


def _check(
    path: Path, first: LoadedModel, other_path: Path, other: LoadedModel, names: Sequence[str]
) -> None:
    """Raise ConfigError if these weights of two models do not mean the same."""
    if other.config.features != first.config.features:
        raise ConfigError(f"{other_path}: expected features as {path} hears them, found others")
    labels = [each.tokenizer.pieces(range(1, each.tokenizer.vocab_size)) for each in (first, other)]
    if labels[0] != labels[1] and not all(name.split(".")[0] in WITHOUT_LABELS for name in names):
        raise ConfigError(
            f"{other_path}: expected the labels of {path}, found others; average the encoder alone "
            "(--part encoder)"
        )
    averaged = {name.split(".")[0] for name in names}
    settings = [each.config.network.model_dump(mode="json") for each in (first, other)]
    for found in differences(settings[0], settings[1]):
        if found.key.split(".")[0] in averaged and found.key.split(".")[-1] not in FREE:
            raise ConfigError(
                f"{other_path}: {found.key}: expected {found.old} as in {path}, found {found.new}; "
                "average models of one network, or parts that they share (--part)"
            )
    mine, theirs = first.network.state_dict(), other.network.state_dict()
    for name in names:
        shape = tuple(theirs[name].shape) if name in theirs else "nothing"
        if shape != tuple(mine[name].shape):
            raise ConfigError(
                f"{other_path}: {name}: expected {tuple(mine[name].shape)} as in {path}, found {shape}; "
                "average models of one network, or parts that they share (--part)"
            )
