"""Make or find again everything that a run needs before its loop can start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asr.config import Config, load_config, save_config
from asr.data.batches import Batches, training_texts
from asr.data.manifests import cut_text, load_card, read_unique_cuts
from asr.errors import ManifestError, TrainingError
from asr.features.fbank import Fbank
from asr.features.specaugment import SpecAugment
from asr.model_directory import ModelConfig, build_network
from asr.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from asr.train.checkpoint import checkpoints
from asr.train.distributed import World
from asr.train.environment import Environment, describe_environment
from asr.train.recipe import Recipe
from asr.transducer import Transducer

RECIPE, RUN, CHECKPOINTS = "recipe.yaml", "run.yaml", "checkpoints"


class RunInfo(Config):
    """What a run was trained on and with; EXP/run.yaml."""

    data: str
    """Corpus directory with train, dev and test manifests."""
    corpus: str
    synthetic: bool
    environment: Environment


class Utterance(NamedTuple):
    """What the length check needs to know of an utterance."""

    id: str
    duration_s: float
    """At its shortest."""
    text: str


@dataclass(frozen=True)
class RunSetup:
    """A run that is ready to start."""

    recipe: Recipe
    info: RunInfo
    tokenizer: Tokenizer
    network: Transducer
    model_config: ModelConfig
    batches: Batches
    dev: Batches

    @property
    def mark(self) -> str:
        """What every printed result must carry if the speech was synthetic."""
        return " on SYNTHETIC speech" if self.info.synthetic else ""

    def utterances(self) -> Iterator[Utterance]:
        """Every training and dev recording at its shortest, for the pre-flight."""
        speed, concatenate = self.recipe.augment.speed, self.recipe.batches.concatenate
        fastest = max(speed.factors) * (1 + speed.spread)
        edges_s = 2 * concatenate.edge_s[0] if concatenate.active else 0.0
        for cut in self.batches.cuts:
            yield Utterance(cut.id, (cut.duration + edges_s) / fastest, cut_text(cut))
        for cut in self.dev.cuts:
            yield Utterance(cut.id, cut.duration, cut_text(cut))

    def unmasked(self) -> Batches:
        """Training batches without SpecAugment, whose masks would bias statistics; made in this process."""
        return _training_batches(self.recipe, self.batches.cuts, self.tokenizer, masked=False)


def start_run(recipe: Recipe, data: Path, exp: Path, world: World) -> RunSetup:
    """A new run in `exp`; raises TrainingError if there is one already."""
    if checkpoints(exp / CHECKPOINTS):
        raise TrainingError(
            f"{exp}: there is a run in this directory; go on with `asr train --resume --exp {exp}` "
            "or choose another directory"
        )
    card = load_card(data)
    tokenizer = train_tokenizer(recipe.tokenizer, training_texts(_cuts(data, "train"), recipe.batches))
    info = RunInfo(
        data=str(data.resolve()),
        corpus=card.name,
        synthetic=card.synthetic,
        environment=describe_environment(world),
    )
    setup = _build(recipe, info, tokenizer)
    exp.mkdir(parents=True, exist_ok=True)
    tokenizer.save(exp)
    save_config(info, exp / RUN)
    save_config(recipe, exp / RECIPE)
    return setup


def resume_run(exp: Path, data: Path | None = None) -> RunSetup:
    """The run in `exp` again, its corpus now in `data` if given; raises TrainingError if there is none."""
    if not checkpoints(exp / CHECKPOINTS):
        raise TrainingError(f"{exp}: no run to resume here (no {CHECKPOINTS}); start one without --resume")
    if data is not None:
        info = load_config(exp / RUN, RunInfo)
        save_config(info.model_copy(update={"data": str(data.resolve())}), exp / RUN)
    return open_run(exp)


def is_run(exp: Path, recipe: Recipe, data: Path) -> bool:
    """Whether the run in `exp` is one of this recipe and corpus, and can be resumed."""
    if not checkpoints(exp / CHECKPOINTS):
        return False
    same_data = load_config(exp / RUN, RunInfo).data == str(data.resolve())
    return same_data and load_config(exp / RECIPE, Recipe) == recipe


def open_run(exp: Path) -> RunSetup:
    """The run in `exp` as the main process has begun it."""
    return _build(load_config(exp / RECIPE, Recipe), load_config(exp / RUN, RunInfo), load_tokenizer(exp))


def _build(recipe: Recipe, info: RunInfo, tokenizer: Tokenizer) -> RunSetup:
    torch.manual_seed(recipe.training.seed)
    model_config = ModelConfig(
        features=recipe.features,
        network=recipe.network,
        search=recipe.search,
        vocab_size=tokenizer.vocab_size,
        synthetic=info.synthetic,
    )
    data = Path(info.data)
    training = _training_batches(recipe, _cuts(data, "train"), tokenizer, masked=True)
    # Dev is small and read again every epoch: no worker process, its samples stay in the cache.
    dev_config = recipe.batches.model_copy(update={"num_workers": 0})
    dev = Batches(_cuts(data, "dev"), dev_config, Fbank(recipe.features), tokenizer, training=False)
    return RunSetup(recipe, info, tokenizer, build_network(model_config), model_config, training, dev)


def _training_batches(recipe: Recipe, cuts: Iterable[Any], tokenizer: Tokenizer, masked: bool) -> Batches:
    config = recipe.batches if masked else recipe.batches.model_copy(update={"num_workers": 0})
    specaugment = SpecAugment(recipe.specaugment) if masked else None
    fbank = Fbank(recipe.features)
    return Batches(cuts, config, fbank, tokenizer, recipe.augment, specaugment, training=True)


def _cuts(data: Path, split: str) -> list[Any]:
    """A split of a prepared corpus; raises ManifestError if it is missing or names a cut twice."""
    path = data / f"{split}.jsonl.gz"
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such manifest; prepare the corpus first (egs/*/prepare.py, asr data import)"
        )
    return read_unique_cuts(path)
