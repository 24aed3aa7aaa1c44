"""What a run trains: all that the loop (asr.train.loop) leaves to the kind of model.

The loop knows steps, epochs, processes, checkpoints, interrupts and the log. What a batch is, what its loss
is, what is measured on dev and what the result looks like is a task's: a recogniser's
(asr.train.recogniser) or a language model's (asr.train.language). asr.train.kinds finds the one for a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from asr.data.planned import PlannedBatches
from asr.train.checkpoint import Progress
from asr.train.distributed import World
from asr.train.initial import Initial
from asr.train.lm_recipe import LmRecipe
from asr.train.metrics import Stopwatch
from asr.train.recipe import Recipe
from asr.train.step import BatchResult

AnyRecipe = Recipe | LmRecipe


class Cost(NamedTuple):
    """What some trial batches cost."""

    parameters: int
    per_second: float
    """Feature frames trained per second, forward and backward; of a language model labels."""
    peak_bytes: int
    """Largest memory of the process so far."""
    unit: str = "frames"


class Measured(Protocol):
    """What was measured on dev."""

    @property
    def loss(self) -> float:
        """Nats per label."""

    @property
    def numbers(self) -> dict[str, float]:
        """For the log and the checkpoint: `dev_loss`, and one that the best checkpoints are chosen by, of
        those that asr.train.checkpoint.Progress has.
        """

    @property
    def headline(self) -> str:
        """What counts, in a few words."""


class Task(Protocol):
    """A run that is ready to start."""

    @property
    def recipe(self) -> AnyRecipe:
        """What was asked for."""

    @property
    def initial(self) -> Initial | None:
        """The model that the run began with, if it is a fine-tuning."""

    @property
    def network(self) -> nn.Module:
        """What is kept of the run; what learns may be a copy (asr.train.learner)."""

    @property
    def batches(self) -> PlannedBatches[Any, Any]:
        """To learn from."""

    @property
    def dev(self) -> PlannedBatches[Any, Any]:
        """To measure with."""

    @property
    def mark(self) -> str:
        """What every printed result must carry, if anything."""

    def place(self, device: torch.device) -> None:
        """Bring the network to where it is trained, once before everything else."""

    def check(self, total_steps: int) -> Cost:
        """What would keep the run from its end is an error now: ConfigError, TrainingError, DataError."""

    def backward(
        self, network: nn.Module, batch: Any, *, clock: Stopwatch, step: int, in_step: bool
    ) -> BatchResult:
        """Add the gradients of the sum of a batch's losses to `network`, which is this task's or a copy."""

    def validate(self, world: World) -> Measured:
        """Measure on dev, all processes together; leaves the network in evaluation mode."""

    def throughput(self, progress: Progress) -> str:
        """How fast training was."""

    def write(self, exp: Path, weights: str, dev: Any, progress: Progress) -> None:
        """Make `exp` a model directory of the network as it is: `weights` says which they are, `dev` is what
        `validate` measured with them.
        """


Say = Callable[[str], None]
"""Prints a line."""
