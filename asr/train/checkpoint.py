"""Checkpoints: all that training needs to go on as if it had never stopped, without pickles.

::

    checkpoints/step-000120/
        model.safetensors       weights and feature statistics
        optimizer.safetensors   AdamW's moments, and the random generator's state
        progress.json           step, epoch, place in the data, dev WER

A checkpoint is written into a hidden directory, synced and renamed: one that is there is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asr.config import write_atomically
from asr.errors import ModelError, TrainingError
from asr.model_directory import WEIGHTS, load_weights

OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"


@dataclass
class Progress:
    """Where training is."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs completed."""
    data: dict[str, Any] = field(default_factory=dict)
    """Where the batches stand (Batches.state_dict)."""
    total_steps: int = 0
    """Length of the schedule, fixed when training began."""
    dev_wer: float | None = None
    """Word error rate on dev at this checkpoint, if it was measured."""


def save_checkpoint(
    directory: Path, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> Path:
    """Write a checkpoint under `directory` and return its path.

    Where this step was saved before, the weights are the same and only the progress is written again.
    """
    final = directory / f"step-{progress.step:06d}"
    content = json.dumps(asdict(progress), indent=1).encode()
    if final.exists():
        write_atomically(final / PROGRESS, content)
        return final
    aside = directory / f".{final.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_contiguous(network.state_dict()), aside / WEIGHTS)
    save_file(_optimizer_tensors(optimizer), aside / OPTIMIZER)
    write_atomically(aside / PROGRESS, content)
    for file in aside.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    aside.rename(final)
    return final


def load_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore weights, moments and random state; raises ModelError naming the file."""
    load_weights(network, path / WEIGHTS)
    try:
        tensors = load_file(path / OPTIMIZER)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path / OPTIMIZER}: not readable ({error}); resume from another checkpoint"
        ) from error
    torch.set_rng_state(tensors.pop("random"))
    _restore_optimizer(optimizer, tensors, path / OPTIMIZER)
    return read_progress(path)


def read_progress(path: Path) -> Progress:
    """Where training was at the checkpoint `path`; raises ModelError."""
    file = path / PROGRESS
    try:
        return Progress(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file}: not a checkpoint's progress ({error}); resume from another one") from error


def checkpoints(directory: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted(directory.glob("step-*"))


def latest(directory: Path) -> Path:
    """The newest checkpoint; raises TrainingError if there is none."""
    found = checkpoints(directory)
    if not found:
        raise TrainingError(f"{directory}: no checkpoint to resume from; start training without --resume")
    return found[-1]


def best(directory: Path, count: int) -> list[Path]:
    """The `count` checkpoints of lowest dev WER, best first; among equals the newer."""
    scored = [(read_progress(path), path) for path in checkpoints(directory)]
    measured = [(p.dev_wer, -p.step, path) for p, path in scored if p.dev_wer is not None]
    return [path for _, _, path in sorted(measured)[:count]]


def prune(directory: Path, keep_best: int) -> None:
    """Delete all but the newest checkpoint and the best ones."""
    kept = {*best(directory, keep_best), *checkpoints(directory)[-1:]}
    for path in checkpoints(directory):
        if path not in kept:
            shutil.rmtree(path)


def average(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of the weights of several checkpoints, accumulated in float64."""
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in load_file(path / WEIGHTS).items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter index, and the generator's state beside it."""
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], file: Path) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    parameters = [index for group in groups for index in group["params"]]
    if state and sorted(state) != parameters:
        raise ModelError(
            f"{file}: belongs to another network ({len(state)} parameters, expected {len(parameters)})"
        )
    optimizer.load_state_dict({"state": state, "param_groups": groups})
