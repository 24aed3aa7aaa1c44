"""The average of the weights: it is what is kept, training does not notice it, and resuming is exact."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from asr.data.batches import BatchesConfig
from asr.encoders import LstmEncoderConfig
from asr.errors import ModelError
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train import checkpoint
from asr.train.ema import WeightAverage
from asr.train.loop import Outcome, train
from asr.train.metrics import RunLog, read_log
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.transducer import TransducerConfig

RATE, DECAY = 8000, 0.3
KEPT = "model.safetensors"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_tones) -> Path:
    """Two words, each a tone; 12 recordings to learn from, 4 in dev."""
    counts = {"train": 6, "dev": 2}
    return write_tones(tmp_path_factory.mktemp("tones"), {"low": 400, "high": 1500}, counts)


def recipe(**training: object) -> Recipe:
    """Two epochs of three steps; a checkpoint after each."""
    options = {"epochs": 2, "keep_best": 2, "checkpoint_minutes": 1e-9, "ema": DECAY, **training}
    loss = LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1))
    encoder = LstmEncoderConfig(hidden=16, layers=1, lookahead=1, dropout=0.1)
    return Recipe(
        features=FbankConfig(sample_rate=RATE, num_mel_bins=20),
        specaugment=SpecAugmentConfig(probability=0),
        tokenizer=TokenizerConfig(kind="word"),
        batches=BatchesConfig(max_utterances=4, num_buckets=1, num_workers=0),
        network=TransducerConfig(encoder=encoder, predictor=None, loss=loss),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0),
        training=TrainingConfig(**options),  # type: ignore[arg-type]
    )


def go(config: Recipe | None, corpus: Path | None, exp: Path, resume: bool = False) -> Outcome:
    return train(config, corpus, exp, resume=resume, console=Console(quiet=True))


def records(exp: Path, kind: str) -> list[dict[str, object]]:
    return [record for record in read_log(exp) if record["kind"] == kind]


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM when `step` is written down."""
    write = RunLog.write

    def stopping(log: RunLog, kind: str, at: int, **values: object) -> None:
        write(log, kind, at, **values)
        if (kind, at) == ("train", step):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "write", stopping)


def test_the_decay_warms_up_and_then_stays() -> None:
    trained, average = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = average.weight.detach().double()
    ema = WeightAverage(0.25, trained, average)
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.25, 0.25)):
        with torch.no_grad():
            trained.weight.normal_()
        ema.update(step)
        expected = decay * expected + (1 - decay) * trained.weight.detach().double()
        torch.testing.assert_close(average.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_the_average_is_kept_and_training_does_not_notice(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "prune", lambda *_: None)
    averaged, plain = tmp_path / "averaged", tmp_path / "plain"
    go(recipe(), corpus, averaged)
    go(recipe(ema=0.0), corpus, plain)
    assert records(averaged, "train") == records(plain, "train")
    assert records(averaged, "dev")[0]["dev_loss"] != records(plain, "dev")[0]["dev_loss"]
    steps = [checkpoint.checkpoints(exp / "checkpoints") for exp in (averaged, plain)]
    assert [path.name for path in steps[0]] == [f"step-{step:06d}" for step in range(7)]
    expected: dict[str, Tensor] = {}
    for step, (path, other) in enumerate(zip(*steps, strict=True)):
        trained = load_file(path / "trained.safetensors")
        assert_equal(trained, load_file(other / KEPT))
        assert not (other / "trained.safetensors").exists()
        decay = min(DECAY, step / (9 + step))  # the first update is that of step 0
        for name, tensor in trained.items():
            expected[name] = decay * expected.get(name, tensor) + (1 - decay) * tensor
        torch.testing.assert_close(load_file(path / KEPT), expected, rtol=1e-5, atol=1e-6)
    best = checkpoint.best(averaged / "checkpoints", 2)
    candidates = [checkpoint.average(best), load_file(best[0] / KEPT)]
    final = load_file(averaged / KEPT)
    assert any(all(torch.equal(final[name], of[name]) for name in final) for of in candidates)


def test_resuming_is_exact(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts, without = tmp_path / "whole", tmp_path / "parts", tmp_path / "without"
    go(recipe(), corpus, whole)
    with monkeypatch.context() as patch:
        stop_at(4, patch)  # in the middle of the second epoch
        assert not go(recipe(), corpus, parts).finished
    shutil.copytree(parts, without)
    assert go(None, None, parts, resume=True).finished
    for kind in ("train", "dev"):
        assert records(parts, kind) == records(whole, kind)
    assert_equal(load_file(parts / KEPT), load_file(whole / KEPT))
    # Whoever switches it off goes on with the weights that were trained, and not with their average.
    text = (without / "recipe.yaml").read_text()
    (without / "recipe.yaml").write_text(text.replace(f"ema: {DECAY}", "ema: 0.0"))
    assert go(None, None, without, resume=True).finished
    assert records(without, "train") == records(whole, "train")
    assert not (checkpoint.latest(without / "checkpoints") / "trained.safetensors").exists()


def test_a_run_without_it_may_be_resumed_with_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = tmp_path / "exp"
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        go(recipe(ema=0.0), corpus, exp)
    text = (exp / "recipe.yaml").read_text()
    (exp / "recipe.yaml").write_text(text.replace("ema: 0.0", f"ema: {DECAY}"))
    assert go(None, None, exp, resume=True).finished
    file = checkpoint.latest(exp / "checkpoints") / "trained.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"trained\.safetensors: not readable .* delete .*step-000006"):
        go(None, None, exp, resume=True)
