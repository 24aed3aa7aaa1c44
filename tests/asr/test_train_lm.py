"""Language models in the training loop: they learn, resume exactly, and leave a usable directory."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from asr.config import override, save_config, validate
from asr.data.texts import TextBatchesConfig
from asr.errors import ConfigError, DataError, ModelError, TrainingError
from asr.lm_directory import load_lm
from asr.lms import AwdLstmConfig, NeuralLmConfig, TransformerLmConfig
from asr.lms.evaluation import neural_perplexity
from asr.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from asr.train import checkpoint
from asr.train.kinds import load_any_recipe
from asr.train.language import open_run
from asr.train.lm_recipe import LmRecipe
from asr.train.loop import Outcome, train
from asr.train.metrics import read_log
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig

WORDS = ["bade", "cab", "dad", "face", "fed", "gab", "head"]


@pytest.fixture(scope="module", name="text")
def _text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of few words: letters follow from each other."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "lm.txt"
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(240)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module", name="recogniser")
def _recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recogniser")
    train_tokenizer(TokenizerConfig(), ["abcdefgh ij"]).save(directory)
    return directory


AWD = AwdLstmConfig(dim=16, hidden=24, layers=2, input_dropout=0, hidden_dropout=0.1, weight_drop=0.1, ar=0.1)


def recipe(recogniser: Path, network: NeuralLmConfig = AWD, epochs: int = 2, **training: object) -> LmRecipe:
    return LmRecipe(
        recogniser=str(recogniser),
        network=network,
        batches=TextBatchesConfig(max_labels=600, num_buckets=4, dev_every=6),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5),
        training=TrainingConfig(epochs=epochs, keep_best=2, **training),
    )


def run(config: LmRecipe | None, text: Path | None, exp: Path, **options: object) -> Outcome:
    return train(config, text, exp, console=Console(quiet=True), **options)  # type: ignore[arg-type]


def unigram_entropy(text: Path) -> float:
    """Nats per letter or end."""
    counts = Counter(text.read_text())
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


@pytest.mark.parametrize(
    "network", [AWD, TransformerLmConfig(dim=16, heads=2, layers=2, history=8)], ids=["awd", "transformer"]
)
def test_it_learns_and_leaves_a_directory(
    text: Path, recogniser: Path, tmp_path: Path, network: NeuralLmConfig
) -> None:
    exp = tmp_path / "exp"
    config = override(recipe(recogniser, network, epochs=6), ["batches.max_labels=300", "optimizer.lr=0.02"])
    outcome = run(config, text, exp)
    records = [record for record in read_log(exp) if record["kind"] == "dev"]
    assert records[-1]["dev_loss"] < 0.8 * unigram_entropy(text)
    assert outcome.finished
    assert outcome.dev_wer is None
    loaded = load_lm(exp, load_tokenizer(recogniser))
    assert not loaded.network.training
    measured = neural_perplexity(loaded.network, loaded.tokenizer, open_run(exp).dev.texts())
    assert measured.per_word == pytest.approx(outcome.dev_perplexity, rel=1e-4)
    card = (exp / "README.md").read_text()
    assert f"perplexity {measured.per_word:.2f} per word" in card
    assert len(list((exp / "checkpoints").iterdir())) <= 3
    assert (exp / "training.png").stat().st_size > 0
    assert run(None, None, exp, resume=True).finished


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.train import metrics

    write = metrics.RunLog.write

    def counted(log: object, kind: str, at: int, **values: object) -> None:
        write(log, kind, at, **values)
        if kind == "train" and at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.RunLog, "write", counted)


def asgd(recogniser: Path, epochs: int) -> LmRecipe:
    optimizer = OptimizerConfig(kind="nt-asgd", lr=2.0, warmup_steps=0, final_lr=1.0, patience=1)
    return recipe(recogniser, epochs=epochs).model_copy(update={"optimizer": optimizer})


@pytest.mark.parametrize("kind", ["adamw", "nt-asgd"])
def test_resuming_is_exact(
    text: Path, recogniser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = recipe(recogniser, epochs=3)
    if kind == "nt-asgd":
        config = asgd(recogniser, epochs=3)
        # Averaging begins with the second of three validations.
        monkeypatch.setattr("asr.train.learner.is_triggered", lambda losses, patience: len(losses) == 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, text, whole)
    steps = [record["step"] for record in read_log(whole) if record["kind"] == "train"]
    assert len(steps) >= 9
    with monkeypatch.context() as patch:
        stop_at(2 * len(steps) // 3 + 2, patch)  # in the last epoch
        assert not run(config, text, parts).finished
    assert run(None, None, parts, resume=True).finished
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(tensor, load_file(parts / "model.safetensors")[name]), name
    logs = ([{**r} for r in read_log(exp) if r["kind"] in ("train", "dev")] for exp in (whole, parts))
    assert next(logs) == next(logs)
    if kind == "nt-asgd":
        progress = checkpoint.read_progress(checkpoint.latest(parts / "checkpoints"))
        assert progress.averaging_since == 2 * len(steps) // 3
        assert len(progress.dev_losses) == 2


def test_an_explicit_dev_text(text: Path, recogniser: Path, tmp_path: Path) -> None:
    dev = tmp_path / "dev.txt"
    dev.write_text("bade cab\ndad\n")
    config = recipe(recogniser, epochs=1).model_copy(update={"dev": (str(dev),)})
    exp = tmp_path / "exp"
    outcome = run(config, text, exp)
    loaded = load_lm(exp)
    measured = neural_perplexity(loaded.network, loaded.tokenizer, ["bade cab", "dad"])
    assert measured.per_word == pytest.approx(outcome.dev_perplexity, rel=1e-4)
    assert str(dev) in (exp / "README.md").read_text()


def test_a_learning_rate_that_explodes_is_one_line(text: Path, recogniser: Path, tmp_path: Path) -> None:
    config = override(asgd(recogniser, 5), ["optimizer.lr=1e38", "training.clip_norm=1e30"])
    with pytest.raises(TrainingError, match=r"no finite gradient|is not finite"):
        run(override(config, ["training.non_finite=stop"]), text, tmp_path / "exp")


def test_what_cannot_be_trained(text: Path, recogniser: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    with pytest.raises(ConfigError, match="found a directory"):
        run(recipe(recogniser), tmp_path, exp)
    with pytest.raises(DataError, match="expected a text file"):
        run(recipe(recogniser), tmp_path / "none.txt", exp)
    with pytest.raises(ModelError, match=r"is .*nothing a model directory"):
        run(recipe(tmp_path / "nothing"), text, exp)
    with pytest.raises(TrainingError, match="this is the recogniser's directory"):
        run(recipe(recogniser), text, recogniser)
    other = tmp_path / "other.txt"
    other.write_text("abc\nxyz\n" * 20)
    with pytest.raises(DataError, match=r"other.txt:2: the tokenizer has no symbol 'x'"):
        run(recipe(recogniser), other, exp)
    assert not (exp / "checkpoints").exists()
    with pytest.raises(ConfigError, match="sharding is for recognisers"):
        override(recipe(recogniser), ["training.sharding=fsdp2"])
    with pytest.raises(ConfigError, match="keeps an average"):
        override(asgd(recogniser, 1), ["training.ema=0.9"])
    with pytest.raises(ConfigError, match="keeps an average"):
        validate({"optimizer": {"kind": "nt-asgd"}, "training": {"ema": 0.9}}, Recipe, "x.yaml")


def test_recipes_of_both_kinds_are_told_apart(recogniser: Path, tmp_path: Path) -> None:
    config = recipe(recogniser)
    save_config(config, tmp_path / "lm.yaml")
    save_config(Recipe(), tmp_path / "speech.yaml")
    assert load_any_recipe(str(tmp_path / "lm.yaml")) == config
    assert load_any_recipe(str(tmp_path / "speech.yaml")) == Recipe()
    other = tmp_path / "other.py"
    other.write_text("from asr.train.optim import OptimizerConfig\ndef o(): return OptimizerConfig()\n")
    with pytest.raises(ConfigError, match="expected a Recipe or LmRecipe, found a OptimizerConfig"):
        load_any_recipe(f"{other}:o")


def test_a_directory_that_is_no_language_models(text: Path, recogniser: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    run(recipe(recogniser, epochs=1), text, exp)
    other = train_tokenizer(TokenizerConfig(), ["abcdefgh xyz"])
    with pytest.raises(
        ModelError, match=r"recogniser \(13 of kind char, 9 is 'x'\), found .* \(12 of kind char, 9 is 'i'\)"
    ):
        load_lm(exp, other)
    with pytest.raises(ModelError, match=r"found no model.safetensors and no config.yaml"):
        load_lm(tmp_path)
    wrong = AWD.model_copy(update={"hidden": 8})
    config = (exp / "config.yaml").read_text()
    (exp / "config.yaml").write_text(config.replace("hidden: 24", f"hidden: {wrong.hidden}"))
    with pytest.raises(ModelError, match="weights do not fit the configuration"):
        load_lm(exp)
    (exp / "config.yaml").write_text(config.replace("kind: lm", "vocab_size: 9"))
    with pytest.raises(ModelError, match="expected a language model, found a recogniser"):
        load_lm(exp)
