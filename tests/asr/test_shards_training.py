"""Training from shards and several corpora: the same run as from manifests, and nothing lost silently."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file

from asr.config import load_config, save_config
from asr.data.batches import BatchesConfig
from asr.data.manifests import CorpusCard, file_recording, make_cut, save_card, write_cuts
from asr.data.parts import MixingConfig
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardedPart
from asr.encoders import LstmEncoderConfig
from asr.errors import AudioError, ConfigError, ManifestError, TrainingError
from asr.evaluate import evaluate
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.loop import train
from asr.train.metrics import read_log
from asr.train.recipe import Recipe, TrainingConfig
from asr.train.setup import RunInfo
from asr.transducer import TransducerConfig

RATE = 8000


def make_corpus(directory: Path, name: str, train_count: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(train_count)
    for split, count in (("train", train_count), ("dev", 4), ("test", 4)):
        cuts = []
        for i in range(count):
            cut_id, t = f"{name}-{split}-{i}", np.arange(round(rng.uniform(0.2, 0.3) * RATE)) / RATE
            path = directory / f"{cut_id}.wav"
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * (400, 1500)[i % 2] * t), RATE)
            cuts.append(make_cut(file_recording(path, cut_id), cut_id, ("low", "high")[i % 2], speaker="s"))
        write_cuts(cuts, directory / f"{split}.jsonl.gz")
    save_card(CorpusCard(name=name, source="test", licence="none", sample_rate=RATE), directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("tones"), "tones", 24)


@pytest.fixture(scope="module")
def sharded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same corpus, all of its parts in shards of five, without the manifests."""
    out = tmp_path_factory.mktemp("sharded")
    for split in ("train", "dev", "test"):
        write_shards(corpus / f"{split}.jsonl.gz", out / f"{split}.shar", shard_size=5)
    return out


def recipe(epochs: int = 2, **settings: object) -> Recipe:
    return Recipe(
        features=FbankConfig(sample_rate=RATE, num_mel_bins=20),
        specaugment=SpecAugmentConfig(probability=0),
        tokenizer=TokenizerConfig(kind="word"),
        batches=BatchesConfig(max_utterances=4, num_buckets=2, num_workers=0, **settings),  # type: ignore[arg-type]
        network=TransducerConfig(
            encoder=LstmEncoderConfig(hidden=16, layers=1, lookahead=1),
            predictor=None,
            loss=LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1)),
        ),
        training=TrainingConfig(epochs=epochs, keep_best=1),
    )


def quiet() -> Console:
    return Console(quiet=True)


def losses(exp: Path) -> list[float]:
    return [record["loss"] for record in read_log(exp) if record["kind"] == "train"]


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    weights = load_file(other / "model.safetensors")
    assert all(torch.equal(t, weights[name]) for name, t in load_file(one / "model.safetensors").items())


def test_a_run_from_shards_is_that_from_the_manifest(corpus: Path, sharded: Path, tmp_path: Path) -> None:
    train(recipe(), corpus, tmp_path / "manifest", console=quiet())
    train(recipe(), sharded, tmp_path / "shards", console=quiet())
    assert_same_run(tmp_path / "manifest", tmp_path / "shards")
    scored = [evaluate(tmp_path / "shards", data) for data in ("test", str(corpus / "test.jsonl.gz"))]
    assert (scored[0].directory / "hyp.jsonl").read_text() == (scored[1].directory / "hyp.jsonl").read_text()
    assert (sharded / "corpus.yaml").read_text() == (corpus / "corpus.yaml").read_text()


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.train import loop

    step, taken = loop.Trainer._optimize, []

    def counted(trainer: loop.Trainer, *arguments: object) -> None:
        step(trainer, *arguments)  # type: ignore[arg-type]
        taken.append(1)
        if len(taken) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "_optimize", counted)


def damage(part: Path, *numbers: int) -> None:
    index = ShardedPart(part)._index
    for number in numbers:
        row = index[number]
        path = part / "shards" / f"recording.{int(row['shard']):06d}.tar"
        content = bytearray(path.read_bytes())
        content[int(row["offset"]) + 50] ^= 0xFF
        path.write_bytes(content)


