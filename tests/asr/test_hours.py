"""An hour of audio through one stream: nothing is lost, and it costs no more at the end than at first.

The words are tones and the network is made by hand to write each when it sounds, so what has to be heard is
known without any other search. Its frames last 0.64 s, which makes an hour short.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import asr
from asr.encoders import LstmEncoderConfig, WindowConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.recognizer import Recognizer
from asr.search import BeamSearch, CtcBeamSearch, FusionConfig, SearchConfig
from asr.search.history import WINDOW
from tests.asr.test_fusion import ARPA

RATE, FRAME = 8000, 5120
FRAMES = 3600 * RATE // FRAME
NOISE = 1e-3
TONES = {"zero": 300.0, "one": 700.0, "two": 1200.0, "three": 1900.0, "four": 3000.0}


class Said(NamedTuple):
    word: str
    frame: int


def script(seed: int = 0) -> list[Said]:
    """A word every few frames, with longer pauses; none twice in a row."""
    rng, frame, words = random.Random(seed), 2, list[Said]()
    while frame < FRAMES - 10:
        others = [word for word in TONES if not words or word != words[-1].word]
        words.append(Said(rng.choice(others), frame))
        frame += rng.choice([1, 1, 2, 2, 3, 9])
    return words


def tone(word: str) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * TONES[word] * np.arange(FRAME) / RATE) * np.hanning(FRAME) ** 0.1


def audio(words: list[Said]) -> Iterator[np.ndarray]:
    """The hour, in uneven pieces."""
    rng, spoken = np.random.default_rng(0), {each.frame: tone(each.word) for each in words}
    silence = np.zeros(FRAME)
    for first in range(0, FRAMES, 25):
        frames = range(first, min(first + 25, FRAMES))
        block = np.concatenate([spoken.get(frame, silence) for frame in frames])
        block = (block + NOISE * rng.standard_normal(len(block))).astype(np.float32)
        yield from np.split(block, [17_777])


@torch.no_grad()
def made_by_hand(directory: Path, search: SearchConfig) -> Recognizer:
    """The recogniser of a model directory, its weights replaced."""
    config = directory / "config.yaml"
    text = config.read_text().replace("frame_shift_ms: 10.0", "frame_shift_ms: 80.0")
    config.write_text(text.replace("frame_length_ms: 25.0", "frame_length_ms: 100.0"))
    recognizer = asr.load(directory, search=search)
    network = recognizer.network
    network.norm.mean.zero_()
    network.norm.scale.fill_(1.0)
    noise = NOISE * np.random.default_rng(1).standard_normal(FRAME)
    sounds = {"": noise} | {word: tone(word) + noise for word in TONES}
    heard = {word: recognizer.features(x.astype(np.float32)).mean(axis=0) for word, x in sounds.items()}
    for parameter in network.parameters():
        parameter.zero_()  # an LSTM layer whose norm is zero adds nothing
    entrance = network.encoder.entrance.subsample.layers[0].convolution
    for place, word in enumerate(TONES):
        (label,) = recognizer.tokenizer.encode(word)
        others = np.max([features for other, features in heard.items() if other != word], axis=0)
        band = int((heard[word] - others).argmax())
        step = float(heard[word][band] - others[band])
        # The mean over the frame of that band: 0 where it is halfway, 1 where the tone is.
        entrance.weight[place, band] = 2 / (8 * step)
        entrance.bias[place] = -2 * float(others[band]) / step - 1
        if network.ctc is not None:
            network.ctc.weight[label, place] = 12  # unsure enough for several hypotheses
            network.ctc.bias[0] = 6
            continue
        # A label that was the last one is not said again, or a frame would never end.
        network.joiner.encoder.weight[label, place] = 10
        network.predictor.embedding.weight[label, label] = 1
        network.predictor.mix.weight[label, label % 4, -1] = 1
        network.joiner.predictor.weight[label, label] = -20
        network.joiner.output.weight[label, label] = 12
        network.joiner.output.bias[0] = 6
    return recognizer


def resident_mib() -> float:
    """Memory that the process holds; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if status.exists() else 0


GREEDY, BEAM = SearchConfig(), SearchConfig(method="beam", beam=3)
RULES = asr.EndpointConfig(trailing_silence_s=2.0, nothing_s=5.0, max_length_s=20.0)
CASES = {
    "greedy": ("transducer", GREEDY, None),
    "beam-lm-rules": ("transducer", BEAM, RULES),
    "ctc-beam-rules": ("ctc", BEAM, RULES),
    "windows": ("transducer", GREEDY, None),
}


@pytest.mark.parametrize("name", CASES)
def test_an_hour(make_model, tmp_path: Path, name: str) -> None:
    kind, search, endpoint = CASES[name]
    if "lm" in name:
        (tmp_path / "lm.arpa").write_text(ARPA)
        fusion = FusionConfig(lm=str(tmp_path / "lm.arpa"), lm_weight=0.5)
        search = search.model_copy(update={"fusion": fusion})
    entrance = SubsamplingConfig(kind="stack", factor=8)
    encoder = LstmEncoderConfig(hidden=8, layers=1, subsampling=entrance, bidirectional=name == "windows")
    recognizer = made_by_hand(make_model(kind=kind, encoder=encoder), search)
    if name == "windows":
        recognizer = recognizer.with_windows(WindowConfig(length_s=60, overlap_s=20))
    else:
        recognizer = recognizer.with_latency(asr.Latency(5 * FRAME / RATE))
    session, words = recognizer.stream(RATE, endpoint=endpoint), script()
    finals, sizes, most_pending = [], set(), 0
    memory, spent, fed = [], [time.process_time()], 0
    for piece in audio(words):
        events = session.feed(piece)
        finals += [event.transcript for event in events if event.kind == "final"]
        fed += len(piece)
        sizes.add(session.state_bytes)
        most_pending = max(most_pending, len(recognizer.search.pending(session._state.search)[0]))
        if fed >= FRAMES * FRAME * len(spent) / 3:
            spent.append(time.process_time())
        memory.append(resident_mib())
    finals += [event.transcript for event in session.finish()]
    found = [Said(w.text, round(w.start_s * RATE / FRAME)) for final in finals for w in final.words]
    assert found == words
    assert len(words) > 1500
    assert finals[-1].duration_s == pytest.approx(3600)
    assert len(finals) == 1 if endpoint is None else len(finals) > 300
    assert len(sizes) == 1
    assert most_pending <= 2 * WINDOW
    if isinstance(recognizer.search, BeamSearch | CtcBeamSearch):
        assert most_pending > 0
    # The audio of the hour is 110 MiB, its features 3.4 MiB.
    assert memory[-1] - memory[len(memory) // 6] < 8
    thirds = np.diff(spent)
    assert len(thirds) == 3
    assert thirds[2] < 2 * thirds[1]
