"""What recordings and models may come to, for every search, in batches and live: nothing breaks unsaid."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

import asr
from asr.errors import AsrError, AudioError, ConfigError, ModelError, TokenError
from asr.recognizer import Recognizer, Transcript
from asr.search import SearchConfig
from tests.asr.naive_greedy import naive_greedy
from tests.asr.test_fusion import ARPA

RATE, BOUND = 8000, 3
SEARCHES = (
    "greedy",
    "beam",
    "beam lm",
    "beam hotwords",
    "beam lm hotwords",
    "ctc",
    "ctc beam",
    "ctc beam lm",
    "ctc beam hotwords",
)


class Made(NamedTuple):
    """A recogniser, and how it was asked for."""

    model: Path
    settings: list[str]
    recognizer: Recognizer


def settings(name: str, folder: Path) -> list[str]:
    found = [f"max_symbols={BOUND}", f"head={'ctc' if 'ctc' in name else 'transducer'}"]
    if "beam" in name:
        found += ["method=beam", "beam=3"]
    if "lm" in name:
        (folder / "lm.arpa").write_text(ARPA)
        found += [f"fusion.lm={folder / 'lm.arpa'}"]
    if "hotwords" in name:
        (folder / "words.txt").write_text("zero one\ntwo\t6\n")
        found += [f"fusion.biasing.hotwords={folder / 'words.txt'}"]
    return found


@pytest.fixture
def make(make_model, tmp_path: Path) -> Callable[..., Made]:
    def made(name: str, blank: float = 0.0, **options: Any) -> Made:
        """With so much more for blank in both heads."""
        model, chosen = make_model(kind="hybrid", **options), settings(name, tmp_path)
        recognizer = asr.load(model, search=SearchConfig(), settings=chosen)
        network = recognizer.network
        network.joiner.output.bias.data[0] += blank
        network.ctc.bias.data[0] += blank
        return Made(model, chosen, recognizer)

    return made


def content(transcript: Transcript, times: bool = True) -> list[tuple[Any, ...]]:
    rows = [(t.piece, *([round(t.start_s, 6), round(t.end_s, 6)] * times)) for t in transcript.tokens]
    assert all(0 < t.confidence <= 1 for t in transcript.tokens)
    return [*rows, ("duration", transcript.duration_s), ("truncated", transcript.truncated_frames)]


def live(recognizer: Recognizer, samples: np.ndarray, piece: int) -> Transcript:
    session = recognizer.stream()
    for start in range(0, len(samples), piece):
        session.feed(samples[start : start + piece])
    (final,) = session.finish()
    return final.transcript


def heard_alike(recognizer: Recognizer, recordings: list[np.ndarray]) -> list[Transcript]:
    """What a batch, each alone, a live stream and an array find, which is the same.

    But for times in silence, whose frames are as good as each other.
    """
    found = recognizer.transcribe_batch(recordings)
    for samples, transcript in zip(recordings, found, strict=True):
        ways = [recognizer.transcribe_batch([samples])[0], recognizer.transcribe(samples, RATE)]
        ways += [live(recognizer, samples, piece) for piece in (37, 4000)]
        sound = bool(samples.any())
        assert [content(each, sound) for each in ways] == [content(transcript, sound)] * 4
    return found


def definition(recognizer: Recognizer, samples: np.ndarray) -> tuple[list[tuple[int, ...]], int]:
    found = naive_greedy(recognizer.network, recognizer.encode(samples), BOUND)
    return [token[:3] for token in found.tokens], found.truncated


def as_labels(recognizer: Recognizer, transcript: Transcript) -> tuple[list[tuple[int, ...]], int]:
    rate, ids = recognizer.network.encoder.frame_rate, recognizer.tokenizer.symbols
    tokens = [(ids.index(t.piece), round(t.start_s * rate), round(t.end_s * rate)) for t in transcript.tokens]
    return tokens, transcript.truncated_frames


@pytest.mark.parametrize("name", SEARCHES)
def test_next_to_nothing_and_silence(make, speech_like, name: str) -> None:
    """None, a sample, half a feature frame, one, one encoder frame and a little more, beside speech."""
    recognizer = make(name).recognizer
    short = [speech_like(1.0)[:count] for count in (0, 1, 40, 80, 320, 321)]
    recordings = [*short, np.zeros(RATE, np.float32), speech_like(1.3)]
    found = heard_alike(recognizer, recordings)
    assert [each.tokens for each in found[:2]] == [(), ()]
    assert len(found[-1].tokens) > 1
    if name == "greedy":
        for samples, transcript in zip(recordings, found, strict=True):
            assert as_labels(recognizer, transcript) == definition(recognizer, samples)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_model_that_says_nothing(make, speech_like, name: str) -> None:
    recognizer = make(name, blank=1e4).recognizer
    for transcript in heard_alike(recognizer, [speech_like(1.3), np.zeros(4000, np.float32)]):
        assert (transcript.text, transcript.words, transcript.truncated_frames) == ("", (), 0)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_model_that_never_stops(make, speech_like, name: str) -> None:
    """A beam search ends a frame that costs more with every label, unless saying more is rewarded."""
    made = make(name, blank=-1e4)
    recognizer = made.recognizer
    if "beam" in name:
        chosen = [*made.settings, "fusion.reward=30"]
        again = asr.load(made.model, search=SearchConfig(), settings=chosen)
        again.network.load_state_dict(recognizer.network.state_dict())
        recognizer = again
    samples = speech_like(1.3)
    found, nothing = heard_alike(recognizer, [samples, samples[:0]])
    frames = len(recognizer.encode(samples))
    per_frame = Counter(round(t.start_s * recognizer.network.encoder.frame_rate) for t in found.tokens)
    assert (nothing.tokens, nothing.truncated_frames) == ((), 0)
    if "ctc" in name:
        assert set(per_frame.values()) == {1}
        assert found.truncated_frames == 0
        return
    assert per_frame == dict.fromkeys(range(frames), BOUND)
    assert found.truncated_frames == frames
    if name == "greedy":
        assert as_labels(recognizer, found) == definition(recognizer, samples)


@pytest.mark.parametrize("name", SEARCHES)
def test_samples_that_are_no_number(make, speech_like, name: str) -> None:
    """They are named, and a stream goes on as if they had not been fed."""
    recognizer, samples = make(name).recognizer, speech_like(1.0)
    bad = samples.copy()
    bad[123] = np.nan
    with pytest.raises(AudioError, match="b: expected finite samples, found nan at sample 123; repair it"):
        recognizer.transcribe_batch([samples, bad], ["a", "b"])
    with pytest.raises(AudioError, match="array: expected finite samples, found nan at sample 123"):
        recognizer.transcribe(bad, RATE)
    session = recognizer.stream()
    session.feed(samples[:3000])
    with pytest.raises(AudioError, match="stream: expected finite samples, found nan"):
        session.feed(bad)
    session.feed(samples[3000:])
    assert content(session.finish()[-1].transcript) == content(recognizer.transcribe(samples, RATE))


@pytest.mark.parametrize("name", SEARCHES)
def test_phrases_that_cannot_be_listened_for(make, tmp_path: Path, name: str) -> None:
    made = make(name)
    recognizer, silence = made.recognizer, np.zeros(800, np.float32)
    expected: tuple[type[AsrError], str] = (TokenError, r"phrase 2: the model cannot write 'zer0': .*'zer0'")
    if "beam" not in name:
        expected = ConfigError, "expected a beam search that listens for hotwords"
    own = ["zero", "zer0"]
    calls: list[Callable[[], object]] = [
        lambda: recognizer.transcribe(silence, RATE, hotwords=own),
        lambda: recognizer.transcribe_batch([silence] * 2, hotwords=[[], own]),
        lambda: recognizer.stream(hotwords=own),
    ]
    for call in calls:
        with pytest.raises(expected[0], match=expected[1]) as caught:
            call()
        assert "\n" not in str(caught.value)
    path = tmp_path / "bad.txt"
    path.write_text("zero\nzer0\n")
    chosen = [*made.settings, f"fusion.biasing.hotwords={path}"]
    with pytest.raises(TokenError, match=r"bad\.txt:2: the model cannot write 'zer0'") as caught:
        asr.load(made.model, search=SearchConfig(), settings=chosen)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_language_model_that_is_damaged(make, tmp_path: Path, name: str) -> None:
    made = make(name)
    (tmp_path / "bad.arpa").write_text(ARPA.replace("-0.9 two", "O.9 two"))
    chosen = [*made.settings, f"fusion.lm={tmp_path / 'bad.arpa'}"]
    with pytest.raises(ModelError, match=r"bad\.arpa:11: expected .*'O\.9'") as caught:
        asr.load(made.model, search=SearchConfig(), settings=chosen)
    assert "\n" not in str(caught.value)


def test_commands_say_where_the_bound_stopped_the_search(
    call, make_model, write_tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    data = write_tones(tmp_path / "tones", {"one": 400.0}, {"test": 2})
    recordings = sorted(data.glob("*.wav"))
    recognizer = asr.load(model)
    frames = [recognizer.transcribe(path).truncated_frames for path in recordings]
    assert min(frames) > 0
    note = "the bound on symbols per frame stopped the search on {} frames; the model may be diverging, or"
    for way in ((), ("--stream",)):
        code, _, err = call("transcribe", recordings[0], "--model", model, *way)
        assert (code, f"asr: {recordings[0]}: {note.format(frames[0])}" in err) == (0, True)
    for way in ((), ("--stream",)):
        code, out, _ = call("decode", model, "--data", data / "test.jsonl.gz", "--out", tmp_path / "d", *way)
        assert (code, f"in 2 recordings {note.format(sum(frames))}" in out) == (0, True)
    samples, _ = soundfile.read(recordings[0], dtype="int16")
    pcm = samples.astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(pcm))))
    code, _, err = call("stream", "--model", model, "--stdin", "--rate", RATE)
    assert code == 0
    assert note.format(frames[0]) in err
