"""A model directory: everything that is needed to use a model, and nothing that could run code.

::

    model.safetensors   weights, feature statistics included (asr.weights)
    config.yaml         ModelConfig: features, network, search
    tokenizer.*         see asr.text.tokenizer
    README.md           the card: how it was trained and what was measured
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field

from asr.config import Config, load_yaml, validate
from asr.directory import CARD, CONFIG, WEIGHTS, check_device, load_weights, write_directory
from asr.errors import ModelError
from asr.features.fbank import FbankConfig
from asr.search import SearchConfig
from asr.text.tokenizer import Tokenizer, load_tokenizer
from asr.transducer import Transducer, TransducerConfig
from asr.weights import Storage


class ModelConfig(Config):
    """What a model directory's config.yaml holds."""

    features: FbankConfig = FbankConfig()
    network: TransducerConfig = TransducerConfig()
    search: SearchConfig = SearchConfig()
    vocab_size: int = Field(ge=2)
    """Labels including blank; must agree with the tokenizer."""
    synthetic: bool = False
    """Trained on synthetic speech: every result says so."""


class LoadedModel(NamedTuple):
    """A model directory's content, in memory."""

    config: ModelConfig
    network: Transducer
    tokenizer: Tokenizer


def build_network(config: ModelConfig) -> Transducer:
    """The untrained network that `config` describes."""
    features = config.features
    # Not frame_shift_ms: at 22,050 Hz 10 ms are 220 samples, 9.977 ms, and an hour would drift by 8 s.
    shift_s = features.shift / features.sample_rate
    return Transducer(config.network, features.num_mel_bins, config.vocab_size, shift_s)


def save_model(
    directory: Path | str,
    config: ModelConfig,
    network: Transducer,
    tokenizer: Tokenizer,
    card: str,
    storage: Storage = "float32",
) -> None:
    """Write a model directory; every file is either the old one or the new one at any moment."""
    write_directory(Path(directory), config, network, tokenizer, card, storage)


def load_model(directory: Path | str, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a model directory; raises ModelError naming the file and what is wrong with it."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"{directory}: expected a model directory, found nothing there")
    missing = [name for name in (WEIGHTS, CONFIG) if not (directory / name).is_file()]
    if missing:
        raise ModelError(
            f"{directory}: expected a model directory, found no {' and no '.join(missing)}; "
            "training writes them when it ends"
        )
    values = load_yaml(directory / CONFIG)
    if values.get("kind") == "lm":
        raise ModelError(
            f"{directory}: expected a recogniser, found a language model; it takes part in a search as --lm"
        )
    config = validate(values, ModelConfig, str(directory / CONFIG))
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size != config.vocab_size:
        raise ModelError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} labels, {CONFIG} says "
            f"{config.vocab_size}; they come from different models"
        )
    network = build_network(config)
    load_weights(network, directory / WEIGHTS)
    return LoadedModel(config, network.to(check_device(device)).eval(), tokenizer)


__all__ = [
    "CARD",
    "CONFIG",
    "WEIGHTS",
    "LoadedModel",
    "ModelConfig",
    "build_network",
    "check_device",
    "load_model",
    "load_weights",
    "save_model",
]
