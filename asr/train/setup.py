"""Make or find again everything that a run needs before its loop can start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from asr.config import Config, load_config, save_config
from asr.data.batches import Batches, join_texts, training_texts
from asr.data.manifests import cut_text, load_card, read_cuts
from asr.errors import ManifestError, TrainingError
from asr.features.fbank import Fbank
from asr.features.specaugment import SpecAugment
from asr.model_directory import ModelConfig, build_network
from asr.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from asr.train.environment import Environment, describe_environment
from asr.train.preflight import Utterance
from asr.train.recipe import Recipe
from asr.transducer import Transducer

RECIPE, RUN = "recipe.yaml", "run.yaml"


class RunInfo(Config):
    """What a run was trained on and with; EXP/run.yaml."""

    data: str
    """Corpus directory with train, dev and test manifests."""
    corpus: str
    synthetic: bool
    environment: Environment


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
        """The utterances of the first epoch as they will be joined and sped up, for the pre-flight."""
        cuts = self.batches.cuts
        for plan in self.batches.plans():
            for utterance in plan.utterances:
                parts = [cuts[i] for i in utterance.parts]
                name, text = "+".join(cut.id for cut in parts), join_texts(cut_text(cut) for cut in parts)
                yield Utterance(name, utterance.duration_s, text)


def start_run(recipe: Recipe, data: Path, exp: Path) -> RunSetup:
    """A new run in `exp`; raises TrainingError if there is one already."""
    if (exp / RECIPE).exists():
        raise TrainingError(
            f"{exp}: there is a run in this directory; go on with `asr train --resume --exp {exp}` "
            "or choose another directory"
        )
    card = load_card(data)
    texts = training_texts(read_cuts(_manifest(data, "train")), recipe.batches)
    tokenizer = train_tokenizer(recipe.tokenizer, texts)
    info = RunInfo(
        data=str(data.resolve()),
        corpus=card.name,
        synthetic=card.synthetic,
        environment=describe_environment(),
    )
    setup = _build(recipe, info, tokenizer)
    exp.mkdir(parents=True, exist_ok=True)
    tokenizer.save(exp)
    save_config(info, exp / RUN)
    save_config(recipe, exp / RECIPE)  # last: its presence says that the rest is there
    return setup


def resume_run(exp: Path) -> RunSetup:
    """The run in `exp` again; raises TrainingError if there is none."""
    if not (exp / RECIPE).is_file():
        raise TrainingError(f"{exp}: no run to resume here (no {RECIPE}); start one without --resume")
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
    fbank = Fbank(recipe.features)
    data = Path(info.data)
    training = Batches(
        read_cuts(_manifest(data, "train")),
        recipe.batches,
        fbank,
        tokenizer,
        recipe.augment,
        SpecAugment(recipe.specaugment),
        training=True,
    )
    # Dev is small and read again every epoch: no worker process, its samples stay in the cache.
    dev_config = recipe.batches.model_copy(update={"num_workers": 0})
    dev = Batches(read_cuts(_manifest(data, "dev")), dev_config, fbank, tokenizer, training=False)
    return RunSetup(recipe, info, tokenizer, build_network(model_config), model_config, training, dev)


def _manifest(data: Path, split: str) -> Path:
    path = data / f"{split}.jsonl.gz"
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such manifest; prepare the corpus first (egs/*/prepare.py, asr data import)"
        )
    return path
