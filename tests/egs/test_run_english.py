"""The English recipe from corpora in their publishers' layouts to three decoded test sets, by its run.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from asr.encoders.whisper_weights import read_whisper
from asr.recognizer import load

EGS = Path(__file__).parents[2] / "egs"
SMALL = " ".join(
    f"network.{setting}"
    for setting in (
        "encoder.dim=16",
        "encoder.layers=1",
        "encoder.context_warmup_steps=0",
        "encoder.heads=2",
        "encoder.subsampling.channels=8",
        "predictor.dim=16",
        "joiner.dim=16",
    )
)
TESTS = ("test-so762-adults", "test-so762-children", "test-kathleen")


@pytest.fixture
def corpora(tmp_path: Path, load_script) -> Path:
    folder: Path = load_script(Path(__file__).parent / "test_prepare_english.py").make_corpora(
        tmp_path / "data"
    )
    return folder


def run(*options: object) -> str:
    """What run.sh prints; it has to succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(EGS / "english" / "run.sh"), *map(str, options)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_stage_without_synthetic_speech(corpora: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    common = ("--exp", exp, "--hours", 0, "--processes", 1)
    trained = run(
        "--data-dir", corpora, *common, "--epochs", 1, "--people-epochs", 1, "--set", SMALL, "--stop-stage", 4
    )
    assert trained.count("epoch   1") == 2  # on both, and on people alone
    assert "utterance-seconds per second" in trained  # --profile
    weights = (exp / "people" / "model.safetensors").read_bytes()
    # Stages that are done go on where they were: at their end.
    again = run(*common, "--stage", 3)
    assert "epoch   1" not in again
    assert (exp / "people" / "model.safetensors").read_bytes() == weights
    assert (exp / "small" / "model.safetensors").stat().st_size < len(weights)
    assert load(exp / "small").search_config.fusion.lm == str(exp / "small" / "words.safetensors")
    for part in TESTS:
        assert (exp / "small" / "decode" / f"data-{part}-live" / "hyp.jsonl").stat().st_size > 0
    assert again.count("WER") >= len(TESTS)


def test_a_beginning_with_whisper(corpora: Path, tmp_path: Path, load_script) -> None:
    """Its encoder arrives, learns slowly at first, and is trained further."""
    exp, whisper = tmp_path / "exp", tmp_path / "whisper"
    whisper.mkdir()
    checks = load_script(Path(__file__).parents[1] / "asr" / "test_whisper.py")
    save_file(checks.hugging_face(80, 16, 1), whisper / "model.safetensors")
    common = ("--exp", exp, "--hours", 0, "--processes", 1, "--whisper", whisper)
    epochs = ("--epochs", 1, "--views-epochs", 1, "--rounds", 1)
    run("--data-dir", corpora, *common, *epochs)
    name = "encoder.layers.0.feed_forward.up.weight"
    steps = ("begin", "head", "mixed", "views", "back-1", "round-1", "back-2")
    began, head, mixed, views, *rounds, back = (load_file(exp / step / "model.safetensors") for step in steps)
    assert torch.equal(began[name], read_whisper(whisper)[name.removeprefix("encoder.")])
    moved = {part: float((head[part] - began[part]).abs().max()) for part in head}
    assert 0 < moved[name] < max(most for part, most in moved.items() if not part.startswith("encoder.")) / 5
    assert not torch.equal(mixed[name], head[name])
    assert not torch.equal(views[name], mixed[name])
    for found, model, share in ((rounds[0], views, 0.4), (back, rounds[1], 0.2)):
        torch.testing.assert_close(found[name], (1 - share) * model[name] + share * began[name])
        assert torch.equal(found["joiner.output.weight"], model["joiner.output.weight"])
    assert not torch.equal(rounds[1][name], rounds[0][name])
    shipped = load(exp / "small")
    assert shipped.finals is not None
    assert torch.allclose(
        shipped.network.state_dict()[name], back[name], atol=float(back[name].abs().max()) / 200
    )


def test_settings_of_that_beginning(tmp_path: Path, load_script, monkeypatch, capsys) -> None:
    """Another loss has weights of its own; what is no Whisper is said in a line."""
    checks = load_script(Path(__file__).parents[1] / "asr" / "test_whisper.py")
    script, weights, model = (
        load_script(EGS / "english" / "whisper.py"),
        tmp_path / "whisper",
        tmp_path / "model",
    )
    weights.mkdir()
    monkeypatch.setattr(sys, "argv", ["whisper.py", str(weights), str(model)])
    with pytest.raises(SystemExit):
        typer.run(script.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"whisper.py: {weights}: expected model.safetensors or model.bin")
    assert not model.exists()
    save_file(checks.hugging_face(80, 16, 1), weights / "model.safetensors")
    kind = "network.loss.transducer.kind=pruned"
    monkeypatch.setattr(sys, "argv", ["whisper.py", str(weights), str(model), "--set", kind])
    with pytest.raises(SystemExit) as caught:
        typer.run(script.main)
    assert not caught.value.code
    assert "simple_encoder.weight" in load_file(model / "model.safetensors")
