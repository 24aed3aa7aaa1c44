"""The directory of a neural language model: what is needed to use it, and nothing that could run code.

::

    model.safetensors   weights (asr.weights)
    config.yaml         LmModelConfig: the network, the number of labels
    tokenizer.*         the recogniser's (asr.text.tokenizer)
    README.md           the card: how it was trained and its perplexity
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from asr.config import Config, load_yaml, validate
from asr.directory import CONFIG, WEIGHTS, check_device, load_weights, write_directory
from asr.errors import ModelError
from asr.lms import NeuralLm, NeuralLmConfig, build_neural_lm
from asr.text.tokenizer import Tokenizer, load_tokenizer
from asr.weights import Storage


class LmModelConfig(Config):
    """What the directory's config.yaml holds."""

    kind: Literal["lm"] = "lm"
    network: NeuralLmConfig
    vocab_size: int = Field(ge=2, le=10_000_000)
    """Labels including blank; must agree with the tokenizer."""


class LoadedLm(NamedTuple):
    """A language model's directory, in memory."""

    config: LmModelConfig
    network: NeuralLm
    """In evaluation mode: an asr.lms.base.Scorer."""
    tokenizer: Tokenizer


def is_lm_directory(directory: Path | str) -> bool:
    """Whether this is the directory of a neural language model, as its config.yaml says."""
    config = Path(directory) / CONFIG
    return config.is_file() and load_yaml(config).get("kind") == "lm"


def save_lm(
    directory: Path | str,
    config: LmModelConfig,
    network: NeuralLm,
    tokenizer: Tokenizer,
    card: str,
    storage: Storage = "float32",
) -> None:
    """Write a model directory; every file is either the old one or the new one at any moment."""
    write_directory(Path(directory), config, network, tokenizer, card, storage)


def load_lm(
    directory: Path | str, tokenizer: Tokenizer | None = None, device: str | torch.device = "cpu"
) -> LoadedLm:
    """Read a model directory; raises ModelError naming the file and what is wrong with it, also if the labels
    are not those of `tokenizer`, the recogniser's that it is to be used with.
    """
    directory = Path(directory)
    missing = [name for name in (WEIGHTS, CONFIG) if not (directory / name).is_file()]
    if missing:
        raise ModelError(
            f"{directory}: expected the directory of a language model, found no {' and no '.join(missing)}; "
            "training writes them when it ends"
        )
    values = load_yaml(directory / CONFIG)
    if values.get("kind") != "lm":
        raise ModelError(f"{directory}: expected a language model, found a recogniser; name another --lm")
    config = validate(values, LmModelConfig, str(directory / CONFIG))
    own = load_tokenizer(directory)
    if own.vocab_size != config.vocab_size:
        raise ModelError(
            f"{directory}: the tokenizer has {own.vocab_size} labels, {CONFIG} says {config.vocab_size}; "
            "they come from different models"
        )
    if tokenizer is not None and own.symbols != tokenizer.symbols:
        raise ModelError(
            f"{directory}: expected the labels of the recogniser ({_difference(tokenizer, own)}), found "
            f"the language model's ({_difference(own, tokenizer)}); train it with recogniser=DIR of this one"
        )
    network = build_neural_lm(config.network, config.vocab_size)
    load_weights(network, directory / WEIGHTS)
    return LoadedLm(config, network.to(check_device(device)).eval(), own)


def _difference(tokenizer: Tokenizer, other: Tokenizer) -> str:
    """How many labels of which kind, and the first that `other` has not in its place."""
    pairs = zip_longest(tokenizer.symbols, other.symbols)
    number, own = next((i, mine) for i, (mine, theirs) in enumerate(pairs) if mine != theirs)
    named = "no more" if own is None else f"{own!r}"
    return f"{tokenizer.vocab_size} of kind {tokenizer.config.kind}, {number} is {named}"
