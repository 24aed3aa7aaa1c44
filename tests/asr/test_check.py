from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from asr.cli.data import app
from asr.data.check import check_cuts
from asr.data.manifests import file_recording, make_cut, write_cuts
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

RATE = 8000


def noise(path: Path, seconds: float = 1.0, rate: int = RATE) -> Path:
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * rate)), rate)
    return path


def make(path: Path, cut_id: str, text: str = "one two"):
    return make_cut(file_recording(path, cut_id), cut_id, text)


@pytest.fixture
def good(tmp_path: Path):
    return [make(noise(tmp_path / f"good{i}.wav"), f"good{i}") for i in range(3)]


def test_a_clean_corpus_has_no_problems(good) -> None:
    report = check_cuts(good, all_samples=True)
    assert report.ok
    assert (report.cuts, report.recordings, report.duration_s) == (3, 3, 3.0)


def test_every_problem_is_found_with_its_ids(tmp_path: Path, good) -> None:
    bad = {
        name: make(noise(tmp_path / f"{name}.wav"), name) for name in ("gone", "rate", "long", "junk", "span")
    }
    (tmp_path / "gone.wav").unlink()
    noise(tmp_path / "rate.wav", rate=16000)
    noise(tmp_path / "long.wav", seconds=1.5)
    (tmp_path / "junk.wav").write_bytes(b"not audio at all")
    bad["span"].start = 0.5
    twice = [make(tmp_path / "good0.wav", "twice"), make(tmp_path / "good1.wav", "twice")]
    empty = make(tmp_path / "good2.wav", "empty", text="  ")
    wordy = make(noise(tmp_path / "short.wav", 0.1), "wordy", "one two three four")
    report = check_cuts([*good, *bad.values(), *twice, empty, wordy], subsampling=4)
    assert report.problems == {
        "missing": ["gone"],
        "sample_rate": ["rate"],
        "duration": ["long", "span"],
        "unreadable": ["junk"],
        "duplicate": ["twice"],
        "empty": ["empty"],
        "frames": ["wordy"],
    }
    assert "3 frames after subsampling by 4, 4 labels" in report.details["frames"]
    assert "1.500 s, manifest 1.000 s" in report.details["duration"]


def test_frames_are_counted_against_the_tokenizer(tmp_path: Path) -> None:
    cut = make(noise(tmp_path / "a.wav", 0.1), "a", "seven")  # 10 frames
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["seven"])
    assert check_cuts([cut], tokenizer=tokenizer, subsampling=2).ok
    assert check_cuts([cut], tokenizer=tokenizer, subsampling=3).problems == {"frames": ["a"]}
    assert check_cuts([cut], subsampling=3).ok


def test_symbols_outside_the_tokenizer_are_reported(good) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["one"])
    report = check_cuts(good, tokenizer=tokenizer)
    assert report.problems == {"symbols": ["good0", "good1", "good2"]}
    assert "good0" in report.details["symbols"]


def test_all_samples_finds_what_headers_hide(tmp_path: Path, good) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    damaged = tmp_path / "damaged.flac"
    rng = np.random.default_rng(0)
    soundfile.write(damaged, 0.1 * rng.standard_normal(RATE), RATE)
    infinite = tmp_path / "infinite.wav"
    soundfile.write(infinite, np.full(RATE, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    cuts = [*good, *(make(path, path.stem) for path in (silent, damaged, infinite))]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    damaged.write_bytes(content)
    assert check_cuts(cuts).ok
    report = check_cuts(cuts, all_samples=True)
    assert report.problems == {"silent": ["silent"], "unreadable": ["damaged", "infinite"]}


def test_command_exit_codes_and_output(tmp_path: Path, good) -> None:
    write_cuts(good, tmp_path / "train.jsonl.gz")
    clean = CliRunner().invoke(app, ["check", str(tmp_path / "train.jsonl.gz")], catch_exceptions=False)
    assert clean.exit_code == 0
    assert "3 cuts, 3 recordings" in clean.output
    assert "no problems" in clean.output
    cuts = [make(tmp_path / "good0.wav", f"c{i}", text="") for i in range(8)]
    write_cuts(cuts, tmp_path / "dev.jsonl.gz")
    arguments = ["check", str(tmp_path / "train.jsonl.gz"), str(tmp_path / "dev.jsonl.gz"), "--all-samples"]
    broken = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert broken.exit_code == 1
    for part in ("no text", "8", "c0", "3 more"):
        assert part in broken.output
