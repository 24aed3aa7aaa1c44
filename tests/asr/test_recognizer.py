"""Files, arrays, batches and live streams give the same transcript; broken model directories are named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr import state as states
from asr.encoders import ConformerEncoderConfig
from asr.errors import AudioError, ModelError, StreamingError
from asr.layers.context import ContextConfig
from asr.live import Update, feed, feed_file, word_appearances
from asr.recognizer import Event, Recognizer, Transcript, Word
from asr.score.latency import StreamStats
from asr.search import SearchResult

RATE = 8000


def tokens(transcript: Transcript) -> list[tuple[str, float, float]]:
    return [(t.piece, round(t.start_s, 6), round(t.end_s, 6)) for t in transcript.tokens]


@pytest.fixture(params=["transducer", "lstm-predictor", "ctc"])
def recognizer(request: pytest.FixtureRequest, make_model) -> asr.Recognizer:
    return asr.load(make_model(kind=request.param))


def test_live_equals_the_file_in_any_chunking(recognizer: asr.Recognizer, speech_like) -> None:
    samples = speech_like(3.1)
    whole = recognizer.transcribe(samples, RATE)
    assert len(whole.tokens) > 5
    for seed in range(3):
        rng, session, position, partials = random.Random(seed), recognizer.stream(RATE), 0, []
        while position < len(samples):
            size = rng.choice([0, 1, 7, 80, 333, 1000, 9000])
            partials += session.feed(samples[position : position + size])
            position += size
        (final,) = session.finish()
        assert final.kind == "final"
        assert tokens(final.transcript) == tokens(whole)
        assert final.text == whole.text
        assert all(final.text.startswith(event.text) for event in partials)
        assert final.transcript.duration_s == pytest.approx(3.1)


def test_a_batch_equals_one_by_one(recognizer: asr.Recognizer, speech_like) -> None:
    recordings = [speech_like(s, seed=i) for i, s in enumerate([1.0, 2.3, 0.05, 1.7])]
    recordings.append(np.zeros(0, np.float32))
    batch = recognizer.transcribe_batch(recordings)
    for samples, transcript in zip(recordings, batch, strict=True):
        assert tokens(recognizer.transcribe_batch([samples])[0]) == tokens(transcript)
    assert batch[-1].text == ""


def test_file_array_and_live_file_agree(recognizer: asr.Recognizer, speech_like, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(2.0, 16000), 16000)
    stored, rate = soundfile.read(path, dtype="float32")
    expected = tokens(recognizer.transcribe(path))
    assert expected == tokens(recognizer.transcribe(stored, rate))
    assert expected == tokens(recognizer.transcribe((stored * 32768).astype(np.int16), rate))
    updates = list(feed_file(recognizer, path, 0.07))
    assert tokens(updates[-1].transcript) == expected
    assert updates[-1].final
    assert all(not update.final for update in updates[:-1])
    heard = [update.heard_s for update in updates]
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(2.0)
    # A token cannot appear before the audio of its frame.
    for update in updates[:-1]:
        assert update.transcript.tokens[-1].start_s <= update.heard_s


def test_a_word_appears_when_it_is_whole() -> None:
    def update(ends_s: list[float], heard_s: float, kind: Literal["partial", "final"] = "partial") -> Update:
        """Tokens that end there; words of two tokens."""
        words = tuple(Word("ab", 0.0, end_s, 1.0) for end_s in ends_s[1::2])
        transcript = Transcript("", words, (), heard_s)
        last_end_s = ends_s[-1] if ends_s else None
        return Update(Event(kind, lambda: transcript, last_end_s=last_end_s), heard_s, StreamStats())

    ends_s = [0.1, 0.2, 0.3, 0.4]
    shown = [update(ends_s[:count], 0.1 + 0.1 * count) for count in (0, 1, 2, 3, 4)]
    assert word_appearances([*shown, update(ends_s, 0.9, "final")]) == pytest.approx([0.3, 0.5])
    assert word_appearances([shown[1], update(ends_s, 0.9, "final")]) == pytest.approx([0.9, 0.9])
    assert word_appearances([update([], 0.5, "final")]) == []


def test_long_streams_cost_no_more_than_their_length(recognizer: asr.Recognizer, speech_like) -> None:
    """Transcripts are made when they are looked at, not with every update."""
    made, decode = [], recognizer.tokenizer.decode
    recognizer.tokenizer.decode = lambda ids: made.append(len(ids)) or decode(ids)
    samples = speech_like(6.0)
    updates = list(feed(recognizer, [samples[i : i + 400] for i in range(0, len(samples), 400)], RATE))
    assert len(updates) > 15
    assert word_appearances(updates)
    assert len(made) == 1


@pytest.mark.parametrize("kind", ["transducer", "ctc"])
def test_long_recordings_of_a_batch_go_through_in_blocks(
    make_model, kind: str, speech_like, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = asr.load(make_model(kind=kind))
    recordings = [speech_like(s, seed=i) for i, s in enumerate([5.0, 0.7, 0.0, 3.1])]
    whole = [tokens(t) for t in recognizer.transcribe_batch(recordings)]
    monkeypatch.setattr("asr.recognizer.WHOLE_S", 4.0)
    monkeypatch.setattr("asr.pipeline.BLOCK_S", 0.9)
    monkeypatch.setattr(Recognizer, "at_once", None)
    assert [tokens(t) for t in recognizer.transcribe_batch(recordings)] == whole
    assert all(whole[i] for i in (0, 1, 3))


@pytest.mark.parametrize(
    ("positions", "chunk", "longest_s", "of_four_s"),
    [("rotary", None, 1800, 900), ("relative", None, 463, 232), ("rotary", 4, 991, 495)],
)
def test_what_is_heard_whole_is_bounded(
    make_model, positions, chunk, longest_s: int, of_four_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more goes in windows, and four recordings that are more together one by one."""
    context = ContextConfig(chunk=chunk)
    encoder = ConformerEncoderConfig(
        dim=24, heads=2, layers=1, kernel=5, contexts=(context,), positions=positions
    )
    recognizer = asr.load(make_model(encoder=encoder))
    whole: list[list[int]] = []

    def at_once(self: Recognizer, samples: torch.Tensor, lengths: torch.Tensor, phrases: object):
        whole.append([round(n / RATE) for n in lengths.tolist()])
        return SearchResult([[] for _ in lengths], [0] * len(lengths))

    monkeypatch.setattr(Recognizer, "at_once", at_once)
    long = np.zeros((longest_s + 10) * RATE, np.float32)
    assert round(recognizer.longest_whole_s) == longest_s
    assert recognizer.windows_for(longest_s - 1) is None
    assert recognizer.windows_for(longest_s + 1) == asr.WindowConfig()
    recognizer.transcribe_batch([long[: (of_four_s - 1) * RATE], *[long[:0]] * 3])
    recognizer.transcribe_batch([long[: (of_four_s + 10) * RATE], *[long[:0]] * 3])
    assert whole == [[of_four_s - 1, 0, 0, 0], [of_four_s + 10], [0], [0], [0]]


