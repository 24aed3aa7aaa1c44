"""The recordings in the repository and what is printed of them, whatever the model makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import probe
from asr.transcript import Transcript, Word

ENGLISH = Path(__file__).parents[2] / "egs" / "english"


@pytest.fixture(scope="module")
def listen(load_script):
    return load_script(ENGLISH / "listen.py")


def test_every_recording_has_its_text_and_all_are_small(listen):
    found = list(listen.find_recordings(listen.SAMPLES))
    assert {path for _, path, _ in found} == set(listen.SAMPLES.glob("*.opus"))
    assert sum(path.stat().st_size for _, path, _ in found) < 300_000
    for name, path, words in found:
        audio = probe(path)
        assert audio.sample_rate == 16000
        assert 1 < len(words.split()) / audio.duration_s < 5, name


def test_the_model_in_the_package_hears_every_recording(listen, capsys):
    assert listen.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    numbers = ("0870", "0880", "0890", "0920", "0930")
    assert [line.split()[0] for line in lines[:-1:3]] == [f"sense_and_sensibility-01-{n}" for n in numbers]
    assert all("first word at" in line or "no word was heard" in line for line in lines[:-1:3])
    assert [line.split()[0] for line in lines[1:-1:3]] == ["said"] * 5
    assert [line.split()[0] for line in lines[2:-1:3]] == ["heard"] * 5
    assert lines[-1].startswith("WER ")
    assert "over 5 utterances" in lines[-1]


def test_the_first_word_is_timed_by_what_was_shown(listen, monkeypatch):
    class Update:
        def __init__(self, heard_s, *words):
            text = " ".join(word.text for word in words)
            self.heard_s = heard_s
            self.transcript = Transcript.__new__(Transcript)
            object.__setattr__(self.transcript, "text", text)
            object.__setattr__(self.transcript, "words", words)

    first, second = Word("a", 0.3, 0.4, 1.0), Word("b", 0.6, 0.7, 1.0)
    updates = [Update(0.1), Update(0.5, first), Update(0.9, first, second)]
    monkeypatch.setattr(listen, "feed_file", lambda *_: iter(updates))
    assert listen.hear(None, Path("x")) == ("a b", 0.9, 0.3, 0.5)
    monkeypatch.setattr(listen, "feed_file", lambda *_: iter(updates[:1]))
    silent = listen.hear(None, Path("x"))
    assert silent == ("", 0.1, None, None)
    assert "no word was heard" in listen.describe("x", "a b", silent)


def test_what_is_missing_is_one_line(listen, tmp_path, capsys):
    assert listen.main([str(tmp_path)]) == 1
    assert "found no such file" in capsys.readouterr().err
    (tmp_path / "text").write_text("one a b\ntwo c\n")
    soundfile.write(tmp_path / "one.flac", np.zeros(160), 16000)
    assert listen.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "two: found no two.opus or .flac or .wav beside it" in error
