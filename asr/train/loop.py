"""The training loop: the only one, for every model and corpus.

A run lives in one directory:

::

    EXP/recipe.yaml, run.yaml     what was trained, on what, with which software
    EXP/tokenizer.*               made from the training texts before the first step
    EXP/log.jsonl, tensorboard/   losses, learning rate, gradient norms, dev WER
    EXP/checkpoints/step-*/       the best and the newest (asr.train.checkpoint)
    EXP/model.safetensors, ...    at the end EXP is a model directory (asr.model_directory)
    EXP/training.png              the curves

Stopping (Ctrl-C, SIGTERM) saves a checkpoint and exits; resuming goes on with the same weights, moments,
random numbers and batches as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from asr.data.batches import Batch
from asr.errors import TrainingError
from asr.model_directory import WEIGHTS, load_weights, save_model
from asr.search import build_search
from asr.train import checkpoint
from asr.train.card import model_card
from asr.train.interrupt import Interrupt
from asr.train.metrics import RunLog, Stopwatch, read_log
from asr.train.optim import build_optimizer, learning_rate
from asr.train.preflight import measure_cost, refuse_too_short
from asr.train.progress import TrainingProgress
from asr.train.recipe import Recipe
from asr.train.setup import RunSetup, resume_run, start_run
from asr.train.step import BatchResult, train_batch
from asr.train.validate import DevResult, validate

NORM_BATCHES = 100
"""Batches from which the feature statistics are measured: enough for means to three digits."""
TRIAL_BATCHES = 3
CHECKPOINTS = "checkpoints"


class Outcome(NamedTuple):
    """How a run ended."""

    directory: Path
    finished: bool
    """False if it was interrupted; resume it."""
    dev_wer: float | None


def train(
    recipe: Recipe | None,
    data: Path | None,
    exp: Path,
    *,
    resume: bool = False,
    profile: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train `recipe` on the corpus directory `data` into `exp`, or go on with the run in `exp`.

    Raises TrainingError, DataError or ConfigError with one line; the last checkpoint is never lost.
    """
    console = console or Console()
    if resume:
        setup = resume_run(exp)
    else:
        if recipe is None or data is None:
            raise TrainingError("a new run needs a recipe and a corpus directory; --resume needs neither")
        setup = start_run(recipe, data, exp)
    return Trainer(setup, exp, console, profile).run(resume)


