"""What learns in a run, in one process: a network, its optimiser and, if asked for, the average that is kept.

The network of the run itself learns, unless it is to be sharded (asr.train.sharding) or averaged
(asr.train.ema, asr.train.asgd): then copies do, and it holds what is kept, for all that is not training.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

from torch import nn

from asr.train import checkpoint
from asr.train.asgd import TriggeredAverage, is_triggered
from asr.train.distributed import World
from asr.train.ema import WeightAverage
from asr.train.gradients import divide_gradients, sum_gradients
from asr.train.optim import build_optimizer, learning_rate
from asr.train.sharding import gather_weights, shard, whole
from asr.train.task import AnyRecipe
from asr.transducer import Transducer


class Update(NamedTuple):
    """What an optimiser step was."""

    lr: float
    norm: float
    """Of the gradient, before it was clipped."""
    usable: bool
    """Whether the weights changed: there were labels, and the gradient was finite."""


class Learner:
    """Made once `network` has the weights to begin with."""

    trained: nn.Module
    """What gradients are taken of."""

    def __init__(self, network: nn.Module, recipe: AnyRecipe, world: World) -> None:
        self._network, self._recipe, self._world = network, recipe, world
        self.sharded = recipe.training.sharding == "fsdp2" and world.size > 1
        self._kept = self.trained = self._copy() if self.sharded else network
        self._average: WeightAverage | TriggeredAverage | None = None
        if recipe.training.ema:
            self.trained = self._copy()
            self._average = WeightAverage(recipe.training.ema, self.trained, self._kept)
        elif recipe.optimizer.kind == "nt-asgd":
            self.trained = self._copy()
            self._average = TriggeredAverage(self.trained, self._kept)
        self._parameters = list(self.trained.parameters())
        self._optimizer = build_optimizer(recipe.optimizer, self.trained)

    def load(self, path: Path) -> None:
        """What a checkpoint has beside the kept weights; raises ModelError naming the file."""
        checkpoint.load_trained(path, self.trained)
        checkpoint.load_moments(path, self._optimizer)

    def sum_gradients(self) -> None:
        """Add up those of all processes; of a sharded network they are together already."""
        if not self.sharded:
            sum_gradients(self._parameters, self._world)

    def update(self, labels: int, progress: checkpoint.Progress) -> Update:
        """One optimiser step from gradients that are sums over so many labels; none if not finite."""
        lr = learning_rate(self._recipe.optimizer, progress.step, progress.total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        # Shards arrive as means over the processes.
        divide_gradients(self._parameters, max(labels, 1) / (self._world.size if self.sharded else 1))
        clip_norm = self._recipe.training.clip_norm
        norm = float(whole(nn.utils.clip_grad_norm_(self._parameters, clip_norm)))
        usable = norm < float("inf") and labels > 0
        if usable:
            self._optimizer.step()
            if isinstance(self._average, TriggeredAverage):
                self._average.update(progress.step, progress.averaging_since)
            elif self._average is not None:
                self._average.update(progress.step)
        self._optimizer.zero_grad(set_to_none=True)
        return Update(lr, norm, usable)

    def validated(self, loss: float, progress: checkpoint.Progress) -> bool:
        """Take note of the loss on dev, nats per label; whether averaging begins with it (asr.train.asgd)."""
        if not isinstance(self._average, TriggeredAverage) or progress.averaging_since is not None:
            return False
        progress.dev_losses.append(loss)
        if not is_triggered(progress.dev_losses, self._recipe.optimizer.patience):
            return False
        progress.averaging_since = progress.step
        return True

    def _copy(self) -> nn.Module:
        """The network again, sharded if it is to be."""
        if not self.sharded:
            return copy.deepcopy(self._network)
        assert isinstance(self._network, Transducer)
        return shard(self._network, self._world)

    def gather(self) -> None:
        """Bring what is kept into the network of the run; all processes must."""
        if self.sharded:
            gather_weights(self._kept, self._network)

    def save(self, directory: Path, progress: checkpoint.Progress) -> Path:
        """Write a checkpoint below `directory`, by the main process, and return its path; all must."""
        self.gather()
        writing = self._world.main or self.sharded
        moments = checkpoint.gather_moments(self._optimizer) if writing else {}
        averaged = writing and self._average is not None
        trained = checkpoint.gather_trained(self.trained) if averaged else None

        def write() -> Path:
            path = checkpoint.save_checkpoint(directory, self._network, moments, progress, trained)
            checkpoint.prune(directory, self._recipe.training.keep_best)
            return path

        return self._world.from_main(write)
