"""The model that comes with the package: it is there, small, streams, and is used without a choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import asr
from asr.errors import ModelError
from asr.pretrained import pretrained
from asr.recognizer import Recognizer
from asr.train.finetune import finetune_recipe

RATE = 16000


@pytest.fixture(scope="module")
def english() -> Recognizer:
    return asr.load()


def test_it_is_small_and_has_a_card_with_what_was_measured() -> None:
    files = list(pretrained().iterdir())
    assert sum(file.stat().st_size for file in files) <= 15e6
    card = (pretrained() / "README.md").read_text()
    for word in ("WER", "speechocean762", "kathleen", "licence"):
        assert word in card


def test_its_recipe_needs_nothing_of_where_it_was_trained() -> None:
    augment = finetune_recipe(pretrained()).augment
    assert (augment.noise.source, augment.reverb.source) == (None, None)


def test_it_hears_live_what_it_hears_in_files(english: Recognizer, speech_like) -> None:
    samples = speech_like(3.0, RATE)
    session = english.stream(RATE)
    for start in range(0, len(samples), 1234):
        session.feed(samples[start : start + 1234])
    assert session.finish()[-1].text == english.transcribe(samples, RATE).text
    assert english.algorithmic_latency_s < 0.4


def test_its_final_results_are_those_of_whole_utterances(english: Recognizer, speech_like) -> None:
    samples = speech_like(3.0, RATE)
    whole = asr.load(latency=asr.Latency(None))
    assert whole.transcribe(samples, RATE).text == english.transcribe(samples, RATE).text
    assert english.finals is not None


def test_silence_has_no_words(english: Recognizer) -> None:
    assert english.transcribe(np.zeros(5 * RATE, np.float32), RATE).text == ""


def test_the_command_needs_no_model(tmp_path: Path, speech_like, english: Recognizer, call) -> None:
    soundfile.write(tmp_path / "a.wav", speech_like(2.0, RATE), RATE)
    code, out, err = call("transcribe", tmp_path / "a.wav")
    assert code == 0, err
    assert out.strip() == english.transcribe(tmp_path / "a.wav").text


def test_another_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"klingon: expected a model that comes with .* \(english\)"):
        pretrained("klingon")
