"""Sentences that are read by synthetic voices: which, by whom, and never what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asr.audio import probe, read_audio
from asr.data.manifests import cut_speaker, cut_text, load_card, make_cut, read_cuts, write_cuts
from asr.errors import DataError

ENGLISH = Path(__file__).parents[2] / "egs" / "english"
RATE = 22050


@pytest.fixture(scope="module")
def synthesise(with_neighbours):
    with with_neighbours(ENGLISH / "synthesise.py") as module:
        yield module


class Hum:
    """A voice: half a second for each word, too loud."""

    def __init__(self) -> None:
        self.said: list[tuple[str, float, float]] = []

    def __call__(self, text: str, tempo: float, pitch: float) -> tuple[np.ndarray, int]:
        self.said.append((text, tempo, pitch))
        seconds = len(text.split()) / 2
        return (3 * np.sin(np.arange(round(seconds * RATE)) / 9)).astype(np.float32), RATE


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "lm.txt").write_text("It's a fine day.\nit's a fine day\ntwo words\nthe 3 bears came\n")
    net = tmp_path / "wordnet"
    net.mkdir()
    (net / "data.verb").write_text(
        '00001740 29 v 01 breathe 0 | draw air; "He could not breathe well"; '
        '"She held her breath, then ran"\n'
    )
    return tmp_path


def test_sentences_are_read_once_and_only_what_all_voices_read_alike(synthesise, texts):
    candidates = list(synthesise.sentences([texts / "lm.txt"], texts / "wordnet"))
    assert len(candidates) == 6
    chosen = synthesise.choose(iter(candidates), {"she held her breath then ran"}, 0)
    assert sorted(chosen) == [
        ("He could not breathe well", "he could not breathe well"),
        ("It's a fine day.", "it's a fine day"),
    ]


def test_the_order_is_drawn_by_the_seed(synthesise):
    many = [f"this is sentence {a}{b}" for a in "abcdef" for b in "ghijkl"]
    orders = [synthesise.choose(iter(many), set(), seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_corpus_that_says_what_it_is(synthesise, texts, monkeypatch, capsys):
    voices = {"low": Hum(), "high": Hum()}
    monkeypatch.setattr(synthesise, "voices_by_name", lambda names: voices)
    arguments = [str(texts / "out"), "--text", str(texts / "lm.txt"), "--wordnet", str(texts / "wordnet")]
    assert synthesise.main(arguments) == 0
    assert "3 sentences" in capsys.readouterr().out
    cuts = list(read_cuts(texts / "out" / "train.jsonl.gz"))
    said = {text: (tempo, pitch) for hum in voices.values() for text, tempo, pitch in hum.said}
    assert len(said) == 3 == len(set(said.values()))
    assert {cut_text(cut) for cut in cuts} == {
        "it's a fine day",
        "he could not breathe well",
        "she held her breath then ran",
    }
    assert {cut_speaker(cut) for cut in cuts} <= {"low", "high"}
    for cut in cuts:
        path = cut.recording.sources[0].source
        assert probe(path).sample_rate == 16000
        assert cut.duration == pytest.approx(len(cut_text(cut).split()) / 2, abs=0.01)
        assert np.abs(read_audio(path, 16000).samples).max() == pytest.approx(0.9, abs=0.01)
    assert load_card(texts / "out").synthetic
    # Once more: nothing is read again, and the corpus is the same.
    before = [hum.said.copy() for hum in voices.values()]
    assert synthesise.main(arguments) == 0
    assert [hum.said for hum in voices.values()] == before
    assert list(read_cuts(texts / "out" / "train.jsonl.gz")) == cuts


def test_it_ends_when_there_are_enough_hours(synthesise, tmp_path):
    chosen = [(f"five words are in {x}", f"five words are in {x}") for x in "abcdefgh"]
    cuts = synthesise.read_all(chosen, {"hum": Hum()}, tmp_path, 6 / 3600, 0)
    assert len(cuts) == 3  # of 2.5 s


def test_what_is_held_out_is_found_by_its_part(synthesise, texts, tmp_path):
    recording = synthesise.file_recording(_read(synthesise, tmp_path / "a.flac"), "a")
    write_cuts(
        [make_cut(recording, "a", "he could not breathe well")], tmp_path / "parts" / "test-x.jsonl.gz"
    )
    assert synthesise.held_out_texts(tmp_path / "parts") == {"he could not breathe well"}
    with pytest.raises(DataError, match="expected dev and test parts to keep out, found none"):
        synthesise.held_out_texts(tmp_path)


def _read(synthesise, path):
    synthesise.read_aloud(Hum(), "one two three", path, np.random.default_rng(0))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected sentences to read, found none: give --text or --wordnet"),
        (("--text", "lm.txt", "--voices", "nobody"), "voice nobody: expected awb, rms, slt, joe or the path"),
    ],
)
def test_refusals(synthesise, texts, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(texts)
    assert synthesise.main([str(texts / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_flite(synthesise, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="flite: not found; install it"):
        synthesise.Flite("slt", 167)("one two three", 1.0, 1.0)
