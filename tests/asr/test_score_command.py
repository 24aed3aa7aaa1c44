import json

import pytest
import typer
from typer.testing import CliRunner

from asr.cli.score import score
from asr.errors import ConfigError


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(score)
    return app


def test_score_prints_the_summary_and_writes_the_report(app, tmp_path):
    reference, hypothesis, report = tmp_path / "text", tmp_path / "hyp.jsonl", tmp_path / "wer.txt"
    reference.write_text("u1 Seven three\nu2 nine\n")
    hypothesis.write_text(
        "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in [("u1", "seven three"), ("u2", "five")])
    )
    arguments = [str(reference), str(hypothesis), "--normalization", "basic", "--report", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("WER 33.33 % [")
    assert "     1  nine -> five\n" in result.output
    assert "normalisation: basic" in report.read_text()


def test_errors_reach_the_caller(app, tmp_path):
    for name in ("ref.txt", "hyp.txt"):
        (tmp_path / name).write_text("one\n")
    arguments = [str(tmp_path / "ref.txt"), str(tmp_path / "hyp.txt"), "--normalization", "loud"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


def test_hotwords_are_scored(app, tmp_path):
    (tmp_path / "ref.txt").write_text("call kathleen\nkathleen\n")
    (tmp_path / "hyp.txt").write_text("call kathleen\ncat\n")
    (tmp_path / "names.txt").write_text("kathleen\t5\n")
    arguments = [
        str(tmp_path / "ref.txt"),
        str(tmp_path / "hyp.txt"),
        "--hotwords",
        str(tmp_path / "names.txt"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert "1 listed phrase: recall 50.0 % (1 / 2 said), precision 100.0 % (1 / 1 written)\n" in result.output
    assert "WER on listed words 50.0 % (1 / 2), on all others 0.0 % (0 / 1)\n" in result.output