def test_corrupt_recordings_are_counted_in_the_log_and_at_the_end(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(sharded, tmp_path / "data"))
    damage(data / "train.shar", 3, 11)
    exp = tmp_path / "exp"
    train(recipe(window_shards=2), data, exp, console=Console(width=400))
    found = [record for record in read_log(exp) if record["kind"] == "corrupt"]
    names = [line.split(":")[0] for record in found for line in record["utterances"]]
    assert sorted(names) == ["tones-train-11"] * 2 + ["tones-train-3"] * 2
    said = capsys.readouterr().out
    assert said.count("left out, because it cannot be read: tones-train-") == len(found)
    assert "4 of 48 utterances could not be read and were left out" in said
    with pytest.raises(AudioError, match="checksum") as caught:
        train(recipe(corrupt="stop"), data, tmp_path / "stop", console=quiet())
    assert "\n" not in str(caught.value)


def test_too_much_that_is_corrupt_ends_training(sharded: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(sharded, tmp_path / "data"))
    damage(data / "train.shar", *range(2, 24))
    with pytest.raises(TrainingError, match=r"1[1-4] of \d+ utterances cannot be read") as caught:
        train(recipe(), data, tmp_path / "exp", console=quiet())
    assert "\n" not in str(caught.value)
    damage(data / "train.shar", 0, 1)
    with pytest.raises(TrainingError, match="no recording of the first batches can be read"):
        train(recipe(), data, tmp_path / "none", console=quiet())


def test_corrupt_recordings_in_dev_are_never_left_out(sharded: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(sharded, tmp_path / "data"))
    damage(data / "dev.shar", 1)
    with pytest.raises(AudioError, match="tones-dev-1"):
        train(recipe(), data, tmp_path / "exp", console=quiet())


def test_mixed_corpora_in_windows_resume_exactly(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call
) -> None:
    """A manifest beside shards, given as two --data; the second corpus is heard three times as much."""
    other = make_corpus(tmp_path / "other", "beeps", 9)
    (other / "dev.jsonl.gz").unlink()  # one dev part is enough
    config = recipe(epochs=2, window_shards=3, mixing=MixingConfig(weights=(1, 1)), curriculum_epochs=1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    save_config(config, tmp_path / "recipe.yaml")
    code, *_ = call("train", tmp_path / "recipe.yaml", "--data", sharded, "--data", other, "--exp", whole)
    assert code == 0
    info = load_config(whole / "run.yaml", RunInfo)
    assert info.data == (str(sharded), str(other))
    assert info.corpus == "tones + beeps"
    for steps in (2, 5):
        shutil.rmtree(parts, ignore_errors=True)
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            config_now = config.model_copy(
                update={"training": config.training.model_copy(update={"checkpoint_minutes": 1e-9})}
            )
            with pytest.raises(KeyboardInterrupt):
                train(config_now, [sharded, other], parts, console=quiet())
        train(None, None, parts, resume=True, console=quiet())
        assert_same_run(whole, parts)
    with pytest.raises(ManifestError, match=r"found 2.*give a cut manifest"):
        evaluate(whole, "test")


def test_corpora_that_do_not_fit_together_are_one_line(sharded: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="ids stand for several cuts"):
        train(recipe(), [sharded, corpus], tmp_path / "a", console=quiet())
    mixing = MixingConfig(weights=(1, 2, 3))
    with pytest.raises(ConfigError, match="a weight for each of 2"):
        train(recipe(mixing=mixing), [sharded, corpus], tmp_path / "b", console=quiet())
    with pytest.raises(ManifestError, match=re.escape("no train.shar")):
        train(recipe(), _only_card(corpus, tmp_path), tmp_path / "c", console=quiet())


def _only_card(corpus: Path, directory: Path) -> Path:
    shutil.copy(corpus / "corpus.yaml", directory)
    return directory
