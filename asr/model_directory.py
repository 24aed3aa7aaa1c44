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
from safetensors.torch import save

from asr.config import Config, load_config, save_config, write_atomically
from asr.errors import ConfigError, ModelError
from asr.features.fbank import FbankConfig
from asr.search import SearchConfig
from asr.text.tokenizer import Tokenizer, load_tokenizer
from asr.transducer import Transducer, TransducerConfig
from asr.weights import Storage, pack, read_weights

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


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


def write_directory(
    directory: Path,
    config: Config,
    network: torch.nn.Module,
    tokenizer: Tokenizer,
    card: str,
    storage: Storage,
) -> None:
    """The files of `save_model`, of any kind of network."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory)
    save_config(config, directory / CONFIG)
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(directory / WEIGHTS, save(pack(weights, storage)))
    write_atomically(directory / CARD, card.encode())


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
    config = load_config(directory / CONFIG, ModelConfig)
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size != config.vocab_size:
        raise ModelError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} labels, {CONFIG} says "
            f"{config.vocab_size}; they come from different models"
        )
    network = build_network(config)
    load_weights(network, directory / WEIGHTS)
    return LoadedModel(config, network.to(check_device(device)).eval(), tokenizer)


def check_device(name: str | torch.device) -> torch.device:
    """The device of this name; raises ConfigError if there is none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name}: not usable here ({reason}); cpu always is") from error
    return device


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Fill `network` from a safetensors file; raises ModelError if names or shapes differ."""
    weights = read_weights(path)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = sorted(expected.items() ^ found.items())[0][0]
        raise ModelError(
            f"{path}: weights do not fit the configuration: {name}: expected "
            f"{expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        )
    network.load_state_dict(weights)