def test_words_carry_times_and_confidence(recognizer: asr.Recognizer, speech_like) -> None:
    transcript = recognizer.transcribe(speech_like(3.0), RATE)
    assert transcript.text == " ".join(word.text for word in transcript.words)
    for word in transcript.words:
        assert 0 <= word.start_s < word.end_s
        assert 0 < word.confidence <= 1


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.02, 0.1])
def test_very_short_audio(recognizer: asr.Recognizer, seconds: float, speech_like) -> None:
    session = recognizer.stream()
    session.feed(speech_like(seconds))
    (final,) = session.finish()
    assert tokens(final.transcript) == tokens(recognizer.transcribe(speech_like(seconds), RATE))


def test_state_is_constant_and_sessions_are_independent(recognizer: asr.Recognizer, speech_like) -> None:
    a, b = speech_like(2.0, seed=1), speech_like(2.0, seed=2)
    first, second = recognizer.stream(), recognizer.stream()
    sizes = set()
    for i in range(0, len(a), 500):
        first.feed(a[i : i + 500])
        second.feed(b[i : i + 500])
        sizes.add(first.state_bytes)
    assert len(sizes) == 1
    assert sizes.pop() > 0
    assert tokens(first.finish()[0].transcript) == tokens(recognizer.transcribe(a, RATE))
    assert tokens(second.finish()[0].transcript) == tokens(recognizer.transcribe(b, RATE))


@torch.inference_mode()
def test_batched_sessions_that_come_and_go(recognizer: asr.Recognizer, speech_like) -> None:
    """A server's way: stack the states of sessions at different ages, step them together, split again."""
    long, short = speech_like(2.0, seed=1), speech_like(0.8, seed=2)
    found: list[list] = [[], []]
    step = recognizer.step(
        torch.from_numpy(long[None, :8000]), torch.tensor([8000]), recognizer.initial_state()
    )
    found[0] += step.tokens[0]
    state = states.stack([step.state, recognizer.initial_state()])
    chunk = torch.zeros(2, 8000)
    chunk[0] = torch.from_numpy(long[8000:])
    chunk[1, :6400] = torch.from_numpy(short)
    step = recognizer.step(chunk, torch.tensor([8000, 6400]), state)
    last = [recognizer.flush(one) for one in states.split(step.state)]
    for b, samples in enumerate((long, short)):
        found[b] += step.tokens[b] + last[b].tokens[0]
        expected = recognizer.transcribe(samples, RATE)
        assert tokens(recognizer.transcript(found[b], len(samples))) == tokens(expected)


def test_a_finished_stream_is_closed(recognizer: asr.Recognizer) -> None:
    session = recognizer.stream()
    session.finish()
    for call in (session.finish, lambda: session.feed(np.zeros(800, np.float32))):
        with pytest.raises(StreamingError, match="has been finished"):
            call()


