"""Final results of a second hearing: equal to hearing the utterance whole, in any chunking, and cut well."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import asr
from asr.config import override
from asr.encoders import ConformerEncoderConfig, WindowedEncoder
from asr.endpoint import EndpointConfig
from asr.errors import ConfigError
from asr.layers.context import ContextConfig
from asr.live import Response, Update, _Watch, feed, word_appearances
from asr.recognizer import Event, Recognizer, Transcript, Word
from asr.score.latency import StreamStats
from asr.search import SearchConfig
from asr.second_hearing import BLOCK_S, KEPT_S, SecondHearing
from asr.train.recipe import Recipe
from tests.asr.scripted import LETTERS, Scripted, letters
from tests.asr.streamed import fed, times, utterances

RATE = 8000
FRAME_S = 0.04
CONTEXTS = (ContextConfig(chunk=4, left_chunks=2), ContextConfig())
ENCODER = ConformerEncoderConfig(dim=24, heads=2, layers=2, kernel=5, contexts=CONTEXTS)
WHOLE = ("finals=whole",)
SILENCE = EndpointConfig(trailing_silence_s=0.24, nothing_s=0.4, max_length_s=0.9)


@pytest.fixture
def recognizer(make_model) -> Recognizer:
    return asr.load(make_model(encoder=ENCODER), settings=WHOLE)


@pytest.mark.parametrize("kind", ["transducer", "lstm-predictor", "ctc", "beam", "ctc-beam"])
def test_a_stream_of_one_utterance_says_what_is_heard_whole(kind: str, make_model, speech_like) -> None:
    settings = [*WHOLE, "method=beam", "beam=3"] if kind.endswith("beam") else WHOLE
    kind = {"beam": "transducer", "ctc-beam": "ctc"}.get(kind, kind)
    # Of random weights that do not say one label for ever.
    model = make_model(kind=kind, encoder=ENCODER, seed=int(kind == "lstm-predictor"))
    recognizer, samples = asr.load(model, settings=settings), speech_like(9.0, seed=2)
    live, whole = (
        asr.load(model, latency=latency, settings=settings[1:]) for latency in (None, asr.Latency(None))
    )
    expected = times(whole.transcribe(samples, RATE))
    assert expected != times(live.transcribe(samples, RATE))
    truncated = whole.transcribe(samples, RATE).truncated_frames
    assert times(recognizer.transcribe(samples, RATE)) == expected
    torch.testing.assert_close(recognizer.encode(samples), whole.encode(samples))
    for sizes in ([1000000], [400], [7, 333, 2000, 9000]):
        events = fed(recognizer.stream(RATE), samples, sizes)
        assert times(events[-1].transcript) == expected
        assert events[-1].transcript.truncated_frames == truncated
    # What is shown before is what the model says live.
    shown = [times(e.transcript) for e in fed(live.stream(RATE), samples, [400])]
    assert [times(e.transcript) for e in fed(recognizer.stream(RATE), samples, [400])][:-1] == shown[:-1]


def test_batches_and_long_recordings_say_the_same(recognizer: Recognizer, speech_like) -> None:
    """In windows of 30 s, live, as a file and in batches."""
    recordings = [speech_like(41.0, seed=1), speech_like(3.0, seed=2)]
    batch = recognizer.transcribe_batch(recordings)
    assert [times(each) for each in batch] == [
        times(recognizer.transcribe(each, RATE)) for each in recordings
    ]
    session = recognizer.stream(RATE)
    sizes = {session.state_bytes}
    for start in range(0, len(recordings[0]), 5000):
        session.feed(recordings[0][start : start + 5000])
        sizes.add(session.state_bytes)
    assert times(session.finish()[-1].transcript) == times(batch[0])
    assert len(sizes) == 1
    assert recognizer.windows_for(30) is None
    assert recognizer.windows_for(31) == asr.WindowConfig()
    assert recognizer.longest_whole_s == 30


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_utterances_are_the_same_in_any_chunking(method: str, make_model, speech_like) -> None:
    recognizer = asr.load(make_model(encoder=ENCODER), settings=[*WHOLE, f"method={method}"])
    samples = np.concatenate([speech_like(2.5, seed=1), np.zeros(6000, np.float32), speech_like(2, seed=2)])
    found = []
    for seed, sizes in enumerate([[1000000], [400], [1, 7, 333, 2000, 9000]]):
        session = recognizer.stream(RATE, endpoint=SILENCE)
        found.append(utterances(fed(session, samples, sizes, seed)))
    assert found[0] == found[1] == found[2]
    assert {rule for _, rule, _ in found[0]} & {"silence", "length"}
    assert [number for number, _, _ in found[0]] == list(range(len(found[0])))
    assert len(found[0]) > 4


def test_a_border_that_has_been_heard_is_where_hearing_is(recognizer: Recognizer, speech_like) -> None:
    samples, again = speech_like(9.0, seed=3), SecondHearing(recognizer.finals)
    again.feed(samples)
    heard = round(BLOCK_S * RATE)
    assert len(samples) - len(again._waiting) == heard
    for found, start, stop in ((again.end(30), 0, heard), (again.end(), heard, len(samples))):
        alone = times(recognizer.transcribe(samples[start:stop], RATE))
        shifted = [(round(a + start / RATE, 6), round(b + start / RATE, 6)) for _, a, b in alone]
        said = [(round(t.frame * FRAME_S, 6), round(t.end_frame * FRAME_S, 6)) for t in found.tokens]
        assert said == shifted


@pytest.mark.parametrize(
    ("text", "every", "endpoint", "border"),
    [
        # The last label ends at 29, the carried word begins at 32.
        ("one two three", 4, EndpointConfig(max_length_s=1.6), 30),
        # The last label ends at 5, the rule is asked at 28: after every chunk of four frames.
        ("one", 2, EndpointConfig(trailing_silence_s=0.8), 16),
        ("", 1, EndpointConfig(nothing_s=2.0), 26),
    ],
)
def test_where_utterances_are_cut(
    recognizer: Recognizer, monkeypatch, text: str, every: int, endpoint, border: int
) -> None:
    recognizer.search, recognizer.tokenizer = Scripted(letters(text, 0, every)), LETTERS
    session = recognizer.stream(RATE, endpoint=endpoint)
    borders = Borders(session, monkeypatch)
    for _ in range(60):
        session.feed(np.zeros(320, np.float32))
        if borders.frames:
            break
    assert borders.frames == [border]


def test_utterances_that_say_nothing_when_heard_again_keep_their_number(recognizer: Recognizer) -> None:
    assert recognizer.finals is not None
    recognizer.search, recognizer.tokenizer = Scripted([*letters("one", 0), *letters("two", 30)]), LETTERS
    recognizer.finals.search = Scripted([])
    session = recognizer.stream(RATE, endpoint=EndpointConfig(trailing_silence_s=0.4))
    events = [event for _ in range(60) for event in session.feed(np.zeros(320, np.float32))]
    said = [(e.kind, e.utterance, e.text) for e in (*events, *session.finish())]
    assert [each for each in said if each[0] == "final"] == [("final", number, "") for number in range(3)]
    assert ("partial", 0, "one") in said
    assert ("partial", 1, "two") in said


class Borders:
    """Notes where the utterances of a stream were cut."""

    def __init__(self, session: asr.Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = list[int | None]()
        again = session._again
        assert again is not None
        for name in ("end", "forget"):
            monkeypatch.setattr(again, name, self._noting(getattr(again, name)))

    def _noting(self, method):
        def noted(frame: int | None = None):
            self.frames.append(frame)
            return method(frame)

        return noted


@pytest.mark.parametrize("seed", range(3))
def test_each_utterance_is_heard_as_a_recording_of_its_own(
    recognizer: Recognizer, speech_like, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """From border to border: all of the audio, each part once."""
    samples = np.concatenate(
        [speech_like(2.5, seed=seed), np.zeros(6 * RATE, np.float32), speech_like(2, seed=9 + seed)]
    )
    session = recognizer.stream(RATE, endpoint=SILENCE)
    borders = Borders(session, monkeypatch)
    found = utterances(fed(session, samples, [1234]))
    assert borders.frames.pop() is None
    edges = [0, *(round(frame * FRAME_S * RATE) for frame in borders.frames), len(samples)]
    assert edges == sorted(edges)
    expected = []
    for start, stop in itertools.pairwise(edges):
        alone = times(recognizer.transcribe(samples[start:stop], RATE))
        shift = start / RATE
        expected.append([(piece, round(a + shift, 6), round(b + shift, 6)) for piece, a, b in alone])
    assert len(found) > 3
    said = iter(expected)
    assert all(tokens in said for _, _, tokens in found)  # in this order; between them what was forgotten


def test_what_was_forgotten_is_not_heard_again(make_model, speech_like, monkeypatch) -> None:
    recognizer = asr.load(make_model(encoder=ENCODER), settings=WHOLE)
    bias = recognizer.network.joiner.output.bias
    with torch.no_grad():
        bias[0] += 1e4  # blank
    session = recognizer.stream(RATE, endpoint=EndpointConfig(nothing_s=1.0))
    borders = Borders(session, monkeypatch)
    assert session.feed(speech_like(5.0, seed=1)) == []
    assert len(borders.frames) == 4
    with torch.no_grad():
        bias[0] -= 1e4
    samples = speech_like(1.5, seed=2)
    session.feed(samples)
    (final,) = session.finish()[-1:]
    assert borders.frames.pop() is None
    begin_s = borders.frames[-1] * FRAME_S
    assert 3.5 < begin_s < 5.0
    assert all(start_s >= begin_s - 1e-6 for _, start_s, _ in times(final.transcript))
    assert final.transcript.duration_s == pytest.approx(6.5)


def test_no_more_audio_is_kept_than_it_takes(recognizer: Recognizer, speech_like) -> None:
    session = recognizer.stream(RATE, endpoint=EndpointConfig())
    samples, before = speech_like(4.0, seed=4), session.state_bytes
    longest = 0
    for _ in range(8):
        for start in range(0, len(samples), 777):
            session.feed(samples[start : start + 777])
            longest = max(longest, len(session._again._waiting))
    assert longest <= (KEPT_S + BLOCK_S + 0.2) * RATE
    assert session.state_bytes == before
    assert before > 4 * RATE * (KEPT_S + BLOCK_S)


def test_hotwords_are_listened_for_in_both(make_model, speech_like) -> None:
    recognizer = asr.load(make_model(encoder=ENCODER), settings=[*WHOLE, "method=beam"])
    samples, word = speech_like(2.0, seed=3), recognizer.tokenizer.decode([1])
    plain = recognizer.transcribe(samples, RATE).text
    session = recognizer.stream(RATE, hotwords=[f"{word}\t60"])
    final = fed(session, samples, [800])[-1].text
    assert final != plain
    assert final == recognizer.transcribe(samples, RATE, hotwords=[f"{word}\t60"]).text
    assert final == recognizer.transcribe_batch([samples], hotwords=[[f"{word}\t60"]])[0].text


def test_its_n_best_is_what_is_told(make_model, speech_like) -> None:
    settings = [*WHOLE, "method=beam", "nbest=3", "rescore.ctc=0.5"]
    recognizer = asr.load(make_model(kind="hybrid", encoder=ENCODER), settings=settings)
    samples = speech_like(8.0, seed=5)
    expected = recognizer.transcribe_batch([samples])[0]
    final = fed(recognizer.stream(RATE), samples, [3000])[-1].transcript
    assert len(expected.alternatives) == 3
    assert [each.text for each in final.alternatives] == [each.text for each in expected.alternatives]
    assert final.text == expected.text
    assert [each.ctc for each in final.alternatives] == pytest.approx(
        [each.ctc for each in expected.alternatives], rel=1e-4
    )


def test_every_utterance_has_a_second_pass(make_model, speech_like, monkeypatch) -> None:
    settings = [*WHOLE, "method=beam", "nbest=3", "rescore.ctc=0.5"]
    recognizer = asr.load(make_model(kind="hybrid", encoder=ENCODER), settings=settings)
    samples = np.concatenate([speech_like(2.5, seed=1), np.zeros(6000, np.float32), speech_like(2, seed=2)])
    session = recognizer.stream(RATE, endpoint=SILENCE)
    borders = Borders(session, monkeypatch)
    finals = [event.transcript for event in fed(session, samples, [1234]) if event.kind == "final"]
    assert borders.frames.pop() is None
    edges = [0, *(round(frame * FRAME_S * RATE) for frame in borders.frames), len(samples)]
    alone = [recognizer.transcribe(samples[start:stop], RATE) for start, stop in itertools.pairwise(edges)]
    expected = {tuple(each.text for each in found.alternatives): found for found in alone}
    assert len(finals) > 3
    for final in finals:
        found = expected[tuple(each.text for each in final.alternatives)]
        assert len(found.alternatives) == 3
        for one, other in zip(final.alternatives, found.alternatives, strict=True):
            assert (one.score, one.ctc) == pytest.approx((other.score, other.ctc), rel=1e-4)
    for rules, found in (({"nothing_s": None}, "no end"), ({"max_length_s": 50}, "61 s")):
        with pytest.raises(ConfigError, match=f"expected utterances of at most 60 s.* found {found}"):
            recognizer.stream(RATE, endpoint=EndpointConfig(**rules))
    recognizer.stream(RATE, endpoint=EndpointConfig(max_length_s=49))


def test_a_final_result_says_that_it_was_heard_again(recognizer: Recognizer, speech_like) -> None:
    samples = speech_like(2.0)
    chunks = [samples[i : i + 800] for i in range(0, len(samples), 800)]
    updates = list(feed(recognizer, chunks, RATE))
    assert [update.event.heard_again for update in updates] == [update.final for update in updates]
    live = recognizer.with_finals("live")
    assert not any(update.event.heard_again for update in feed(live, chunks, RATE))


def test_who_hears_whole_needs_no_second_hearing(make_model) -> None:
    model = make_model(encoder=ENCODER)
    assert asr.load(model).finals is None
    assert asr.load(model, latency=asr.Latency(None), settings=WHOLE).finals is None
    windows = asr.WindowConfig()
    windowed = asr.load(model, latency=asr.Latency(None), settings=WHOLE, windows=windows)
    assert windowed.finals is None
    sooner = asr.load(model, latency=asr.Latency(0.08), settings=WHOLE)
    assert sooner.finals is not None
    assert isinstance(sooner.finals.network.encoder, WindowedEncoder)
    assert sooner.finals.finals is None


def test_it_is_refused_where_it_cannot_be(make_model) -> None:
    with pytest.raises(ConfigError, match=r"finals=whole: expected a network .* found one trained for one"):
        asr.load(make_model(), settings=WHOLE)
    chunks = ENCODER.model_copy(update={"contexts": CONTEXTS[:1]})
    with pytest.raises(ConfigError, match=r"found one trained for 160"):
        asr.load(make_model(encoder=chunks), settings=WHOLE)
    with pytest.raises(ValueError, match="synchronous=alignment and finals=whole"):
        SearchConfig(method="beam", synchronous="alignment", finals="whole")


def test_a_recipe_trains_what_its_final_results_need(make_model) -> None:
    whole = {"network": {"encoder": {"kind": "conformer", "contexts": [{"chunk": 4, "left_chunks": 2}, {}]}}}
    recipe = Recipe.model_validate({"name": "a", "search": {"finals": "whole"}, **whole})
    with pytest.raises(ConfigError, match=r"search.finals=whole needs a network that is trained"):
        override(recipe, ["network.encoder.contexts=[{chunk: 4, left_chunks: 2}]"])
    with pytest.raises(ConfigError, match=r"search.finals=whole needs a network that is trained"):
        override(Recipe(name="a"), ["search.finals=whole"])


def test_commands_say_where_final_results_come_from(make_model, write_tones, tmp_path: Path, call) -> None:
    model, out = make_model(encoder=ENCODER), tmp_path / "whole"
    assert call("export", model, out, "--search", "finals=whole", "--weights", "float32")[0] == 0
    data = write_tones(tmp_path / "data", {"one": 500.0}, {"test": 2})
    second = "final results are of a second hearing, of whole utterances"
    for options, line in (((), "heard whole, as final results are (search.finals)"), (("--stream",), second)):
        code, said, err = call("decode", out, "--data", data / "test.jsonl.gz", *options)
        assert code == 0, err
        assert line in said.splitlines()
        assert ("computing at the end  mean" in said) == bool(options)
        _, said, _ = call("decode", model, "--data", data / "test.jsonl.gz", *options)
        assert "final results" not in said
    _, said, _ = call("info", out)
    assert "final results         of a second hearing, of whole utterances" in said
    assert f"state per stream      {asr.load(out).stream().state_bytes:,} bytes" in said
    code, said, err = call("parity", out, data / "one-test-0.wav")
    assert code == 0, err
    assert "tokens equal" in said


def test_how_soon_the_first_word_came_is_of_what_was_shown() -> None:
    """Though the first word of the final result may be another."""
    watch = _Watch()
    shown = Event("partial", lambda: None, first_end_s=0.5, last_end_s=0.5)
    assert watch.update(shown, 1.0, StreamStats(), 0.0).response is None
    final = Event("final", lambda: None, first_end_s=3.0, last_end_s=3.5, heard_again=True)
    response = watch.update(final, 4.0, StreamStats(audio_s=4.0, compute_s=1.0), 0.25).response
    assert response == Response(0.5, 0.5, 0.25, 0.25)


def test_a_word_that_only_the_final_result_has_appears_with_it() -> None:
    def update(text: str, heard_s: float, final: bool = False) -> Update:
        """Every word of a second, shown half a second later."""
        words = tuple(Word(word, i, i + 1.0, 1.0) for i, word in enumerate(text.split()))
        event = Event(
            "final" if final else "partial",
            lambda: Transcript(text, words, (), heard_s),
            last_end_s=float(len(words)),
            heard_again=final,
        )
        return Update(event, heard_s, StreamStats())

    shown = [update(text, len(text.split()) + 0.5) for text in ("a", "a b", "a b c", "a b c d")]
    assert word_appearances([*shown, update("a x c y d", 6.0, final=True)]) == [1.5, 6.0, 3.5, 6.0, 4.5]
    assert word_appearances([*shown, update("", 6.0, final=True)]) == []
    assert word_appearances([update("a", 6.0, final=True)]) == [6.0]
