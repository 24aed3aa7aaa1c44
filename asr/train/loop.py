"""The training loop: the only one, for every model and corpus.

A run lives in one directory:

::

    EXP/recipe.yaml, run.yaml     what was trained, on what, with which software
    EXP/tokenizer.*               made from the training texts before the first step
    EXP/log.jsonl, tensorboard/   losses, learning rate, gradient norms, dev WER
    EXP/checkpoints/step-*/       the best and the newest (asr.train.checkpoint)
    EXP/model.safetensors, ...    at the end EXP is a model directory (asr.train.finish)
    EXP/training.png              the curves

Stopping (Ctrl-C, SIGTERM) saves a checkpoint and exits; resuming goes on with the same weights, moments,
random numbers and batches as if nothing had happened.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from asr.data.batches import Batch
from asr.errors import TrainingError
from asr.interrupt import Interrupt
from asr.model_directory import CARD, check_device
from asr.search import build_search
from asr.train import checkpoint
from asr.train.finish import finish
from asr.train.metrics import RunLog, Stopwatch
from asr.train.optim import build_optimizer, learning_rate
from asr.train.preflight import preflight
from asr.train.progress import TrainingProgress
from asr.train.recipe import Recipe
from asr.train.setup import CHECKPOINTS, RunSetup, resume_run, start_run
from asr.train.step import BatchResult, train_batch
from asr.train.validate import validate

MAX_SKIPPED = 20
"""Steps in a row without a finite gradient after which training has diverged."""


class Outcome(NamedTuple):
    """How a run ended."""

    directory: Path
    finished: bool
    """False if it was interrupted; resume it."""
    dev_wer: float | None
    """Of the weights that were kept, if this call ended the run."""


def train(
    recipe: Recipe | None,
    data: Path | None,
    exp: Path,
    *,
    resume: bool = False,
    profile: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> Outcome:
    """Train `recipe` on the corpus directory `data` into `exp`, or go on with the run in `exp`.

    With `resume`, `data` says where the corpus has moved, if it has. Raises TrainingError, DataError or
    ConfigError with one line; the last checkpoint is never lost.
    """
    where = check_device(device)
    if resume:
        setup = resume_run(exp, data)
    elif recipe is None or data is None:
        raise TrainingError("a new run needs a recipe and a corpus directory; --resume needs neither")
    else:
        setup = start_run(recipe, data, exp, where)
    return Trainer(setup, exp, where, console or Console(), profile).run(resume)


class Trainer:
    """One run; see the module docstring."""

    def __init__(
        self, setup: RunSetup, exp: Path, device: torch.device, console: Console, profile: bool
    ) -> None:
        self.setup, self.exp, self.console, self.profile = setup, exp, console, profile
        self.recipe, self.batches, self.options = setup.recipe, setup.batches, setup.recipe.training
        self.network = setup.network.to(device)
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self.optimizer = build_optimizer(self.recipe.optimizer, self.network)
        self.search = build_search(self.recipe.search, self.network)
        self.progress = checkpoint.Progress()
        self.clock = Stopwatch()
        self.skipped = 0
        self.saved_at = time.monotonic()

    def run(self, resume: bool) -> Outcome:
        """Train to the end or until interrupted."""
        with Interrupt() as interrupt:
            if resume:
                self._resume()
            else:
                self._prepare()
            if self.progress.epoch == self.options.epochs and (self.exp / CARD).exists():
                self._say(f"this run is finished; the model is in {self.exp}")
                return Outcome(self.exp, True, None)
            log = RunLog(self.exp, self.progress.step)
            try:
                with TrainingProgress(self.console, self.progress.total_steps) as display:
                    while self.progress.epoch < self.options.epochs and not interrupt.requested:
                        self._epoch(log, display, interrupt)
            finally:
                log.close()
            if interrupt.requested:
                return self._interrupted()
        wer = finish(self.setup, self.exp, self.progress, self.search, self._say)
        if self.profile:
            self._say_profile()
        self._say(f"model: {self.exp}")
        return Outcome(self.exp, True, wer)

    def _resume(self) -> None:
        path = checkpoint.latest(self.exp / CHECKPOINTS)
        self.progress = checkpoint.load_checkpoint(path, self.network, self.optimizer)
        self.batches.load_state_dict(self.progress.data)
        self.progress.dev_wer = None
        self._say(f"resuming at step {self.progress.step} from {path}")

    def _prepare(self) -> None:
        """Everything before the first step; ends with a checkpoint, the first that can be resumed."""
        steps = -(-len(self.batches) // self.options.accumulate)
        self.progress.total_steps = steps * self.options.epochs
        self.network.encoder.check_steps(self.progress.total_steps)
        cost = preflight(self.setup)
        self._say(
            f"{cost.parameters / 1e6:.2f} M parameters · {self.options.epochs} epochs of {steps} steps · "
            f"about {cost.frames_per_second:,.0f} frames/s · memory {cost.peak_bytes / 2**20:,.0f} MiB"
        )
        # The trial consumed random numbers; training's depend on the seed alone.
        torch.manual_seed(self.options.seed)
        self._save()

    def _epoch(self, log: RunLog, display: TrainingProgress, interrupt: Interrupt) -> None:
        """The rest of the current epoch, then validation and a checkpoint."""
        self.network.train()
        options, group = self.options, list[BatchResult]()
        for batch in self._timed(self.batches):
            share, precision = 1.0 / options.accumulate, options.precision
            step = self.progress.step
            group.append(
                train_batch(
                    self.network, batch, share=share, precision=precision, clock=self.clock, step=step
                )
            )
            self._report_non_finite(group[-1], log)
            self.progress.heard_s += batch.duration_s
            if len(group) == options.accumulate:
                self._optimize(group, log, display)
                group = []
                if interrupt.requested:
                    return
                if time.monotonic() - self.saved_at > 60 * options.checkpoint_minutes:
                    self._save()
        if group:
            self._optimize(group, log, display)
        self.progress.epoch += 1
        if self.progress.epoch % options.validate_every == 0 or self.progress.epoch == options.epochs:
            self._validate(log, display)

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each counted as `data`."""
        iterator, begun = iter(batches), time.perf_counter()
        while True:
            with self.clock("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch
            now = time.perf_counter()
            self.progress.spent_s, begun = self.progress.spent_s + now - begun, now

    def _optimize(self, group: list[BatchResult], log: RunLog, display: TrainingProgress) -> None:
        """One optimiser step from the gradients of `group`; none if they are not finite."""
        progress = self.progress
        lr = learning_rate(self.recipe.optimizer, progress.step, progress.total_steps)
        with self.clock("optimiser"):
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = lr
            norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm))
            usable = norm < float("inf") and any(result.labels for result in group)
            if usable:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if not usable:
            self._skip(norm, log)
            return
        self.skipped = 0
        loss = sum(result.loss for result in group) / max(1, sum(result.labels for result in group))
        log.write("train", progress.step, loss=loss, lr=lr, grad_norm=norm, epoch=progress.epoch)
        display.step(progress.step, progress.epoch, loss, norm)

    def _skip(self, norm: float, log: RunLog) -> None:
        """Note a step without an update; raise TrainingError if that is the policy, or if it goes on."""
        step, self.skipped = self.progress.step, self.skipped + 1
        log.write("skip", step, why="no finite gradient", grad_norm=str(norm))
        if self.options.non_finite == "stop" or self.skipped == MAX_SKIPPED:
            raise TrainingError(
                f"step {step}: no finite gradient ({self.skipped} steps in a row); lower optimizer.lr or "
                f"training.clip_norm in a new run; the checkpoints in {self.exp / CHECKPOINTS} stay"
            )
        self._say(f"step {step}: no finite gradient (norm {norm}); step left out")

    def _report_non_finite(self, result: BatchResult, log: RunLog) -> None:
        if not result.non_finite:
            return
        step, names = self.progress.step + 1, ", ".join(result.non_finite)
        if self.options.non_finite == "stop":
            raise TrainingError(
                f"step {step}: the loss is not finite for {names}; remove them (too short for their text?), "
                "lower the learning rate, or set training.non_finite=skip"
            )
        log.write("skip", step, why="loss is not finite", utterances=list(result.non_finite))
        self._say(f"step {step}: loss is not finite, left out: {names}")

    def _validate(self, log: RunLog, display: TrainingProgress) -> None:
        with self.clock("validation"):
            dev = validate(self.network, self.search, self.setup.dev, self.setup.tokenizer)
        self.progress.dev_wer, self.progress.dev_loss = dev.wer, dev.loss
        log.write("dev", self.progress.step, dev_wer=dev.wer, dev_loss=dev.loss, epoch=self.progress.epoch)
        display.validated(self.progress.epoch, dev.wer, dev.loss)
        self._save()
        self.progress.dev_wer = None

    def _save(self) -> Path:
        directory = self.exp / CHECKPOINTS
        self.progress.data = self.batches.state_dict()
        path = checkpoint.save_checkpoint(directory, self.network, self.optimizer, self.progress)
        checkpoint.prune(directory, self.options.keep_best)
        self.saved_at = time.monotonic()
        return path

    def _interrupted(self) -> Outcome:
        path = self._save()
        self._say(f"stopped at step {self.progress.step}; saved {path}")
        self._say(f"resume: asr train --resume --exp {shlex.quote(str(self.exp))}")
        return Outcome(self.exp, False, None)

    def _say_profile(self) -> None:
        throughput = self.progress.heard_s / max(self.progress.spent_s, 1e-9)
        self._say(f"throughput {throughput:.0f} utterance-seconds per second")
        for part, share in self.clock.shares().items():
            self._say(f"  {part:<12} {100 * share:5.1f} %  {self.clock.seconds[part]:8.1f} s")

    def _say(self, line: str) -> None:
        """Print one line as it is: names may hold brackets, commands must not be broken."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