def test_batches_take_integers_and_refuse_what_is_not_a_number(
    recognizer: asr.Recognizer, speech_like
) -> None:
    samples = speech_like(1.5)
    integers = np.round(samples * 32767).astype(np.int16)
    exact = integers.astype(np.float32) / 32768
    by_integers, by_floats = recognizer.transcribe_batch([integers, exact])
    assert tokens(by_integers) == tokens(by_floats)
    with pytest.raises(AudioError, match="recording 1"):
        recognizer.transcribe_batch([samples, np.array([np.nan], np.float32)])


def test_bad_samples_are_refused(recognizer: asr.Recognizer) -> None:
    for bad in (np.array([0.0, np.nan]), np.array([np.inf]), np.zeros((2, 2)), np.array(0.5)):
        with pytest.raises(AudioError):
            recognizer.stream().feed(bad)
        with pytest.raises(AudioError):
            recognizer.transcribe(bad)


def test_latency_stated_is_latency_measured(recognizer: asr.Recognizer, speech_like) -> None:
    """Change one sample: the earliest encoder frame that moves starts one algorithmic latency before."""
    samples = torch.from_numpy(speech_like(2.0))[None]
    length = torch.tensor([samples.shape[1]])

    @torch.inference_mode()
    def encode(x: torch.Tensor) -> torch.Tensor:
        features, lengths, _ = recognizer.fbank(x, length)
        return recognizer.network.encode(features, lengths).y[0]

    before, frame_s, worst = encode(samples), 1 / recognizer.network.encoder.frame_rate, 0.0
    for sample in range(8000, 8640, 10):
        changed = samples.clone()
        changed[0, sample] += 0.5
        moved = (encode(changed) - before).abs().amax(-1) > 1e-6
        worst = max(worst, sample / RATE - int(moved.nonzero()[0]) * frame_s)
    stated = recognizer.algorithmic_latency_s
    assert stated - 0.003 < worst <= stated


def test_bidirectional_transcribes_whole_and_refuses_live(make_model, speech_like, tmp_path: Path) -> None:
    recognizer = asr.load(make_model(bidirectional=True))
    assert not recognizer.streaming
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(1.0), RATE, subtype="FLOAT")
    assert tokens(recognizer.transcribe(path)) == tokens(recognizer.transcribe(speech_like(1.0), RATE))
    silent, spoken = recognizer.transcribe_batch([np.zeros(0, np.float32), speech_like(1.0)])
    assert silent.text == ""
    assert tokens(spoken) == tokens(recognizer.transcribe(speech_like(1.0), RATE))
    with pytest.raises(StreamingError, match="cannot stream"):
        recognizer.stream()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_file_of_one_sample(make_model, tmp_path: Path, bidirectional: bool) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1, np.float32), 48000)
    assert asr.load(make_model(bidirectional=bidirectional)).transcribe(path).duration_s < 0.001


def test_a_model_that_streams_asks_for_no_length(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a pipe there is none to be had before its end."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(RATE, np.float32), RATE)
    monkeypatch.setattr("asr.recognizer.probe", None)
    assert asr.load(make_model()).transcribe(path).duration_s == 1.0
    with pytest.raises(TypeError):
        asr.load(make_model(bidirectional=True)).transcribe(path)


@torch.inference_mode()
def test_times_do_not_drift_where_a_frame_is_not_10_ms(make_model) -> None:
    """At 22,050 Hz the frame shift is 220 samples: 9.977 ms."""
    directory = make_model()
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("sample_rate: 8000", "sample_rate: 22050"))
    recognizer = asr.load(directory)
    assert recognizer.network.encoder.frame_shift_s == recognizer.fbank.shift_s == 220 / 22050


def test_saved_model_is_the_same_model(make_model, speech_like) -> None:
    directory = make_model()
    first, second = asr.load(directory), asr.load(str(directory))
    assert first.transcribe(speech_like(1.5), RATE) == second.transcribe(speech_like(1.5), RATE)


def break_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def break_config(directory: Path) -> None:
    path = directory / "config.yaml"
    path.write_text(path.read_text().replace("hidden: 24", "hidden: 25"))


def break_vocabulary(directory: Path) -> None:
    path = directory / "config.yaml"
    path.write_text(path.read_text().replace("vocab_size: 6", "vocab_size: 7"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").unlink(), r"found no model\.safetensors"),
        (lambda d: (d / "config.yaml").unlink(), r"found no config\.yaml"),
        (break_weights, "not a readable safetensors file"),
        (break_config, "weights do not fit"),
        (break_vocabulary, "different models"),
    ],
)
def test_broken_model_directories_are_named(make_model, damage, message: str) -> None:
    directory = make_model()
    damage(directory)
    with pytest.raises(ModelError, match=message) as caught:
        asr.load(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_model_directory() -> None:
    with pytest.raises(ModelError, match="expected a model directory, found nothing"):
        asr.load("/no/such/place")
