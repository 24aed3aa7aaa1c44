"""A language model's training, as the loop sees it: `asr.train.task.Task`.

    asr train egs/english/lm_neural.py:awd --data TEXT --exp EXP

learns the sentences of text files over the labels of a recogniser, whose tokenizer is copied into EXP. What
EXP holds is listed in asr.train.loop; at the end it is the directory of a language model (asr.lm_directory).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from asr.config import Config, load_config, save_config
from asr.data.texts import TextBatch, TextBatches
from asr.directory import WEIGHTS, load_weights
from asr.errors import ConfigError, TrainingError
from asr.lm_directory import LmModelConfig, save_lm
from asr.lms import NeuralLm, build_neural_lm
from asr.lms.evaluation import Perplexity
from asr.pretrained import pretrained
from asr.text.tokenizer import Tokenizer, load_tokenizer
from asr.train.checkpoint import Progress
from asr.train.distributed import World
from asr.train.environment import Environment, describe_environment
from asr.train.initial import Initial
from asr.train.lm_recipe import LmRecipe
from asr.train.metrics import Stopwatch, read_log
from asr.train.setup import RECIPE, RUN, refuse_second_run
from asr.train.step import BatchResult, train_texts
from asr.train.task import Cost

TRIAL_BATCHES = 3


class LmRunInfo(Config):
    """What a run was trained on and with; EXP/run.yaml."""

    data: tuple[str, ...]
    """Text files."""
    dev: tuple[str, ...] = ()
    recogniser: str
    """Where the tokenizer came from; not needed any more once training has begun."""
    initial: str | None = None
    """The language model's directory that the run began with, if it is a fine-tuning; not needed any more."""
    environment: Environment


@dataclass(frozen=True)
class LmDev:
    """What validation measured."""

    perplexity: Perplexity

    @property
    def loss(self) -> float:
        """Nats per label, the ends of sentences counted."""
        return self.perplexity.nats / max(self.perplexity.labels + self.perplexity.sentences, 1)

    @property
    def numbers(self) -> dict[str, float]:
        """See Measured.numbers."""
        return {"dev_perplexity": self.perplexity.per_word, "dev_loss": self.loss}

    @property
    def headline(self) -> str:
        """See Measured.headline."""
        return f"dev perplexity {self.perplexity.per_word:8.2f} per word"


class LanguageTask:
    """A language model, the text that it learns from, and that which it is measured with."""

    initial: Initial | None = None
    mark = ""

    def __init__(self, recipe: LmRecipe, info: LmRunInfo, tokenizer: Tokenizer) -> None:
        """Raises DataError if a text file cannot be read."""
        torch.manual_seed(recipe.training.seed)
        self.recipe, self.info, self.tokenizer = recipe, info, tokenizer
        self.network: NeuralLm = build_neural_lm(recipe.network, tokenizer.vocab_size)
        files, dev = ([Path(name) for name in names] for names in (info.data, info.dev))
        self.batches = TextBatches(
            files, recipe.batches, tokenizer, side="all" if dev else "train", training=True
        )
        self.dev = TextBatches(
            dev or files, recipe.batches, tokenizer, side="all" if dev else "dev", training=False
        )

    def place(self, device: torch.device) -> None:
        """See Task.place."""
        self.network.to(device)

    def check(self, total_steps: int) -> Cost:
        """See Task.check: every sentence can be encoded, there is something for dev, and some batches."""
        len(self.dev)
        plans = self.batches.plans()
        trial = [self.batches.make(plans[number]) for number in range(min(len(plans), TRIAL_BATCHES))]
        start, clock = time.perf_counter(), Stopwatch()
        results = [
            self.backward(self.network.train(), batch, clock=clock, step=0, in_step=False) for batch in trial
        ]
        seconds = max(time.perf_counter() - start, 1e-9)
        self.network.zero_grad(set_to_none=True)
        parameters = sum(p.numel() for p in self.network.parameters())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Cost(parameters, sum(result.labels for result in results) / seconds, peak, "labels")

    def backward(
        self, network: nn.Module, batch: TextBatch, *, clock: Stopwatch, step: int, in_step: bool
    ) -> BatchResult:
        """See Task.backward."""
        assert isinstance(network, NeuralLm)
        options = self.recipe.training
        return train_texts(network, batch, precision=options.precision, clock=clock, seed=options.seed)

    @torch.no_grad()
    def validate(self, world: World) -> LmDev:
        """See Task.validate."""
        self.network.eval()
        total, device = Perplexity(0.0, 0, 0, 0), self.network.bias.device
        for batch in self.dev:
            nats = self.network.losses(batch.labels.to(device), batch.lengths.to(device)).nats
            labels, sentences = int(batch.lengths.sum()), len(batch.lengths)
            total += Perplexity(float(nats.double().sum()), labels, batch.words, sentences)
        return LmDev(sum(world.gather(total), Perplexity(0.0, 0, 0, 0)))

    def throughput(self, progress: Progress) -> str:
        """See Task.throughput."""
        return f"{progress.labels / max(progress.spent_s, 1e-9):,.0f} labels per second"

    def write(self, exp: Path, weights: str, dev: LmDev, progress: Progress) -> None:
        """See Task.write."""
        # matplotlib: a second that only the end of training pays
        from asr.score.picture import draw_training
        from asr.train.page import write_lm_page

        draw_training(exp / "training.png", read_log(exp))
        facts = self._facts(weights, dev.perplexity, progress)
        config = LmModelConfig(network=self.recipe.network, vocab_size=self.tokenizer.vocab_size)
        save_lm(exp, config, self.network, self.tokenizer, self._card(facts))
        write_lm_page(exp, self.recipe.name, facts, self.info.environment, str(dev.perplexity))

    def _facts(self, weights: str, dev: Perplexity, progress: Progress) -> list[tuple[str, str]]:
        """What the model is, how it was trained, what was measured; names and values."""
        info, environment = self.info, self.info.environment
        parameters = sum(p.numel() for p in self.network.parameters())
        held_out = f"one of {self.recipe.batches.dev_every} sentences of the text, held out"
        software = f"commit {environment.commit}, torch {environment.versions['torch']}"
        return [
            ("model", f"{self.recipe.network.kind}, {parameters / 1e6:.2f} M parameters"),
            ("labels", f"{self.tokenizer.vocab_size} ({self.tokenizer.config.kind}) of {info.recogniser}"),
            ("text", ", ".join(info.data)),
            ("dev", f"{dev}; {weights}"),
            ("dev text", ", ".join(info.dev) or held_out),
            *([] if info.initial is None else [("began as", Path(info.initial).name)]),
            ("trained", f"at {self.throughput(progress)} on {environment.hardware}"),
            ("started", f"{environment.started}, {software}"),
        ]

    def _card(self, facts: Sequence[tuple[str, str]]) -> str:
        listed = "\n".join(f"- {name}: {value}" for name, value in facts)
        return f"""# {self.recipe.name}

{listed}

`recipe.yaml` and `run.yaml` hold the full configuration, `log.jsonl` every step, `report.html` the curves.

    asr transcribe FILE... --lm DIR
"""


