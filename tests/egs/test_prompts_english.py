"""Prompts of a telephone exchange as a corpus of two parts."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import read_audio
from asr.data.download import OfflineError
from asr.data.manifests import cut_text, read_cuts

ENGLISH = Path(__file__).parents[2] / "egs" / "english"
TEXT = """; Core Asterisk Sounds in English

agent-pass: Please enter your password, followed by the pound key.
followme/call-from: Incoming call from...
ascending-2tone: [two ascending tones]
added: Added.
digits/20: Twenty 20 is it.
never-recorded: There is no such sound.
vm-goodbye: Goodbye and thank-you for calling!
"""


@pytest.fixture(scope="module")
def script(with_neighbours):
    with with_neighbours(ENGLISH / "prompts.py") as module:
        yield module


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    (folder / "followme").mkdir(parents=True)
    (folder / "digits").mkdir()
    (folder / "core-sounds-en.txt").write_text(TEXT)
    wave = (3000 * np.sin(np.arange(16000) / 9)).astype("<i2")
    for name in ("agent-pass", "followme/call-from", "ascending-2tone", "added", "digits/20"):
        wave.tofile(folder / f"{name}.sln16")
    soundfile.write(folder / "vm-goodbye.wav", wave[:8000], 8000)
    return folder


def test_what_is_said_and_recorded_is_in_one_of_two_parts(script, sounds, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert script.main([str(out), "--data-dir", str(sounds)]) == 0
    parts = [list(read_cuts(out / f"{part}-prompts.jsonl.gz")) for part in ("dev", "test")]
    assert [len(part) for part in parts] == [2, 1]
    assert f"{out}/dev-prompts.jsonl.gz: 2 prompts, " in capsys.readouterr().out
    found = {cut.id: cut for part in parts for cut in part}
    assert {name: cut_text(cut) for name, cut in found.items()} == {
        "agent-pass": "please enter your password followed by the pound key",
        "followme_call-from": "incoming call from",
        "vm-goodbye": "goodbye and thank you for calling",
    }
    for number, part in enumerate(parts):
        assert all(zlib.crc32(cut.id.encode()) % 2 == number for cut in part)
    raw = np.fromfile(sounds / "agent-pass.sln16", "<i2") / 2**15
    heard = read_audio(found["agent-pass"].recording.sources[0].source, 16000).samples
    np.testing.assert_allclose(heard, raw, atol=1e-6)
    assert found["vm-goodbye"].recording.sampling_rate == 8000
    assert not (out / "recordings" / "added.flac").exists()


def test_what_is_wrong_is_said_in_a_line(script, sounds, tmp_path, capsys, monkeypatch) -> None:
    def fails(*arguments: str) -> str:
        assert script.main([str(tmp_path / "out"), *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    with (sounds / "core-sounds-en.txt").open("a") as text:
        text.write("vm-goodbye: Goodbye and again goodbye.\n")
    assert fails("--data-dir", str(sounds)).endswith("expected each prompt once, found vm-goodbye again")
    (sounds / "core-sounds-en.txt").write_text(TEXT)
    (sounds / "agent-pass.sln16").write_bytes(b"\0\0\0")
    line = fails("--data-dir", str(sounds))
    assert line.endswith("agent-pass.sln16: expected 16-bit samples, 10000000 bytes at most, found 3 bytes")
    for path in sounds.rglob("*.sln16"):
        path.unlink()
    assert "expected recorded prompts, found 1" in fails("--data-dir", str(sounds))
    (sounds / "core-sounds-en.txt").unlink()
    assert "core-sounds-en.txt: expected the words of" in fails("--data-dir", str(sounds))

    def offline(*_: object) -> None:
        raise OfflineError("no connection")

    monkeypatch.setattr(sys.modules["sources"], "fetch", offline)
    assert "no connection; pass --data-dir with the folder" in fails()
    assert not (tmp_path / "out" / "test-prompts.jsonl.gz").exists()
