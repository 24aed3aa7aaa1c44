"""The training loop: the only one, for every model and corpus.

A run lives in one directory:

::

    EXP/recipe.yaml, run.yaml     what was trained, on what, with which software
    EXP/tokenizer.*               made from the training texts before the first step
    EXP/log.jsonl, tensorboard/   losses, learning rate, gradient norms, dev WER or perplexity
    EXP/checkpoints/step-*/       the best and the newest (asr.train.checkpoint)
    EXP/model.safetensors, ...    at the end EXP is a model directory (asr.train.finish)
    EXP/forgetting.yaml           where a fine-tuning compares before and after (asr.forgetting)
    EXP/training.png, report.html the curves; one page of all that is worth a look (asr.train.page)

Stopping (Ctrl-C, SIGTERM) saves a checkpoint and exits; resuming goes on with the same weights, moments,
random numbers and batches as if nothing had happened. Under torchrun several processes run this loop
together (asr.train.distributed); every optimiser step then is:

    each process: gradients of its batches -> exchange what happened -> sum gradients -> the same update
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console

from asr.data.plan import Dealing
from asr.errors import AsrError, TrainingError
from asr.interrupt import Interrupt
from asr.model_directory import CARD, WEIGHTS, load_weights
from asr.train import checkpoint
from asr.train.distributed import World, started
from asr.train.finish import finish
from asr.train.initial import Initial
from asr.train.kinds import is_begun, open_task, resume_task, start_task
from asr.train.learner import Learner
from asr.train.left_out import LeftOut
from asr.train.metrics import NoLog, RunLog, Stopwatch
from asr.train.progress import TrainingProgress
from asr.train.setup import CHECKPOINTS
from asr.train.step import BatchResult, Share, in_order
from asr.train.task import AnyRecipe, Cost, Task


class Outcome(NamedTuple):
    """How a run ended."""

    directory: Path
    finished: bool
    """False if it was interrupted; resume it."""
    dev_wer: float | None
    """Of the weights that were kept, if this call ended the run."""
    dev_perplexity: float | None = None
    """Per word, of a language model."""


class Comparison(Protocol):
    """What a run that began with a model measures beside its own training, on the main process; `say` prints
    a line.
    """

    def before(self, exp: Path, say: Callable[[str], None]) -> None:
        """Before the first step of the run in `exp`."""

    def after(self, exp: Path, say: Callable[[str], None]) -> None:
        """When the model is in `exp`, and whenever a finished run is resumed."""


def train(
    recipe: AnyRecipe | None,
    data: Path | Sequence[Path] | None,
    exp: Path,
    *,
    initial: Initial | None = None,
    comparison: Comparison | None = None,
    resume: bool = False,
    profile: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> Outcome:
    """Train `recipe` on the corpus directory `data`, or several, into `exp`, or go on with the run in `exp`;
    a language model's data are text files.

    A new run has the first weights of the model that `initial` names, or fresh ones. With `resume`, `data`
    says where the corpora have moved, if they have. Raises TrainingError, DataError or
    ConfigError with one line; the last checkpoint is never lost. Of several processes the main one raises
    it, and SystemExit ends the others. A run that torchrun starts again after a process has died goes on
    where its last checkpoint is.
    """
    corpora = [data] if isinstance(data, Path) else list(data or ())
    with started(device) as world:
        if world.restarts and recipe is not None and corpora:
            resume = resume or world.from_main(lambda: is_begun(exp, recipe, corpora, initial))

        def begin() -> Task:
            if resume:
                return resume_task(exp, corpora)
            if recipe is None or not corpora:
                raise TrainingError("a new run needs a recipe and a corpus directory; --resume needs neither")
            return start_task(recipe, corpora, exp, world, initial)

        task = world.main_first(begin, lambda: open_task(exp))
        console = (console or Console()) if world.main else Console(quiet=True)
        return Trainer(task, exp, world, console, profile, comparison).run(resume)


class Trainer:
    """One run; see the module docstring."""

    learner: Learner
    """Made once the network has its weights."""

    def __init__(
        self,
        task: Task,
        exp: Path,
        world: World,
        console: Console,
        profile: bool = False,
        comparison: Comparison | None = None,
    ) -> None:
        self.task, self.exp, self.world, self.console, self.profile = task, exp, world, console, profile
        self.comparison = comparison if world.main and task.initial is not None else None
        self.recipe, self.batches, self.options = task.recipe, task.batches, task.recipe.training
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        task.place(world.device)
        self.network = task.network
        self.progress = checkpoint.Progress()
        self.clock = Stopwatch()
        self.left_out = LeftOut(self.recipe, exp, world, self._say)
        self.stopping = False
        self.saved_at = time.monotonic()

    def run(self, resume: bool) -> Outcome:
        """Train to the end or until interrupted."""
        with Interrupt() as interrupt:
            if resume:
                self._resume()
            else:
                self._prepare()
            if self.world.from_main(self._is_finished):
                self._say(f"this run is finished; the model is in {self.exp}")
                self._compare()
                return Outcome(self.exp, True, None)
            log = RunLog(self.exp, self.progress.step) if self.world.main else NoLog()
            try:
                with TrainingProgress(self.console, self.progress.total_steps) as display:
                    while not self._asked_to_stop(interrupt) and self.progress.epoch < self.options.epochs:
                        self._epoch(log, display, interrupt)
            finally:
                log.close()
            if self.stopping:
                return self._interrupted()
        self.left_out.say_total(self.progress)
        dev = finish(self.task, self.exp, self.progress, self._say, self.world).numbers
        if self.profile:
            self._say_profile()
        self._compare()
        self._say(f"model: {self.exp}")
        return Outcome(self.exp, True, dev.get("dev_wer"), dev.get("dev_perplexity"))

    def _resume(self) -> None:
        path = self.world.from_main(lambda: checkpoint.latest(self.exp / CHECKPOINTS))

        def load_network() -> None:
            load_weights(self.network, path / WEIGHTS)

        def load_rest() -> checkpoint.Progress:
            self.learner.load(path)
            progress = checkpoint.read_progress(path)
            self.batches.load_state_dict(progress.data)
            return progress

        self.world.main_first(load_network, load_network)
        self.learner = Learner(self.network, self.recipe, self.world)
        self.progress = self.world.main_first(load_rest, load_rest)
        self.progress.forget()
        self.progress.batches_per_step = self.progress.batches_per_step or self.options.accumulate
        self._deal()
        self._say(f"resuming at step {self.progress.step} from {path}")

    def _prepare(self) -> None:
        """Everything before the first step; ends with a checkpoint, the first that can be resumed."""
        processes, per_step = self.world.size, self.options.accumulate * self.world.size
        steps = -(-len(self.batches) // per_step)
        self.progress.batches_per_step = per_step
        self.progress.total_steps = steps * self.options.epochs
        cost = self.world.from_main(self._check)
        self.world.copy_from_main(self.network.state_dict().values())
        self.learner = Learner(self.network, self.recipe, self.world)
        self._deal()
        self._say(
            f"{cost.parameters / 1e6:.2f} M parameters · {self.options.epochs} epochs of {steps} steps · "
            f"about {cost.per_second:,.0f} {cost.unit}/s · memory {cost.peak_bytes / 2**20:,.0f} MiB"
            + (f", each of {processes} processes" if processes > 1 else "")
        )
        self._save()

    def _check(self) -> Cost:
        """What would keep the run from its end, and what it costs."""
        cost = self.task.check(self.progress.total_steps)
        if self.comparison is not None:
            self.comparison.before(self.exp, self._say)
        return cost

    def _compare(self) -> None:
        """Nothing waits for this any more: the other processes end meanwhile."""
        if self.comparison is not None:
            self.comparison.after(self.exp, self._say)

    def _deal(self) -> None:
        """Share the batches out; a run keeps its batches per step, whatever the number of processes."""
        processes, per_step = self.world.size, self.progress.batches_per_step
        if processes > per_step:
            self.world.fail(
                TrainingError(
                    f"expected at most {per_step} processes, as this run has {per_step} batches in each "
                    f"optimiser step, found {processes}; go on with --nproc-per-node {per_step} or fewer"
                )
            )
        self.batches.deal(Dealing(self.world.rank, processes, per_step, in_step=self.learner.sharded))
        self.task.dev.deal(Dealing(self.world.rank, processes, processes))

    def _is_finished(self) -> bool:
        return self.progress.epoch == self.options.epochs and (self.exp / CARD).exists()

    def _asked_to_stop(self, interrupt: Interrupt) -> bool:
        """Whether any process was, between two epochs."""
        self.stopping = self.stopping or self.world.any(interrupt.requested)
        return self.stopping

    def _epoch(self, log: RunLog | NoLog, display: TrainingProgress, interrupt: Interrupt) -> None:
        """The rest of the current epoch, then validation and a checkpoint."""
        self.learner.trained.train()
        steps, begun = self.batches.steps(), time.perf_counter()
        while (share := self._go_through(steps, interrupt)) is not None:
            shares = self._exchange(share)
            self._optimize(in_order(shares), log, display)
            now = time.perf_counter()
            self.progress.spent_s, begun = self.progress.spent_s + now - begun, now
            self.stopping = any(each.stop for each in shares)
            if self.stopping:
                return
            if any(each.save for each in shares):
                self._save()
        self.progress.epoch += 1
        last = self.progress.epoch == self.options.epochs
        if last or self.progress.epoch % self.options.validate_every == 0:
            self._validate(log, display)

    def _go_through(self, steps: Iterator[list[Any]], interrupt: Interrupt) -> Share | None:
        """The gradients of this process's batches of the next step; None at the end of the epoch."""
        try:
            with self.clock("data"):
                batches = next(steps, None)
            if batches is None:
                return None
            with self.world.in_touch():
                results = [self._backward(batch) for batch in batches]
        except AsrError as error:
            if self.learner.sharded:
                raise  # the others wait in the middle of a layer, and will find it lost
            return Share(error=error)
        own = tuple(r for r, batch in zip(results, batches, strict=True) if not batch.borrowed)
        minutes = (time.monotonic() - self.saved_at) / 60
        due = self.world.main and minutes > self.options.checkpoint_minutes
        return Share(own, stop=interrupt.requested, save=due)

    def _backward(self, batch: Any) -> BatchResult:
        return self.task.backward(
            self.learner.trained,
            batch,
            clock=self.clock,
            step=self.progress.step,
            in_step=self.learner.sharded,
        )

    def _exchange(self, share: Share) -> list[Share]:
        """What all processes did, their gradients summed; ends them all if one of them met an error."""
        if self.world.size == 1:
            shares = [share]
        else:
            with self.clock("communication"):
                shares = self.world.gather(share)
                self.learner.sum_gradients()
        for each in shares:
            if each.error is not None:
                self.world.fail(each.error)
        return shares

    def _optimize(
        self, results: Sequence[BatchResult], log: RunLog | NoLog, display: TrainingProgress
    ) -> None:
        """One optimiser step from the gradients of `results`; none if they are not finite."""
        progress, labels = self.progress, sum(result.labels for result in results)
        progress.labels += labels
        for result in results:
            self.left_out.utterances(result, progress, log)
            progress.heard_s += result.duration_s
        with self.clock("optimiser"):
            lr, norm, usable = self.learner.update(labels, progress)
        progress.step += 1
        if not usable:
            if any(result.utterances > len(result.corrupt) for result in results):
                self.left_out.step(progress.step, norm, log)
            return
        self.left_out.updated()
        loss = sum(result.loss for result in results) / labels
        log.write("train", progress.step, loss=loss, lr=lr, grad_norm=norm, epoch=progress.epoch)
        display.step(progress.step, progress.epoch, loss, norm)

    def _validate(self, log: RunLog | NoLog, display: TrainingProgress) -> None:
        with self.clock("validation"):
            self.learner.gather()
            dev = self.task.validate(self.world)
        self.progress.note(dev.numbers)
        log.write("dev", self.progress.step, **dev.numbers, epoch=self.progress.epoch)
        display.validated(self.progress.epoch, dev.headline, dev.loss)
        if self.learner.validated(dev.loss, self.progress):
            self._say(f"step {self.progress.step}: averaging of the weights begins")
        self._save()
        self.progress.forget()

    def _save(self) -> Path:
        self.progress.data = self.batches.state_dict()
        path = self.learner.save(self.exp / CHECKPOINTS, self.progress)
        self.saved_at = time.monotonic()
        return path

    def _interrupted(self) -> Outcome:
        path = self._save()
        self.left_out.say_total(self.progress)
        if self.profile:
            self._say_profile()
        self._say(f"stopped at step {self.progress.step}; saved {path}")
        command = "asr" if self.world.size == 1 else f"torchrun --nproc-per-node {self.world.size} -m asr"
        self._say(f"resume: {command} train --resume --exp {shlex.quote(str(self.exp))}")
        return Outcome(self.exp, False, None)

    def _say_profile(self) -> None:
        self._say(f"throughput {self.task.throughput(self.progress)}")
        for part, share in self.clock.shares().items():
            self._say(f"  {part:<12} {100 * share:5.1f} %  {self.clock.seconds[part]:8.1f} s")

    def _say(self, line: str) -> None:
        """Print one line as it is: names may hold brackets, commands must not be broken."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
