"""Checkpoints: all that training needs to go on as if it had never stopped, without pickles.

::

    checkpoints/step-000120/
        model.safetensors       weights and feature statistics; with training.ema or nt-asgd the average
        trained.safetensors     with these: the weights that training goes on with
        optimizer.safetensors   AdamW's moments; SGD has none
        progress.json           step, epoch, place in the data, dev WER

Nothing in it depends on how many processes train, and no random generator's state is needed: what is drawn
in a batch depends on its seed. A checkpoint is written into a hidden directory, synced and renamed, and
hidden again before it is deleted: one that is there is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asr.config import write_atomically
from asr.errors import ModelError, TrainingError
from asr.model_directory import WEIGHTS
from asr.train.sharding import spread_like, whole
from asr.weights import read_weights, weighted_mean

TRAINED, OPTIMIZER, PROGRESS = "trained.safetensors", "optimizer.safetensors", "progress.json"
PREFIX = "step-"
RANDOM = "random"
"""Generators' states begin so in checkpoints written before batches had seeds; they are not needed."""


class Progress(BaseModel):
    """Where training is."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs completed."""
    data: dict[str, Any] = {}
    """Where the batches stand (PlannedBatches.state_dict)."""
    total_steps: int = 0
    """Length of the schedule, fixed when training began."""
    batches_per_step: int = 0
    """Batches of all processes in an optimiser step, fixed with it; 0: as many as the recipe accumulates."""
    heard_s: float = 0.0
    """Seconds of speech trained on."""
    labels: int = 0
    """Labels trained on."""
    spent_s: float = 0.0
    """Seconds that training took, validation left out."""
    utterances: int = 0
    """Utterances gone through, over all epochs."""
    corrupt: int = 0
    """Those of them that were left out because they could not be read."""
    dev_wer: float | None = None
    """Word error rate on dev at this checkpoint, if it was measured."""
    dev_loss: float | None = None
    """Nats per label on dev, measured with it."""
    dev_perplexity: float | None = None
    """Of a language model, per word, in place of the error rate."""
    dev_losses: list[float] = []
    """nt-asgd: all of them until averaging began."""
    averaging_since: int | None = None
    """nt-asgd: steps that were done when averaging began."""

    @property
    def error(self) -> float | None:
        """What the best checkpoints are chosen by; None if it was not measured at this one."""
        return self.dev_perplexity if self.dev_wer is None else self.dev_wer

    def note(self, numbers: dict[str, float]) -> None:
        """Set what was measured on dev, by name."""
        for name, value in numbers.items():
            setattr(self, name, value)

    def forget(self) -> None:
        """Dev was not measured any more with the weights as they are now."""
        self.dev_wer = self.dev_perplexity = None


def save_checkpoint(
    directory: Path,
    network: nn.Module,
    moments: dict[str, Tensor],
    progress: Progress,
    trained: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint under `directory` and return its path; `moments` are those of `gather_moments`.

    `trained` are the weights to go on with (`gather_trained`), if `network` holds their average. Where this
    step was saved before, the weights are the same: only what was measured on dev is added.
    """
    final = directory / f"{PREFIX}{progress.step:06d}"
    content = progress.model_dump_json(indent=1).encode()
    if final.exists():
        if progress.error is not None:
            write_atomically(final / PROGRESS, content)
        return final
    aside = directory / f".{final.name}"
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    try:
        aside.mkdir(parents=True)
        save_file(_contiguous(network.state_dict()), aside / WEIGHTS)
        if trained is not None:
            save_file(_contiguous(trained), aside / TRAINED)
        save_file(moments, aside / OPTIMIZER)
        write_atomically(aside / PROGRESS, content)
        for file in aside.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        aside.rename(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk every byte counts
        raise
    return final


def load_trained(path: Path, network: nn.Module) -> None:
    """Give `network` the weights to go on with, if the checkpoint `path` has others than those that it keeps;
    raises ModelError naming the file.
    """
    file = path / TRAINED
    if not file.exists():
        return
    try:
        weights = load_file(file)
        for name, tensor in network.state_dict().items():
            tensor.copy_(spread_like(weights[name], tensor))
    except (SafetensorError, OSError, LookupError, RuntimeError) as error:
        raise ModelError(f"{file}: not readable ({error}); {_way_out(path)}") from error


def load_moments(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimiser's moments from the checkpoint `path`; raises ModelError naming the file."""
    try:
        _restore_optimizer(optimizer, load_file(path / OPTIMIZER))
    except (SafetensorError, OSError, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"{path / OPTIMIZER}: not readable ({error}); {_way_out(path)}") from error


def read_progress(path: Path) -> Progress:
    """Where training was at the checkpoint `path`; raises ModelError."""
    file = path / PROGRESS
    try:
        return Progress.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{file}: not a checkpoint's progress ({reason}); {_way_out(path)}") from error


def gather_trained(network: nn.Module) -> dict[str, Tensor]:
    """The weights by name, whole; where they are sharded, all processes must ask for them."""
    return {name: whole(tensor).cpu() for name, tensor in network.state_dict().items()}


def gather_moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter index, whole; where it is sharded, all processes must ask for it."""
    tensors: dict[str, Tensor] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            tensors[f"{index}.{name}"] = whole(torch.as_tensor(value).detach()).cpu().clone()
    return tensors


def checkpoints(directory: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    found = [path for path in directory.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def latest(directory: Path) -> Path:
    """The newest checkpoint; raises TrainingError if there is none."""
    found = checkpoints(directory)
    if not found:
        raise TrainingError(f"{directory}: no checkpoint to resume from; start training without --resume")
    return found[-1]


def best(directory: Path, count: int) -> list[Path]:
    """The `count` checkpoints of lowest error on dev, best first; among equals that of lowest loss."""
    scored = [(read_progress(path), path) for path in checkpoints(directory)]
    measured = [(p.error, p.dev_loss or 0.0, -p.step, path) for p, path in scored if p.error is not None]
    return [path for *_, path in sorted(measured)[:count]]


def prune(directory: Path, keep_best: int) -> None:
    """Delete all but the newest checkpoint and the best ones, and what a killed process left half done."""
    for hidden in directory.glob(f".{PREFIX}*"):
        shutil.rmtree(hidden)
    kept = {*best(directory, keep_best), *checkpoints(directory)[-1:]}
    for path in checkpoints(directory):
        if path not in kept:
            hidden = path.with_name(f".{path.name}")
            path.rename(hidden)
            shutil.rmtree(hidden)


def average(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of the weights of several checkpoints (asr.weights); raises ModelError."""
    return weighted_mean((read_weights(path / WEIGHTS), 1.0) for path in paths)


def _way_out(path: Path) -> str:
    return f"delete {path} to resume from the checkpoint before it"


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    like = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if index != RANDOM:
            state.setdefault(int(index), {})[name] = spread_like(tensor, like[int(index)])
    # A layer that has not joined yet (Encoder.at_step) has no moments, nor has a transducer (after_steps).
    if any(entries["exp_avg"].shape != like[index].shape for index, entries in state.items()):
        raise ValueError(f"moments of another network, which has no {len(like)} parameters of these shapes")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
