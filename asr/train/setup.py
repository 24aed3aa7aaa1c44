"""Make or find again everything that a run needs before its loop can start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import BeforeValidator

from asr.config import Config, load_config, save_config
from asr.data.batches import Batches, training_texts
from asr.data.manifests import CorpusCard, check_unique, load_card
from asr.data.parts import MixingConfig, Part, Pool, find_part, open_part
from asr.errors import ManifestError, TrainingError
from asr.features.fbank import Fbank
from asr.features.specaugment import SpecAugment
from asr.model_directory import ModelConfig, build_network, load_model
from asr.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from asr.train.checkpoint import checkpoints
from asr.train.distributed import World
from asr.train.environment import Environment, describe_environment
from asr.train.initial import Initial, copy_weights
from asr.train.recipe import Recipe
from asr.transducer import Transducer

RECIPE, RUN, CHECKPOINTS = "recipe.yaml", "run.yaml", "checkpoints"


def _as_list(found: object) -> object:
    """Runs wrote down one corpus as a string before there could be several."""
    return [found] if isinstance(found, str) else found


class RunInfo(Config):
    """What a run was trained on and with; EXP/run.yaml."""

    data: Annotated[tuple[str, ...], BeforeValidator(_as_list)]
    """Corpus directories with train, dev and test, as manifests or in shards."""
    corpus: str
    synthetic: bool
    environment: Environment
    initial: Initial | None = None
    """The model that it began with, if it did not begin with fresh weights."""


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
        for part in self.batches.pool.parts:
            yield from _shortened(part, edges_s, fastest)
        for part in self.dev.pool.parts:
            yield from _shortened(part)

    def unmasked(self) -> Batches:
        """Training batches without SpecAugment, whose masks would bias statistics; made in this process."""
        return _training_batches(self.recipe, self.batches.pool, self.tokenizer, masked=False)


def _shortened(part: Part, edges_s: float = 0.0, speed: float = 1.0) -> Iterator[Utterance]:
    for number, duration_s in enumerate(part.durations_s):
        words = part.words(number)
        yield Utterance(words.id, (float(duration_s) + edges_s) / speed, words.text)


def start_run(
    recipe: Recipe, data: Sequence[Path], exp: Path, world: World, initial: Initial | None = None
) -> RunSetup:
    """A new run in `exp`; raises TrainingError if there is one already."""
    if initial is not None and exp.resolve() == Path(initial.model):
        raise TrainingError(f"--exp {exp}: this is the model to begin with; choose another directory")
    refuse_second_run(exp)
    setup = prepare_run(recipe, data, world, initial)
    exp.mkdir(parents=True, exist_ok=True)
    setup.tokenizer.save(exp)
    save_config(setup.info, exp / RUN)
    save_config(recipe, exp / RECIPE)
    return setup


def refuse_second_run(exp: Path) -> None:
    """Raise TrainingError if there is a run in `exp`."""
    if checkpoints(exp / CHECKPOINTS):
        raise TrainingError(
            f"{exp}: there is a run in this directory; go on with `asr train --resume --exp {exp}` "
            "or choose another directory"
        )


def prepare_run(
    recipe: Recipe, data: Sequence[Path], world: World, initial: Initial | None = None
) -> RunSetup:
    """A run of which nothing is written down, with the weights of `initial` or fresh ones."""
    cards = [load_card(directory) for directory in data]
    model = None if initial is None else load_model(initial.model)
    texts = training_texts(_training_pool(data, recipe.batches.mixing), recipe.batches)
    if initial is None or model is None:
        tokenizer = train_tokenizer(recipe.tokenizer, texts)
    else:
        tokenizer = initial.tokenizer(model.tokenizer, recipe.tokenizer, texts)
    info = RunInfo(
        data=_names(data),
        corpus=_corpora(cards),
        # Beside recordings of people synthetic speech is a help, of which the names tell.
        synthetic=all(card.synthetic for card in cards) and (model is None or model.config.synthetic),
        environment=describe_environment(world),
        initial=initial,
    )
    setup = _build(recipe, info, tokenizer)
    if model is not None:
        copy_weights(model, setup.network, tokenizer)
    return setup


def resume_run(exp: Path, data: Sequence[Path] = ()) -> RunSetup:
    """The run in `exp` again, its corpus now in `data` if given; raises TrainingError if there is none."""
    if not checkpoints(exp / CHECKPOINTS):
        raise TrainingError(f"{exp}: no run to resume here (no {CHECKPOINTS}); start one without --resume")
    if data:
        info = load_config(exp / RUN, RunInfo)
        save_config(info.model_copy(update={"data": _names(data)}), exp / RUN)
    return open_run(exp)


def is_run(exp: Path, recipe: Recipe, data: Sequence[Path], initial: Initial | None = None) -> bool:
    """Whether the run in `exp` is one of this recipe, corpus and first model, and can be resumed."""
    if not checkpoints(exp / CHECKPOINTS):
        return False
    info = load_config(exp / RUN, RunInfo)
    same = info.data == _names(data) and info.initial == initial
    return same and load_config(exp / RECIPE, Recipe) == recipe


def open_run(exp: Path) -> RunSetup:
    """The run in `exp` as the main process has begun it."""
    return _build(load_config(exp / RECIPE, Recipe), load_config(exp / RUN, RunInfo), load_tokenizer(exp))


def _build(recipe: Recipe, info: RunInfo, tokenizer: Tokenizer) -> RunSetup:
    torch.manual_seed(recipe.training.seed)
    model_config = describe_model(recipe, info, tokenizer)
    data = [Path(directory) for directory in info.data]
    pool = _training_pool(data, recipe.batches.mixing)
    training = _training_batches(recipe, pool, tokenizer, masked=True)
    # Dev is small and read again every epoch: no worker process, its samples stay in the cache.
    dev_config = recipe.batches.model_copy(update={"num_workers": 0})
    dev = Batches(_dev_pool(data), dev_config, Fbank(recipe.features), tokenizer, training=False)
    return RunSetup(recipe, info, tokenizer, build_network(model_config), model_config, training, dev)


def describe_model(recipe: Recipe, info: RunInfo, tokenizer: Tokenizer) -> ModelConfig:
    """The model that a run trains."""
    return ModelConfig(
        features=recipe.features,
        network=recipe.network,
        search=recipe.search,
        vocab_size=tokenizer.vocab_size,
        synthetic=info.synthetic,
    )


def _training_batches(recipe: Recipe, pool: Pool, tokenizer: Tokenizer, masked: bool) -> Batches:
    config = recipe.batches if masked else recipe.batches.model_copy(update={"num_workers": 0})
    specaugment = SpecAugment(recipe.specaugment) if masked else None
    fbank = Fbank(recipe.features)
    views = recipe.network.loss.ctc.views
    return Batches(pool, config, fbank, tokenizer, recipe.augment, specaugment, views=views, training=True)


def _training_pool(data: Sequence[Path], mixing: MixingConfig) -> Pool:
    return Pool([_part(directory, "train") for directory in data], mixing)


def _dev_pool(data: Sequence[Path]) -> Pool:
    """The dev parts of those corpora that have one, at least of one; their results go by id."""
    having = [directory for directory in data if find_part(directory, "dev") is not None] or data[:1]
    parts = [_part(directory, "dev") for directory in having]
    ids = (part.words(number).id for part in parts for number in range(len(part)))
    check_unique(ids, "the dev parts of these corpora")
    return Pool(parts)


def _part(directory: Path, name: str) -> Part:
    """A part of a prepared corpus; raises ManifestError if it is missing or names a cut twice."""
    path = find_part(directory, name)
    if path is None:
        raise ManifestError(
            f"{directory / name}.jsonl.gz: no such manifest, and no {name}.shar; prepare the corpus first "
            "(egs/*/prepare.py, asr data import)"
        )
    return open_part(path)


def _corpora(cards: Sequence[CorpusCard]) -> str:
    """Their names, with those that are synthetic among others marked."""
    mixed = not all(card.synthetic for card in cards)
    return " + ".join(card.name + (" (synthetic)" if mixed and card.synthetic else "") for card in cards)


def _names(data: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(directory.resolve()) for directory in data)
