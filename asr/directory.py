"""What the directories of recognisers and of language models have in common: files, weights, devices."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from asr.config import Config, save_config, write_atomically
from asr.errors import ConfigError, ModelError
from asr.text.tokenizer import Tokenizer
from asr.weights import Storage, pack, read_weights

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


def write_directory(
    directory: Path,
    config: Config,
    network: torch.nn.Module,
    tokenizer: Tokenizer,
    card: str,
    storage: Storage,
) -> None:
    """Write all that is needed to use `network`; every file is the old one or the new one at any moment."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory)
    save_config(config, directory / CONFIG)
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(directory / WEIGHTS, save(pack(weights, storage)))
    write_atomically(directory / CARD, card.encode())


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


def read_card(directory: Path) -> str:
    """What a directory's card says; without one, a title."""
    file = directory / CARD
    return file.read_text(encoding="utf-8") if file.is_file() else f"# {directory.name}\n"
