"""Live streams cut into utterances: the rules, at the same places in any chunking, and voice activity."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import asr
from asr import state as states
from asr.config import Config
from asr.encoders import ConformerEncoderConfig
from asr.endpoint import EndpointConfig
from asr.errors import ConfigError, MissingExtraError
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.recognizer import Event, Transcript
from asr.vad import SileroVad

RATE = 8000
CHUNKED = ConformerEncoderConfig(
    dim=24, heads=2, layers=2, kernel=5, contexts=(ContextConfig(chunk=3, left_chunks=2),)
)


def rules(**chosen: float) -> EndpointConfig:
    """Only these rules."""
    return EndpointConfig(**{"trailing_silence_s": None, "nothing_s": None, "max_length_s": None, **chosen})


@pytest.mark.parametrize(
    ("length_s", "silence_s", "expected"),
    [
        (1.0, None, None),
        (5.0, None, "nothing"),
        (30.0, None, "nothing"),
        (30.0, 0.5, "length"),
        (3.0, 0.8, "silence"),
        (30.0, 0.8, "silence"),
        (3.0, 0.79, None),
    ],
)
def test_rules(length_s: float, silence_s: float | None, expected: str | None) -> None:
    assert EndpointConfig().rule(length_s, silence_s) == expected
    assert rules().rule(length_s, silence_s) is None
    too_long = silence_s is not None and length_s >= 2
    assert rules(max_length_s=2).rule(length_s, silence_s) == ("length" if too_long else None)


def test_bad_rules_are_refused() -> None:
    assert issubclass(EndpointConfig, Config)
    with pytest.raises(ValueError, match="greater than 0"):
        EndpointConfig(trailing_silence_s=-1)


def utterances(events: list[Event]) -> list[tuple]:
    """What the finals say."""
    finals = [event for event in events if event.kind == "final"]
    return [(e.utterance, e.rule, times(e.transcript)) for e in finals]


def times(transcript: Transcript) -> list[tuple[str, float, float]]:
    return [(t.piece, round(t.start_s, 6), round(t.end_s, 6)) for t in transcript.tokens]


def fed(session: asr.Session, samples: np.ndarray, sizes: list[int], seed: int = 0) -> list[Event]:
    rng, events, position = random.Random(seed), [], 0
    while position < len(samples):
        size = rng.choice(sizes)
        events += session.feed(samples[position : position + size])
        position += size
    return events + session.finish()


@pytest.mark.parametrize("encoder", [None, CHUNKED], ids=["lstm", "conformer"])
@pytest.mark.parametrize("kind", ["transducer", "lstm-predictor", "ctc"])
def test_utterances_end_at_the_same_places_in_any_chunking(
    kind: str, encoder, make_model, speech_like
) -> None:
    recognizer = asr.load(make_model(kind=kind, encoder=encoder))
    samples = np.concatenate([speech_like(2.5, seed=1), np.zeros(6000, np.float32), speech_like(2, seed=2)])
    endpoint = EndpointConfig(trailing_silence_s=0.24, nothing_s=0.4, max_length_s=0.9)
    found = []
    for seed, sizes in enumerate([[1000000], [400], [1, 7, 333, 2000, 9000]]):
        session = recognizer.stream(RATE, endpoint=endpoint)
        found.append(utterances(fed(session, samples, sizes, seed)))
    assert found[0] == found[1] == found[2]
    assert {rule for _, rule, _ in found[0]} & {"silence", "length"}
    assert [number for number, _, _ in found[0]] == list(range(len(found[0])))
    assert len(found[0]) > 4


def test_an_utterance_is_decoded_as_if_it_began_there(make_model, speech_like) -> None:
    """The frames of the whole stream, decoded from where the utterance before ended with an empty history."""
    recognizer = asr.load(make_model(kind="lstm-predictor"))
    samples = speech_like(5.0, seed=3)
    step_s = recognizer.network.encoder.chunk_frames * recognizer.network.encoder.frame_shift_s
    session = recognizer.stream(RATE, endpoint=rules(max_length_s=1.2))
    finals = [e for e in fed(session, samples, [1234]) if e.kind == "final"]
    assert len(finals) > 3
    with torch.inference_mode():
        features, lengths, _ = recognizer.fbank(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        y, y_lengths, _ = recognizer.network.encode(features, lengths)
    frame_s, first = step_s, 0
    for number, event in enumerate(finals):
        last = int(y_lengths) if number == len(finals) - 1 else first + round(1.2 / frame_s)
        search = recognizer.search
        out = search(y[:, first:last], torch.tensor([last - first]), search.initial_state(1))
        tokens = out.tokens[0] + search.flush(out.state)[0]
        assert [t.start_s for t in event.transcript.tokens] == pytest.approx(
            [(first + t.frame) * frame_s for t in tokens]
        )
        assert event.text == recognizer.tokenizer.decode([t.id for t in tokens])
        first = last


def test_silence_ends_an_utterance_and_nothing_makes_no_event(make_model, speech_like) -> None:
    recognizer = asr.load(make_model())
    session = recognizer.stream(RATE, endpoint=rules(trailing_silence_s=0.4, nothing_s=1.0))
    events = session.feed(speech_like(1.5, seed=1))
    assert events
    with torch.no_grad():
        recognizer.network.joiner.output.bias[0] += 1e4  # blank, from here on
    (final,) = [e for e in session.feed(np.zeros(3 * RATE, np.float32)) if e.kind == "final"]
    assert (final.rule, final.utterance) == ("silence", 0)
    assert final.text == events[-1].text
    before = session.state_bytes
    assert session.feed(np.zeros(4 * RATE, np.float32)) == []
    assert session.state_bytes == before
    (last,) = session.finish()
    assert (last.text, last.utterance, last.rule) == ("", 1, None)
    assert last.transcript.duration_s == pytest.approx(8.5)


class Talking:
    """A detector that hears speech until `until` seconds."""

    def __init__(self, until_s: float) -> None:
        self.until, self.heard = round(until_s * RATE), 0

    def feed(self, samples: np.ndarray) -> None:
        self.heard += len(samples)

    @property
    def silence_s(self) -> float:
        return max(0, self.heard - self.until) / RATE


def test_voice_keeps_an_utterance_open(make_model, speech_like) -> None:
    recognizer, ends = asr.load(make_model()), []
    samples = speech_like(1.5, seed=1)
    for voice in (None, Talking(3.0)):
        with torch.no_grad():
            recognizer.network.joiner.output.bias[0] = 1.0
        session = recognizer.stream(RATE, endpoint=rules(trailing_silence_s=0.4), voice=voice)
        session.feed(samples)
        with torch.no_grad():
            recognizer.network.joiner.output.bias[0] += 1e4
        heard = 0
        while not any(e.kind == "final" for e in session.feed(np.zeros(400, np.float32))):
            heard += 400
        ends.append(1.5 + heard / RATE)
    assert ends[0] < 2.2
    assert ends[1] == pytest.approx(3.4, abs=0.1)


def test_silero_hears_speech_and_silence(speech_like, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("silero_vad")
    voice, found = SileroVad(RATE), []
    recording = np.concatenate([np.zeros(RATE, np.float32), 3 * speech_like(3.0), np.zeros(RATE, np.float32)])
    for start in range(0, len(recording), 700):
        voice.feed(recording[start : start + 700])
        found.append((start / RATE, voice.silence_s))
    assert found[-1][1] > 0.5
    assert max(silence for at, silence in found if at < 1) > 0.7
    whole = SileroVad(RATE)
    whole.feed(recording)
    assert whole.silence_s == voice.silence_s


def test_silero_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"voice activity detection needs .*\[vad\]"):
        SileroVad(RATE)


def test_state_is_constant_over_an_hour(make_model) -> None:
    """An hour of synthetic features through encoder and search: their state stays as large as at first."""
    entrance = SubsamplingConfig(kind="stack", factor=8)
    context = ContextConfig(chunk=8, left_chunks=2)
    recognizer = asr.load(
        make_model(encoder=CHUNKED.model_copy(update={"contexts": (context,), "subsampling": entrance}))
    )
    network, search = recognizer.network, recognizer.search
    with torch.no_grad():
        network.joiner.output.bias[0] += 6  # random weights would emit on every frame, which takes long
    encoder, decoder = network.encoder.initial_state(1), search.initial_state(1)
    generator, sizes, frames = torch.Generator().manual_seed(0), set(), 0
    with torch.inference_mode():
        while frames < 360_000:
            count = int(torch.randint(1, 4000, (), generator=generator))
            features = 3 * torch.randn(1, count, 20, generator=generator)
            y, lengths, encoder = network.encoder(features, torch.tensor([count]), encoder)
            decoder = search(y, lengths, decoder).state
            frames += count
            sizes.add(states.bytes_per_stream((encoder, decoder)))
            assert bool(y.isfinite().all())
    assert len(sizes) == 1


def test_latency_and_head_are_chosen_at_use(make_model, speech_like) -> None:
    contexts = (ContextConfig(chunk=4, left_chunks=2), ContextConfig())
    encoder = ConformerEncoderConfig(dim=24, heads=2, layers=2, kernel=5, contexts=contexts)
    model = make_model(kind="hybrid", encoder=encoder)
    samples = speech_like(2.0)
    found = {}
    for head in ("transducer", "ctc"):
        for latency in (None, asr.Latency(None), asr.Latency(0.08), asr.Latency(0.16)):
            recognizer = asr.load(model, latency=latency, head=head)
            found[head, latency] = times(recognizer.transcribe(samples, RATE))
    for head in ("transducer", "ctc"):
        assert found[head, None] == found[head, asr.Latency(0.16)]
    assert (
        len({str(found["transducer", latency]) for latency in (None, asr.Latency(None), asr.Latency(0.08))})
        > 1
    )
    assert found["ctc", None] != found["transducer", None]
    with pytest.raises(ConfigError, match="head"):
        asr.load(make_model(), head="ctc")
