"""The training loop: it learns, resumes exactly, survives interrupts and names what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import asr
from asr.config import save_config
from asr.data.augment import AugmentConfig, SpeedConfig
from asr.data.batches import BatchesConfig, ConcatenateConfig
from asr.data.manifests import CorpusCard, file_recording, make_cut, read_cuts, save_card, write_cuts
from asr.encoders import ChunkedEncoder, ConformerEncoderConfig, LstmEncoderConfig
from asr.errors import ConfigError, ManifestError, ModelError, TokenError, TrainingError
from asr.evaluate import Options, evaluate
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.layers.context import ContextConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train import checkpoint, left_out
from asr.train.distributed import World
from asr.train.loop import train
from asr.train.metrics import NoLog, read_log
from asr.train.optim import OptimizerConfig, build_optimizer, learning_rate
from asr.train.recipe import Recipe, TrainingConfig
from asr.train.setup import prepare_run
from asr.train.task import Cost
from asr.transducer import TransducerConfig

RATE = 8000
TONES = {"low": 400.0, "mid": 1100.0, "high": 2600.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_tones) -> Path:
    """Three words, each a tone of its own; 48 recordings to learn from, 9 each for dev and test."""
    counts = {"train": 16, "dev": 3, "test": 3}
    return write_tones(tmp_path_factory.mktemp("tones"), TONES, counts, speakers=2, synthetic=True)


def recipe(epochs: int = 2, **training: object) -> Recipe:
    return Recipe(
        features=FbankConfig(sample_rate=RATE, num_mel_bins=20),
        specaugment=SpecAugmentConfig(probability=0),  # a mask would hide a tone entirely
        tokenizer=TokenizerConfig(kind="word"),
        augment=AugmentConfig(speed=SpeedConfig(factors=(0.9, 1.0, 1.1))),
        batches=BatchesConfig(max_duration_s=2, num_workers=0, concatenate=ConcatenateConfig(max_parts=3)),
        network=TransducerConfig(
            encoder=LstmEncoderConfig(hidden=32, layers=1, lookahead=1, dropout=0.1),
            predictor=StatelessPredictorConfig(dim=16, context=1),
            joiner=JoinerConfig(dim=32),
            loss=LossConfig(ctc=CtcLossConfig(weight=0.3)),
        ),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=20),
        training=TrainingConfig(epochs=epochs, keep_best=2, **training),
    )


def test_it_learns_and_leaves_a_usable_model(corpus: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    named = recipe(epochs=16, seed=4).model_copy(update={"name": "<b>words</b>"})
    outcome = train(named, corpus, exp, profile=True)  # of nine words one hangs on luck
    assert outcome.finished
    assert outcome.dev_wer is not None
    assert outcome.dev_wer <= 0.12
    for name in ("model.safetensors", "config.yaml", "README.md", "recipe.yaml", "run.yaml", "training.png"):
        assert (exp / name).stat().st_size > 0, name
    assert "synthetic" in (exp / "README.md").read_text()
    page = (exp / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4  # the curves and three recordings
    assert "&lt;b&gt;words" in page
    assert "<b>words" not in page
    for text in ("SYNTHETIC", "max_duration_s", f"dev WER</th><td>{100 * outcome.dev_wer:.2f} %", "REF:"):
        assert text in page
    records = read_log(exp)
    assert records[0]["loss"] > 3 * [r for r in records if r["kind"] == "train"][-1]["loss"]
    assert len(list((exp / "checkpoints").iterdir())) <= 3
    # The model on disk, offline and live, gives the WER that decoding reports.
    offline = evaluate(exp, "test")
    live = evaluate(exp, "test", options=Options(live_chunk_s=0.05))
    assert offline.report.wer == live.report.wer <= 0.12
    assert "SYNTHETIC" in offline.lines[0]
    hypotheses = [json.loads(line) for line in (offline.directory / "hyp.jsonl").read_text().splitlines()]
    assert {h["id"] for h in hypotheses} == {cut.id for cut in read_cuts(corpus / "test.jsonl.gz")}
    assert live.stats is not None


class StopAt:
    """Sends the process SIGTERM when the log shows step `step`."""

    def __init__(self, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from asr.train import metrics

        write = metrics.RunLog.write

        def counted(log: object, kind: str, at: int, **values: object) -> None:
            write(log, kind, at, **values)
            if kind == "train" and at == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(metrics.RunLog, "write", counted)


@pytest.mark.parametrize(("accumulate", "num_workers"), [(1, 0), (2, 0), (1, 1)])
def test_resuming_is_exact(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accumulate: int,
    num_workers: int,
) -> None:
    config = recipe(epochs=3, accumulate=accumulate)
    batches = config.batches.model_copy(update={"num_workers": num_workers})
    config = config.model_copy(update={"batches": batches})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, corpus, whole)
    steps = [r for r in read_log(whole) if r["kind"] == "train"]
    per_epoch = len(steps) // 3
    assert per_epoch >= 2
    with monkeypatch.context() as patch:
        StopAt(per_epoch + 1, patch)  # in the middle of the second epoch
        outcome = train(config, corpus, parts)
    assert not outcome.finished
    assert f"resume: asr train --resume --exp {parts}" in capsys.readouterr().out.splitlines()
    assert train(None, None, parts, resume=True).finished
    assert [r for r in read_log(parts) if r["kind"] == "train"] == steps
    for file in ("model.safetensors",):
        a, b = load_file(whole / file), load_file(parts / file)
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_with_zero_and_the_resume_command(
    corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = tmp_path / "recipe.yaml"
    save_config(recipe(epochs=500), config)
    exp = (
        tmp_path / "exp [1] of two"
    )  # rich would take the brackets for a style, a shell the spaces for three
    command = [
        str(Path(sys.executable).parent / "asr"),
        "train",
        str(config),
        "--data",
        str(corpus),
        "--exp",
        str(exp),
        "--profile",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(r["kind"] == "train" for r in read_log(exp)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"resume: asr train --resume --exp '{exp}'" in out.splitlines()
    assert "utterance-seconds per second" in out
    assert checkpoint.latest(exp / "checkpoints").is_dir()


def test_a_second_run_in_the_same_directory_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-000000").mkdir(parents=True)
    with pytest.raises(TrainingError, match="there is a run in this directory"):
        train(recipe(), corpus, tmp_path)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run to resume"):
        train(None, None, tmp_path, resume=True)


def test_no_manifest_is_named(corpus: Path, tmp_path: Path) -> None:
    save_card(CorpusCard(name="x", source="x", licence="x", sample_rate=RATE), tmp_path)
    with pytest.raises(ManifestError, match=r"train\.jsonl\.gz: no such manifest"):
        train(recipe(), tmp_path, tmp_path / "exp")


def with_cuts(corpus: Path, directory: Path, text: str, seconds: float) -> Path:
    """A copy of the corpus whose training part has one more cut, `odd`."""
    directory.mkdir()
    for name in ("dev.jsonl.gz", "corpus.yaml"):
        (directory / name).write_bytes((corpus / name).read_bytes())
    path = directory / "odd.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)), RATE)
    odd = make_cut(file_recording(path, "odd"), "odd", text, speaker="s0")
    write_cuts([*read_cuts(corpus / "train.jsonl.gz"), odd], directory / "train.jsonl.gz")
    return directory


def ctc_recipe(**training: object) -> Recipe:
    config = recipe(epochs=1, **training)
    loss = LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1))
    network = TransducerConfig(encoder=config.network.encoder, predictor=None, loss=loss)
    return config.model_copy(update={"network": network})


def test_too_short_for_its_text_is_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    data = with_cuts(corpus, tmp_path / "data", "low low mid mid high high", 0.1)
    with pytest.raises(TrainingError, match=r"1 utterances have fewer encoder frames .*: odd \(3 of 9\)"):
        train(ctc_recipe(), data, tmp_path / "exp")


def test_an_interrupt_during_validation_keeps_its_result(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.train import recogniser

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    validate = recogniser.validate
    exp = tmp_path / "exp"
    with monkeypatch.context() as patch:
        patch.setattr(recogniser, "validate", interrupted)
        assert not train(recipe(epochs=1), corpus, exp).finished
    assert checkpoint.read_progress(checkpoint.latest(exp / "checkpoints")).dev_wer is not None
    assert train(None, None, exp, resume=True).finished


def test_a_run_refused_before_its_first_step_can_be_started_again(corpus: Path, tmp_path: Path) -> None:
    data = with_cuts(corpus, tmp_path / "data", "low low mid mid high high", 0.1)
    with pytest.raises(TrainingError, match="fewer encoder frames"):
        train(ctc_recipe(), data, tmp_path / "exp")
    assert train(ctc_recipe(), corpus, tmp_path / "exp").finished


def test_a_finished_run_stays_as_it_is(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = tmp_path / "exp"
    train(recipe(epochs=1), corpus, exp, profile=True)
    out = capsys.readouterr().out
    assert "utterance-seconds per second" in out
    assert all(part in out for part in ("data", "encoder", "loss", "optimiser"))
    assert list((exp / "tensorboard").iterdir())
    card = (exp / "README.md").read_text()
    assert train(None, None, exp, resume=True).finished
    assert "this run is finished" in capsys.readouterr().out
    assert (exp / "README.md").read_text() == card


def test_a_corpus_may_move(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp, old, new = tmp_path / "exp", tmp_path / "old", tmp_path / "new"
    old.symlink_to(corpus)
    with monkeypatch.context() as patch:
        StopAt(2, patch)
        train(recipe(epochs=1), old, exp)
    (exp / "run.yaml").write_text((exp / "run.yaml").read_text().replace(str(corpus), "/gone"))
    new.symlink_to(corpus)
    with pytest.raises(ManifestError, match="/gone"):
        train(None, None, exp, resume=True)
    assert train(None, new, exp, resume=True).finished


def test_steps_without_a_gradient_count_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "MAX_SKIPPED", 3)
    said: list[str] = []
    lost = left_out.LeftOut(recipe(epochs=1), tmp_path, World(torch.device("cpu")), said.append)
    for step in (1, 2, 4, 5):
        if step == 4:
            lost.updated()
        lost.step(step, float("nan"), NoLog())
    assert len(said) == 4
    with pytest.raises(TrainingError, match=r"step 6: no finite gradient \(3 steps in a row\)"):
        lost.step(6, float("nan"), NoLog())


def test_divergence_stops_training_and_keeps_the_checkpoints(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.train import loop

    monkeypatch.setattr(left_out, "MAX_SKIPPED", 3)
    monkeypatch.setattr(loop.torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="step 3: no finite gradient"):
        train(recipe(), corpus, tmp_path / "exp")
    assert not [r for r in read_log(tmp_path / "exp") if r["kind"] == "train"]
    assert checkpoint.latest(tmp_path / "exp" / "checkpoints").is_dir()


def test_cut_ids_must_be_unique(corpus: Path, tmp_path: Path) -> None:
    data = with_cuts(corpus, tmp_path / "data", "low", 0.3)
    odd = make_cut(file_recording(data / "odd.wav", "odd"), "odd", "low")
    write_cuts([odd, odd], data / "dev.jsonl.gz")
    with pytest.raises(ManifestError, match=r"1 cut ids stand for several cuts \(odd\)"):
        train(recipe(), data, tmp_path / "exp")


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_loss_that_is_not_finite_names_its_utterances(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    from asr.train import preflight

    data = with_cuts(corpus, tmp_path / "data", "low low mid mid high high", 0.1)
    monkeypatch.setattr(preflight, "refuse_too_short", lambda *_: None)
    config = ctc_recipe(non_finite=policy)
    batches = config.batches.model_copy(update={"concatenate": ConcatenateConfig()})
    config = config.model_copy(update={"batches": batches})
    if policy == "stop":
        with pytest.raises(TrainingError, match="the loss is not finite for odd"):
            train(config, data, tmp_path / "exp")
        return
    assert train(config, data, tmp_path / "exp").finished
    skipped = [r for r in read_log(tmp_path / "exp") if r["kind"] == "skip"]
    assert [r["utterances"] for r in skipped] == [["odd"]]
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "exp" / "model.safetensors").values())


def test_unknown_words_in_dev_are_named(corpus: Path, tmp_path: Path) -> None:
    data = with_cuts(corpus, tmp_path / "data", "low", 0.3)
    odd = make_cut(file_recording(data / "odd.wav", "odd"), "odd", "huge")
    write_cuts([odd], data / "dev.jsonl.gz")
    with pytest.raises(TokenError, match="huge"):
        train(recipe(), data, tmp_path / "exp")


def test_a_damaged_checkpoint_is_named(corpus: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    train(recipe(epochs=1), corpus, exp)
    file = checkpoint.latest(exp / "checkpoints") / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"optimizer\.safetensors: not readable"):
        train(None, None, exp, resume=True)


def test_a_crash_while_saving_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torch.nn.Linear(3, 2)
    moments = checkpoint.gather_moments(build_optimizer(OptimizerConfig(), network))
    checkpoint.save_checkpoint(tmp_path, network, moments, checkpoint.Progress(step=1))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save_checkpoint(tmp_path, network, moments, checkpoint.Progress(step=2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.read_progress(checkpoint.latest(tmp_path)).step == 1


@pytest.mark.parametrize("content", ["", "{}}", "[1]", '{"step": "x"}', '{"steps": 1}'])
def test_a_damaged_progress_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "step-000001"
    path.mkdir()
    (path / "progress.json").write_text(content)
    with pytest.raises(
        ModelError, match=r"progress\.json: not a checkpoint's progress .* delete .*step-000001"
    ):
        checkpoint.read_progress(path)


def test_checkpoints_are_in_order_of_steps(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 7):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-1000000"


def test_average_is_the_mean_of_the_weights(tmp_path: Path) -> None:
    weights = []
    for step in (1, 2, 3):
        network = torch.nn.Linear(3, 2)
        weights.append(network.weight.detach().clone())
        progress = checkpoint.Progress(step=step, dev_wer=0.1 * step)
        moments = checkpoint.gather_moments(build_optimizer(OptimizerConfig(), network))
        checkpoint.save_checkpoint(tmp_path, network, moments, progress)
    best = checkpoint.best(tmp_path, 2)
    assert [path.name for path in best] == ["step-000001", "step-000002"]
    torch.testing.assert_close(checkpoint.average(best)["weight"], (weights[0] + weights[1]) / 2)
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000001", "step-000003"]


def test_learning_rate_rises_then_falls() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_training_hears_drawn_contexts_after_the_warm_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ContextConfig(chunk=4, left_chunks=2), ContextConfig()
    encoder = ConformerEncoderConfig(
        dim=16, heads=2, layers=1, kernel=3, contexts=(first, second), context_warmup_steps=8
    )
    base = recipe(epochs=2)
    network = base.network.model_copy(update={"encoder": encoder})
    heard: dict[bool, list[ContextConfig]] = {True: [], False: []}
    encode = ChunkedEncoder.encode

    def noted(self: ChunkedEncoder, *args: object) -> object:
        heard[self.training].append(self.context)
        return encode(self, *args)

    monkeypatch.setattr(ChunkedEncoder, "encode", noted)
    monkeypatch.setattr("asr.train.recogniser.preflight", lambda setup: Cost(0, 0.0, 0))
    train(base.model_copy(update={"network": network}), corpus, tmp_path / "exp")
    assert heard[True][:8] == [first] * 8
    assert set(heard[True][8:]) == {first, second}
    assert set(heard[False]) == {first}
    late = network.model_copy(update={"encoder": encoder.model_copy(update={"context_warmup_steps": 500})})
    with pytest.raises(
        ConfigError, match=r"context_warmup_steps is 500 and the training has \d+ steps: 1 contexts"
    ):
        train(base.model_copy(update={"network": late}), corpus, tmp_path / "late")


def test_a_ctc_warm_start_longer_than_the_training_is_refused(corpus: Path, tmp_path: Path) -> None:
    base = recipe()
    loss = LossConfig(transducer=TransducerLossConfig(after_steps=500), ctc=CtcLossConfig(weight=0.3))
    network = base.network.model_copy(update={"loss": loss})
    with pytest.raises(ConfigError, match=r"with after_steps 500 the transducer loss begins at step 500"):
        train(base.model_copy(update={"network": network}), corpus, tmp_path / "exp")


def test_trials_of_speed_and_memory_have_the_views_of_training(corpus: Path) -> None:
    base = recipe()
    loss = LossConfig(ctc=CtcLossConfig(weight=1, consistency=0.2))
    network = base.network.model_copy(update={"loss": loss})
    masked = base.model_copy(update={"network": network, "specaugment": SpecAugmentConfig()})
    setup = prepare_run(masked, [corpus], World(torch.device("cpu")))
    assert next(iter(setup.batches)).views == next(iter(setup.unmasked())).views == 2
    assert next(iter(setup.dev)).views == 1


def test_bfloat16_autocast_trains(corpus: Path, tmp_path: Path) -> None:
    outcome = train(recipe(epochs=1, precision="bfloat16"), corpus, tmp_path / "exp")
    assert outcome.finished
    assert asr.load(tmp_path / "exp").transcribe(np.zeros(RATE, np.float32), RATE).duration_s == 1.0


@pytest.mark.parametrize(("single_loss", "kept"), [(1e9, "average of 2 checkpoints"), (0.0, "step-")])
def test_the_average_is_kept_unless_the_best_has_a_lower_loss(
    corpus: Path, tmp_path: Path, single_loss: float, kept: str
) -> None:
    exp = tmp_path / "exp"
    train(recipe(epochs=2), corpus, exp)
    (exp / "README.md").unlink()  # not finished after all
    best = checkpoint.best(exp / "checkpoints", 2)
    progress = checkpoint.read_progress(best[0])
    progress.dev_loss = single_loss
    (best[0] / "progress.json").write_text(progress.model_dump_json())
    assert train(None, None, exp, resume=True).finished
    assert f"({kept}" in (exp / "README.md").read_text()
