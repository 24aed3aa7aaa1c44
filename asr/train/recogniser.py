"""A recogniser's training, as the loop sees it: `asr.train.task.Task`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from asr.data.batch import Batch
from asr.data.batches import Batches
from asr.model_directory import save_model
from asr.search import build_search
from asr.train.card import facts, model_card
from asr.train.checkpoint import Progress
from asr.train.distributed import World
from asr.train.initial import Initial
from asr.train.metrics import Stopwatch, read_log
from asr.train.preflight import preflight
from asr.train.recipe import Recipe
from asr.train.setup import RunSetup
from asr.train.step import BatchResult, train_batch
from asr.train.task import Cost
from asr.train.validate import DevResult, validate
from asr.transducer import Transducer


class RecogniserTask:
    """Around a RunSetup."""

    def __init__(self, setup: RunSetup) -> None:
        self.setup = setup
        self.recipe: Recipe = setup.recipe
        self.network: Transducer = setup.network
        self.batches: Batches = setup.batches
        self.dev: Batches = setup.dev
        self.initial: Initial | None = setup.info.initial
        self.mark = setup.mark

    def place(self, device: torch.device) -> None:
        """See Task.place."""
        self.network.to(device)
        self.search = build_search(self.recipe.search, self.network)

    def check(self, total_steps: int) -> Cost:
        """See Task.check."""
        self.network.check_steps(total_steps)
        return preflight(self.setup)

    def backward(
        self, network: nn.Module, batch: Batch, *, clock: Stopwatch, step: int, in_step: bool
    ) -> BatchResult:
        """See Task.backward."""
        assert isinstance(network, Transducer)
        options = self.recipe.training
        return train_batch(
            network,
            batch,
            precision=options.precision,
            clock=clock,
            step=step,
            seed=options.seed,
            in_step=in_step,
            tokenizer=self.setup.tokenizer,
        )

    def validate(self, world: World) -> DevResult:
        """See Task.validate."""
        return validate(self.network, self.search, self.dev, self.setup.tokenizer, world)

    def throughput(self, progress: Progress) -> str:
        """See Task.throughput."""
        return f"{progress.heard_s / max(progress.spent_s, 1e-9):.0f} utterance-seconds per second"

    def write(self, exp: Path, weights: str, dev: DevResult, progress: Progress) -> None:
        """See Task.write."""
        # matplotlib: a second that only the end of training pays
        from asr.score.picture import draw_training
        from asr.train.page import write_page

        setup = self.setup
        known = facts(setup, weights, dev.wer, self.throughput(progress))
        draw_training(exp / "training.png", read_log(exp))
        save_model(exp, setup.model_config, self.network, setup.tokenizer, model_card(setup, known))
        write_page(exp, setup, known, dev.report)
