"""The digits recipe from recordings to a live transcript, by the script that users run; options of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

EGS = Path(__file__).parents[2] / "egs"


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Ten digits, each a tone of its own, of one speaker, indices as in the real corpus."""
    folder, rng = tmp_path / "corpus" / "recordings", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for digit in range(10):
        for index in range(10):
            t = np.arange(2800) / 8000
            tone = 0.3 * np.sin(2 * np.pi * (300 + 300 * digit) * t) * np.hanning(len(t))
            noisy = tone + 0.003 * rng.standard_normal(len(t))
            soundfile.write(folder / f"{digit}_tone_{index}.wav", noisy, 8000)
    return folder.parent


def run(*options: object, corpus: str = "digits") -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(EGS / corpus / "run.sh"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


def test_every_stage(recordings: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    result = run("--data-dir", recordings, "--exp", exp, "--epochs", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("WER") >= 3
    assert "real-time factor" in result.stdout
    assert "final-token delay" in result.stdout or "nothing recognised" in result.stdout
    for file in (
        "model.safetensors",
        "training.png",
        "decode/test/wer.txt",
        "decode/test-live/hyp.jsonl",
        "live.png",
    ):
        assert (exp / file).stat().st_size > 0, file
    again = run("--exp", exp, "--stage", 2, "--stop-stage", 3)  # a finished run is finished
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("corpus", ["digits", "yesno", "english"])
def test_unknown_options_are_refused(corpus: str) -> None:
    result = run("--nosuch", 1, corpus=corpus)
    assert result.returncode == 2
    assert "unknown or incomplete option --nosuch" in result.stderr
    result = run("--recipe", "nosuch")
    assert result.returncode == 2
    assert "no recipe nosuch in lstm.py, attention.py or recurrent.py" in result.stderr
