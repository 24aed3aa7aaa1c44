"""Live streams cut into utterances: the rules, at the same places in any chunking, and voice activity."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

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
from asr.search import SearchConfig
from asr.vad import SileroVad
from tests.asr.scripted import LETTERS, Scripted, label, letters
from tests.asr.streamed import fed, times, utterances

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


@pytest.mark.parametrize("encoder", [None, CHUNKED], ids=["lstm", "conformer"])
@pytest.mark.parametrize("kind", ["transducer", "lstm-predictor", "ctc", "beam", "ctc-beam"])
def test_utterances_end_at_the_same_places_in_any_chunking(
    kind: str, encoder, make_model, speech_like
) -> None:
    search = SearchConfig(method="beam", beam=3) if kind.endswith("beam") else None
    kind = {"beam": "transducer", "ctc-beam": "ctc"}.get(kind, kind)
    recognizer = asr.load(make_model(kind=kind, encoder=encoder), search=search)
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
    """Frame by frame, with the history of labels that belongs to the utterance and no other."""
    recognizer = asr.load(make_model(kind="lstm-predictor"))
    model, search, samples = recognizer.network, recognizer.search, speech_like(5.0, seed=3)
    session = recognizer.stream(RATE, endpoint=rules(max_length_s=1.2))
    found = utterances(fed(session, samples, [1234]))
    assert len(found) > 3
    with torch.inference_mode():
        features, lengths, _ = recognizer.fbank(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        y, y_lengths, _ = model.encode(features, lengths)
        state, tokens, expected = search.initial_state(1), [], []
        for t in range(int(y_lengths)):
            step = search(y[:, t : t + 1], torch.tensor([1]), state)
            state, tokens = step.state, tokens + step.tokens[0]
            if not tokens or t + 1 - tokens[0].frame < 30:
                continue
            # Every label is a word, and all but the last are complete.
            done = len(tokens) if len(tokens) == 1 or t + 1 - tokens[-1].end_frame >= 12.5 else -1
            expected.append(tokens[:done])
            tokens = [] if done > 0 else tokens[-1:]
            history = torch.tensor([[0, *(token.id for token in tokens)]])
            y_after, predictor = model.predictor(history, model.predictor.initial_state(1))
            state = replace(state, predictor=predictor, projected=model.joiner.predictor(y_after[:, -1]))
    expected.append(tokens)
    spans = [[(t.frame * 0.04, t.end_frame * 0.04) for t in tokens] for tokens in expected]
    assert [[(start, end) for _, start, end in tokens] for _, _, tokens in found] == [
        [pytest.approx(span) for span in tokens] for tokens in spans
    ]


def test_what_a_beam_thinks_is_shown_and_may_change(make_model, speech_like) -> None:
    """Partials show the best hypothesis so far; each is news; the last is what a whole recording gives."""
    recognizer = asr.load(make_model(), search=SearchConfig(method="beam", beam=4))
    with torch.no_grad():  # so that it is less sure
        recognizer.network.joiner.output.weight.mul_(0.4)
    changes = 0
    for seed in range(4):
        samples, session, shown = speech_like(3.0, seed=seed), recognizer.stream(RATE), []
        for start in range(0, len(samples), 400):
            shown += [event.text for event in session.feed(samples[start : start + 400])]
        final = session.finish()[-1].text
        assert final == recognizer.transcribe(samples, RATE).text
        assert all(a != b for a, b in itertools.pairwise(shown))
        changes += sum(not b.startswith(a) for a, b in itertools.pairwise([*shown, final]))
    assert changes > 0
    given = recognizer.search.initial_state(1)
    assert recognizer.search.pending(given) == [[]]


FRAME_S = 0.04


def ended(make_model, script: list[tuple[int, int, int]], endpoint: EndpointConfig, frames: int):
    """Finals (text, rule, seconds fed) of a stream of so many frames, the history left, and the text live."""
    recognizer = asr.load(make_model(lookahead=0))
    search = recognizer.search = Scripted(script)
    recognizer.tokenizer = LETTERS
    session, finals, shown = recognizer.stream(RATE, endpoint=endpoint), [], ""
    for number in range(frames):
        for event in session.feed(np.zeros(320, np.float32)):
            shown = event.text
            if event.kind == "final":
                finals.append((event.text, event.rule, round((number + 1) * FRAME_S, 2)))
    return finals, search.said, shown


def test_silence_before_the_first_word_is_not_length(make_model) -> None:
    script = letters("one two", 50)
    finals, _, shown = ended(make_model, script, rules(max_length_s=1.2), 50 + 28)
    assert (finals, shown) == ([], "one two")
    finals, _, _ = ended(make_model, script, rules(max_length_s=1.2, nothing_s=1.0), 50 + 32)
    assert [(text, rule) for text, rule, _ in finals] == [("one two", "length")]


@pytest.mark.parametrize(
    ("text", "finals", "said"),
    [
        ("one two three four", ["one two"], "thr"),  # at the frame of the r
        ("one two th", ["one two"], "th"),  # and nothing more: it may go on
        ("one two ", ["one two "], ""),  # complete: a space is behind it
        ("onetwothreefour", ["onetwothree"], ""),  # a word without an end: somewhere it has to end
        ("one", ["one"], ""),
    ],
)
def test_length_ends_behind_a_complete_word(make_model, text: str, finals: list[str], said: str) -> None:
    found, histories, shown = ended(make_model, letters(text, 0), rules(max_length_s=11 * FRAME_S), 12)
    assert [final.strip() for final, _, _ in found] == [final.strip() for final in finals]
    assert histories == [[label(c) for c in said]]
    assert shown.startswith(said)


def test_a_word_behind_which_nothing_comes_is_complete(make_model) -> None:
    finals, said, _ = ended(make_model, letters("one two", 0), rules(max_length_s=1.0), 27)
    assert (finals, said) == ([("one two", "length", 1.04)], [[]])


def test_a_carried_word_goes_on_in_the_next_utterance(make_model) -> None:
    endpoint = rules(max_length_s=11 * FRAME_S, trailing_silence_s=0.2)
    finals, said, _ = ended(make_model, letters("one two three", 0), endpoint, 40)
    assert [(text, rule) for text, rule, _ in finals] == [("one two", "length"), ("three", "silence")]
    assert said == [[label(c) for c in "thr"], []]


def test_a_label_that_is_being_said_is_no_silence(make_model) -> None:
    """A CTC run is given when it has ended; until then it is open, and no rule may overlook it."""
    script = [*letters("a", 0), *letters("b", 2, width=30)]
    endpoint = rules(trailing_silence_s=0.4, nothing_s=0.4)
    finals, _, _ = ended(make_model, script, endpoint, 30)
    assert finals == []
    finals, _, _ = ended(make_model, script, endpoint, 45)
    assert [(text, rule) for text, rule, _ in finals] == [("ab", "silence")]
    finals, _, _ = ended(make_model, script[1:], endpoint, 30)
    assert finals == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("topology", [None, "ctc"])
def test_no_label_is_given_twice_or_lost(make_model, speech_like, topology: str | None, seed: int) -> None:
    """Where labels have no history, the utterances of a stream are the stream, cut."""
    kind = "ctc" if topology is None else "transducer"
    recognizer, samples = asr.load(make_model(kind=kind, topology=topology)), speech_like(5.0, seed=seed)
    if topology is not None:
        network = recognizer.network
        with torch.no_grad():
            network.predictor.embedding.weight.zero_()
            # Only what differs from the mean frame is heard: random weights would hold one label for ever.
            features, lengths, _ = recognizer.fbank(torch.from_numpy(samples)[None], torch.tensor([40000]))
            mean = network.encode(features, lengths).y[0].mean(dim=0)
            network.joiner.encoder.bias.copy_(-network.joiner.encoder.weight @ mean)
            network.joiner.output.bias.zero_()
    whole = times(recognizer.transcribe(samples, RATE))
    endpoint = EndpointConfig(trailing_silence_s=0.12, nothing_s=0.2, max_length_s=0.32)
    session = recognizer.stream(RATE, endpoint=endpoint)
    found = utterances(fed(session, samples, [500]))
    assert len(found) > 5
    assert [token for _, _, tokens in found for token in tokens] == whole


@pytest.mark.parametrize("piece", [1, 80, 1000])
@pytest.mark.parametrize("name", ["lstm", "conformer", "endpointed"])
def test_a_frame_comes_as_soon_as_it_can(make_model, speech_like, name: str, piece: int) -> None:
    recognizer = asr.load(make_model(encoder=CHUNKED if name == "conformer" else None))
    endpoint = EndpointConfig() if name == "endpointed" else None
    session, samples, frames, waited = recognizer.stream(RATE, endpoint=endpoint), speech_like(1.5), 0, []
    for start in range(0, len(samples), piece):
        session.feed(samples[start : start + piece])
        if session.frames > frames:
            waited.append((start + piece) / RATE - frames * FRAME_S)
            frames = session.frames
    stated = recognizer.algorithmic_latency_s
    assert stated == pytest.approx(0.1275)
    assert all(stated - 1e-9 <= each <= stated + piece / RATE for each in waited)
    assert len(waited) > 8


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
    monkeypatch.delitem(sys.modules, "silero_vad.model", raising=False)
    monkeypatch.delitem(sys.modules, "silero_vad", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    voice, found = SileroVad(RATE), []
    assert threads == [1, 3]  # its import sets one, for the whole process
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