class Trainer:
    """One run; see the module docstring."""

    def __init__(self, setup: RunSetup, exp: Path, console: Console, profile: bool) -> None:
        self.setup, self.exp, self.console, self.profile = setup, exp, console, profile
        self.recipe, self.network, self.batches = setup.recipe, setup.network, setup.batches
        self.options = setup.recipe.training
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self.optimizer = build_optimizer(self.recipe.optimizer, self.network)
        self.search = build_search(self.recipe.search, self.network)
        self.progress = checkpoint.Progress()
        self.clock = Stopwatch()
        self.heard_s = 0.0
        self.saved_at = time.monotonic()

    def run(self, resume: bool) -> Outcome:
        """Train to the end or until interrupted."""
        if resume:
            path = checkpoint.latest(self.exp / CHECKPOINTS)
            self.progress = checkpoint.load_checkpoint(path, self.network, self.optimizer)
            self.batches.load_state_dict(self.progress.data)
            self.progress.dev_wer = None
            self.console.print(f"resuming at step {self.progress.step} from {path}")
        else:
            self._prepare()
        log = RunLog(self.exp, self.progress.step)
        try:
            with (
                Interrupt() as interrupt,
                TrainingProgress(self.console, self.progress.total_steps) as display,
            ):
                while self.progress.epoch < self.options.epochs and not interrupt.requested:
                    self._epoch(log, display, interrupt)
            if interrupt.requested:
                return self._interrupted()
        finally:
            log.close()
        return self._finish()

    def _prepare(self) -> None:
        """Pre-flight, feature statistics and the length of the schedule."""
        setup = self.setup
        refuse_too_short(setup.utterances(), self.recipe.features, setup.tokenizer, self.network)
        start = self.batches.state_dict()
        batches = list(islice(self.batches, NORM_BATCHES))
        self.batches.load_state_dict(start)
        self.network.norm.measure((batch.features, batch.feature_lengths) for batch in batches)
        largest = sorted(batches, key=lambda b: b.features.shape[1] * (b.targets.shape[1] + 1))[
            -TRIAL_BATCHES:
        ]
        cost = measure_cost(largest, self.network.train(), self.options.precision)
        steps = -(-len(self.batches) // self.options.accumulate)
        self.progress.total_steps = steps * self.options.epochs
        self.console.print(
            f"{cost.parameters / 1e6:.2f} M parameters · {self.options.epochs} epochs of {steps} steps · "
            f"about {cost.frames_per_second:,.0f} frames/s · memory {cost.peak_bytes / 2**20:,.0f} MiB"
        )
        # The trial consumed random numbers; training's depend on the seed alone.
        torch.manual_seed(self.options.seed)

    def _epoch(self, log: RunLog, display: TrainingProgress, interrupt: Interrupt) -> None:
        """The rest of the current epoch, then validation and a checkpoint."""
        self.network.train()
        group: list[BatchResult] = []
        for batch in self._timed(self.batches):
            result = train_batch(
                self.network,
                batch,
                share=1.0 / self.options.accumulate,
                precision=self.options.precision,
                clock=self.clock,
            )
            self._report_non_finite(result, batch, log)
            group.append(result)
            self.heard_s += batch.duration_s
            if len(group) == self.options.accumulate:
                self._optimize(group, log, display)
                group = []
                if interrupt.requested:
                    return
                if time.monotonic() - self.saved_at > 60 * self.options.checkpoint_minutes:
                    self._save()
        if group:
            self._optimize(group, log, display)
        self.progress.epoch += 1
        if (
            self.progress.epoch % self.options.validate_every == 0
            or self.progress.epoch == self.options.epochs
        ):
            self._validate(log, display)

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each counted as `data`."""
        iterator = iter(batches)
        while True:
            with self.clock("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def _optimize(self, group: list[BatchResult], log: RunLog, display: TrainingProgress) -> None:
        """One optimiser step from the gradients of `group`."""
        progress = self.progress
        lr = learning_rate(self.recipe.optimizer, progress.step, progress.total_steps)
        with self.clock("optimiser"):
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = lr
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
            if bool(torch.isfinite(norm)):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        loss = sum(result.loss for result in group) / max(1, sum(result.labels for result in group))
        if not bool(torch.isfinite(norm)):
            log.write("skip", progress.step, why="gradient norm is not finite", grad_norm=str(float(norm)))
            self.console.print(f"[yellow]step {progress.step}: gradient is not finite; step left out")
            return
        log.write("train", progress.step, loss=loss, lr=lr, grad_norm=float(norm), epoch=progress.epoch)
        display.step(progress.step, progress.epoch, loss, float(norm))

    def _report_non_finite(self, result: BatchResult, batch: Batch, log: RunLog) -> None:
        if not result.non_finite:
            return
        names = ", ".join(result.non_finite)
        if self.options.non_finite == "stop":
            raise TrainingError(
                f"step {self.progress.step + 1}: the loss is not finite for {names}; remove them "
                "(too short for their text?), lower the learning rate, or set training.non_finite=skip"
            )
        log.write(
            "skip", self.progress.step + 1, why="loss is not finite", utterances=list(result.non_finite)
        )
        self.console.print(f"[yellow]step {self.progress.step + 1}: loss is not finite, left out: {names}")

    def _validate(self, log: RunLog, display: TrainingProgress) -> None:
        with self.clock("validation"):
            dev = self._dev()
        self.progress.dev_wer = dev.wer
        log.write("dev", self.progress.step, dev_wer=dev.wer, dev_loss=dev.loss, epoch=self.progress.epoch)
        display.validated(self.progress.epoch, dev.wer, dev.loss)
        self._save()
        self.progress.dev_wer = None

    def _dev(self) -> DevResult:
        return validate(self.network, self.search, self.setup.dev, self.setup.tokenizer)

    def _save(self) -> Path:
        directory = self.exp / CHECKPOINTS
        self.progress.data = self.batches.state_dict()
        path = checkpoint.save_checkpoint(directory, self.network, self.optimizer, self.progress)
        checkpoint.prune(directory, self.options.keep_best)
        self.saved_at = time.monotonic()
        return path

    def _interrupted(self) -> Outcome:
        path = self._save()
        self.console.print(
            f"stopped at step {self.progress.step}; saved {path}\nresume: asr train --resume --exp {self.exp}"
        )
        return Outcome(self.exp, False, None)

    def _finish(self) -> Outcome:
        """Average the best checkpoints, keep what is better on dev, write the model directory."""
        directory = self.exp / CHECKPOINTS
        best = checkpoint.best(directory, self.options.keep_best)
        best_wer = checkpoint.read_progress(best[0]).dev_wer
        self.network.load_state_dict(checkpoint.average(best))
        averaged = self._dev()
        chosen = f"average of {len(best)} checkpoints"
        if best_wer is not None and averaged.wer > best_wer:
            load_weights(self.network, best[0] / WEIGHTS)
            averaged = replace(averaged, wer=best_wer)
            chosen = best[0].name
        card = model_card(self.setup, chosen, averaged.wer, self._throughput())
        save_model(self.exp, self.setup.model_config, self.network, self.setup.tokenizer, card)
        self._draw()
        self.console.print(f"dev WER {100 * averaged.wer:.2f} % ({chosen}){self.setup.mark}")
        if self.profile:
            self._print_profile()
        self.console.print(f"model: {self.exp}")
        return Outcome(self.exp, True, averaged.wer)

    def _throughput(self) -> float:
        """Seconds of speech trained per second, validation left out."""
        spent = sum(seconds for part, seconds in self.clock.seconds.items() if part != "validation")
        return self.heard_s / spent if spent else 0.0

    def _print_profile(self) -> None:
        self.console.print(f"throughput {self._throughput():.0f} utterance-seconds per second")
        for part, share in self.clock.shares().items():
            self.console.print(f"  {part:<12} {100 * share:5.1f} %  {self.clock.seconds[part]:8.1f} s")

    def _draw(self) -> None:
        from asr.score.picture import draw_training  # matplotlib: a second that only the end of training pays

        draw_training(self.exp / "training.png", read_log(self.exp))
