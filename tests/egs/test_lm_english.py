"""Text for English language models: from where, what is left out, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.data.manifests import file_recording, make_cut, write_cuts
from asr.lms.ngram import NgramModel

ENGLISH = Path(__file__).parents[2] / "egs" / "english"
SAID = {
    "train": ["the cat sat", "a dog barked", "we say this in test"],
    "dev": ["the dog sat", "we say this in dev"],
    "test-x": ["we say this in test"],
}


@pytest.fixture(scope="module")
def lm(with_neighbours):
    with with_neighbours(ENGLISH / "lm.py") as module:
        yield module


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.flac", np.zeros(1600), 16000)
    recording = file_recording("a.flac", "a")
    for part, texts in SAID.items():
        cuts = [make_cut(recording, f"{part}-{n}", text) for n, text in enumerate(texts)]
        write_cuts(cuts, tmp_path / "data" / f"{part}.jsonl.gz")
    (tmp_path / "data" / "text").mkdir()
    (tmp_path / "data" / "text" / "lm.txt").write_text("a sentence from a book\n")
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "data.verb").write_text('00 v | to sit; "The cat sat on 2 mats"; "it sat"\n')
    messages = [["Hi! How are you?", "We say this in dev."], ["I'm fine :)", "Ça va", ""]]
    turns = [[{"text": text, "sender": "x"} for text in turn] for turn in messages]
    (tmp_path / "dataset.json").write_text(json.dumps({"id": {"messages": turns}}))
    (tmp_path / "more.txt").write_text("one more line\n")
    return tmp_path


def test_sources_and_what_is_left_out(lm, data, capsys):
    arguments = ["data", "out", "--wordnet", "wordnet", "--chitchat", "dataset.json", "--text", "more.txt"]
    arguments += [
        "--model",
        str(ENGLISH.parents[1] / "asr" / "pretrained" / "english"),
        "--letters-order",
        "3",
    ]
    assert lm.main(arguments) == 0
    assert Path("out/lm-text.txt").read_text().splitlines() == [
        "the cat sat",
        "a dog barked",
        "a sentence from a book",
        "it sat",
        "hi",
        "how are you",
        "i'm fine",
        "one more line",
    ]
    assert Path("out/dev.txt").read_text().splitlines() == SAID["dev"]
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert rows["train"] == ["2", "6", "1", "0"]
    assert rows["wordnet"] == ["1", "2", "0", "1"]
    assert rows["chitchat"] == ["3", "6", "1", "1"]
    assert rows["all"] == ["8", "22", "2", "2"]
    assert "letters.arpa: order 3" in out
    letters, words = (NgramModel.read(Path("out") / name) for name in ("letters.arpa", "words.arpa"))
    assert "▁" in letters.words
    assert words.ids.keys() >= {"cat", "i'm", "more"}
    assert "test" not in words.ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere/dev.jsonl.gz: expected a file, found nothing"),
        (("data", "--wordnet", "data"), "data: expected WordNet's data.noun and others, found none"),
        (("data", "--chitchat", "absent.json"), "absent.json: expected chitchat-dataset's dataset.json"),
        (("data", "--chitchat", "more.txt"), "more.txt: expected conversations as chitchat-dataset has them"),
        (("data", "--text", "absent.txt"), "absent.txt: expected a file, found nothing there"),
        (("data", "--model", "nowhere"), "is nowhere a model directory"),
    ],
)
def test_refusals(lm, data, capsys, arguments, message):
    assert lm.main([arguments[0], "out", *arguments[1:]]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"messages": [[{"text": 3}]]}}'])
def test_other_json_is_refused(lm, data, capsys, content):
    (data / "dataset.json").write_text(content)
    assert lm.main(["data", "out", "--chitchat", "dataset.json"]) == 1
    assert "expected conversations as chitchat-dataset has them" in capsys.readouterr().err
    assert not Path("out/lm-text.txt").exists()