def start_run(
    recipe: LmRecipe, data: Sequence[Path], exp: Path, world: World, initial: Initial | None = None
) -> LanguageTask:
    """A new run in `exp`, with the weights of the language model `initial` if it is a fine-tuning.

    Raises TrainingError if there is one already, ModelError without a tokenizer.
    """
    refuse_second_run(exp)
    recogniser = Path(recipe.recogniser) if recipe.recogniser else pretrained()
    if recogniser.resolve() == exp.resolve():
        whose = "recogniser's" if initial is None else "language model's"
        raise TrainingError(f"--exp {exp}: this is the {whose} directory; choose another one")
    for path in data:
        if path.is_dir():
            raise ConfigError(f"--data {path}: expected a text file, one sentence a line, found a directory")
    info = LmRunInfo(
        data=_names(data),
        dev=_names(Path(name) for name in recipe.dev),
        recogniser=str(recogniser.resolve()),
        initial=None if initial is None else initial.model,
        environment=describe_environment(world),
    )
    task = LanguageTask(recipe, info, load_tokenizer(recogniser))
    if initial is not None:
        load_weights(task.network, Path(initial.model) / WEIGHTS)
    exp.mkdir(parents=True, exist_ok=True)
    task.tokenizer.save(exp)
    save_config(info, exp / RUN)
    save_config(recipe, exp / RECIPE)
    return task


def resume_run(exp: Path, data: Sequence[Path] = ()) -> LanguageTask:
    """The run in `exp` again, its text now in `data` if given."""
    if data:
        info = load_config(exp / RUN, LmRunInfo)
        save_config(info.model_copy(update={"data": _names(data)}), exp / RUN)
    return open_run(exp)


def open_run(exp: Path) -> LanguageTask:
    """The run in `exp` as the main process has begun it."""
    info = load_config(exp / RUN, LmRunInfo)
    return LanguageTask(load_config(exp / RECIPE, LmRecipe), info, load_tokenizer(exp))


def is_run(exp: Path, recipe: LmRecipe, data: Sequence[Path], initial: Initial | None) -> bool:
    """Whether the run in `exp` is one of this recipe, text and first model."""
    info = load_config(exp / RUN, LmRunInfo)
    same = info.data == _names(data) and info.initial == (None if initial is None else initial.model)
    return same and load_config(exp / RECIPE, LmRecipe) == recipe


def _names(files: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(file.resolve()) for file in files)
