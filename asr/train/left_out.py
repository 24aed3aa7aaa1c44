"""What training leaves out, said and counted, and an error where it is too much.

- a recording that cannot be read: it is missing in its batch;
- an utterance whose loss is not finite: it gives no gradient;
- a step whose gradient is not finite, or of which nothing is left: the weights stay.

Each is a line on the screen and a record in log.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asr.errors import TrainingError
from asr.train.checkpoint import Progress
from asr.train.distributed import World
from asr.train.metrics import LOG, NoLog, RunLog
from asr.train.recipe import Recipe
from asr.train.setup import CHECKPOINTS
from asr.train.step import BatchResult
from asr.train.task import AnyRecipe

TOLERATED = 10
"""Utterances that may be left out whatever their share, so that the first batches of a run decide nothing."""
MAX_SKIPPED = 20
"""Steps in a row without a finite gradient after which training has diverged."""


class LeftOut:
    """What a run leaves out; its `world` ends all processes with an error that all of them find."""

    def __init__(self, recipe: AnyRecipe, exp: Path, world: World, say: Callable[[str], None]) -> None:
        self._policy = recipe.training.non_finite
        self._most = recipe.batches.max_corrupt if isinstance(recipe, Recipe) else 0.0  # text cannot be
        self._exp, self._world, self._say = exp, world, say
        self._steps = 0

    def utterances(self, result: BatchResult, progress: Progress, log: RunLog | NoLog) -> None:
        """Note what a batch of the step to come went without; raises TrainingError by policy."""
        self._corrupt(result, progress, log)
        self._non_finite(result, progress.step + 1, log)

    def step(self, step: int, norm: float, log: RunLog | NoLog) -> None:
        """Note a step without an update; raises TrainingError if that is the policy, or if it goes on."""
        self._steps += 1
        log.write("skip", step, why="no finite gradient", grad_norm=str(norm))
        if self._policy == "stop" or self._steps == MAX_SKIPPED:
            self._world.fail(
                TrainingError(
                    f"step {step}: no finite gradient ({self._steps} steps in a row); lower optimizer.lr or "
                    f"training.clip_norm in a new run; the checkpoints in {self._exp / CHECKPOINTS} stay"
                )
            )
        self._say(f"step {step}: no finite gradient (norm {norm}); step left out")

    def updated(self) -> None:
        """A step has changed the weights: those left out are no longer in a row."""
        self._steps = 0

    def say_total(self, progress: Progress) -> None:
        """The recordings that could not be read, of all so far, if there were any."""
        if progress.corrupt:
            share = f"{progress.corrupt} of {progress.utterances} utterances"
            where = f'kind "corrupt" in {self._exp / LOG}'
            self._say(f"{share} could not be read and were left out: {where}")

    def _corrupt(self, result: BatchResult, progress: Progress, log: RunLog | NoLog) -> None:
        progress.utterances += result.utterances
        progress.corrupt += len(result.corrupt)
        if not result.corrupt:
            return
        step = progress.step + 1
        log.write("corrupt", step, utterances=list(result.corrupt))
        self._say(f"step {step}: left out, because it cannot be read: {'; '.join(result.corrupt)}")
        if progress.corrupt > TOLERATED + self._most * progress.utterances:
            self._world.fail(
                TrainingError(
                    f"{progress.corrupt} of {progress.utterances} utterances cannot be read, the last one "
                    f"{result.corrupt[-1]}; mend or remove them (asr data check), or raise "
                    f"batches.max_corrupt ({self._most:g})"
                )
            )

    def _non_finite(self, result: BatchResult, step: int, log: RunLog | NoLog) -> None:
        if not result.non_finite:
            return
        names = ", ".join(result.non_finite)
        if self._policy == "stop":
            self._world.fail(
                TrainingError(
                    f"step {step}: the loss is not finite for {names}; remove them (too short for their "
                    "text?), lower the learning rate, or set training.non_finite=skip"
                )
            )
        log.write("skip", step, why="loss is not finite", utterances=list(result.non_finite))
        self._say(f"step {step}: loss is not finite, left out: {names}")
