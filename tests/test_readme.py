"""The README says only what works: its example runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_examples_run(make_model, speech_like, tmp_path, monkeypatch, capsys) -> None:
    examples = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    model = make_model()
    samples = speech_like(2.0, 16000)
    soundfile.write(tmp_path / "recording.wav", samples, 16000, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "demo").symlink_to(model)
    exec(examples, {"microphone": [samples[i : i + 1600] for i in range(0, len(samples), 1600)]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0]
    assert lines[0] == lines[-1]  # the file and the live stream


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"`asr (\w+(?: (?:import|check|shard))?)", README)))
)
def test_commands_exist(command: str) -> None:
    asr = str(Path(sys.executable).parent / "asr")
    result = subprocess.run([asr, *command.split(), "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([.\w]+)", README)):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        # A heading's anchor is its words, small, with hyphens between them.
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, link
