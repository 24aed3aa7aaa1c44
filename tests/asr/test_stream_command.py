"""`asr stream`: pipes and microphones, and what is said when there is none."""

from __future__ import annotations

import io
import queue
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

import asr
from asr.errors import AudioError, MissingExtraError
from asr.microphone import devices, microphone

RATE = 8000


class FakePortAudio(ModuleType):
    """The part of sounddevice that the microphone uses; a stream that hears what it is given."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, samples: np.ndarray, overflow_at: int | None = None) -> None:
        super().__init__("sounddevice")
        self.samples, self.overflow_at, self.opened = samples, overflow_at, {}

    def query_devices(self) -> list[dict]:
        return [
            {"index": 0, "name": "Loudspeaker", "max_input_channels": 0, "default_samplerate": 48000.0},
            {"index": 1, "name": "Headset", "max_input_channels": 1, "default_samplerate": 16000.0},
        ]

    def InputStream(self, *, callback: Callable, blocksize: int, **options):  # noqa: N802 (its name)
        if options["device"] not in (None, 1, "Head"):
            raise ValueError(f"No input device matching {options['device']!r}")
        self.opened = {"blocksize": blocksize, **options}
        return _Opened(self, callback, blocksize)


class _Opened:
    def __init__(self, fake: FakePortAudio, callback: Callable, size: int) -> None:
        self.fake, self.callback, self.size = fake, callback, size

    def __enter__(self) -> None:
        for number, start in enumerate(range(0, len(self.fake.samples), self.size)):
            block = self.fake.samples[start : start + self.size, None]
            status = SimpleNamespace(input_overflow=number == self.fake.overflow_at)
            self.callback(block, len(block), None, status)

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def headset(monkeypatch: pytest.MonkeyPatch, speech_like) -> FakePortAudio:
    fake = FakePortAudio(speech_like(3.0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


@pytest.mark.parametrize("device", [None, "1", 1, "Head"])
def test_blocks_come_as_they_were_heard(headset: FakePortAudio, device) -> None:
    blocks = microphone(RATE, 0.05, device)
    heard = [next(blocks) for _ in range(60)]
    assert np.array_equal(np.concatenate(heard), headset.samples)
    assert headset.opened["samplerate"] == RATE
    assert headset.opened["blocksize"] == 400
    assert devices() == ["1  Headset  (16000 Hz)"]


def test_lost_samples_are_an_error_and_not_a_gap(headset: FakePortAudio) -> None:
    headset.overflow_at = 3
    with pytest.raises(AudioError, match="samples were lost"):
        list(microphone(RATE, 0.05))


def test_a_reader_that_is_too_slow_is_told(headset: FakePortAudio) -> None:
    headset.samples = np.zeros(40 * RATE, np.float32)  # more than the queue holds before anything is read
    with pytest.raises(AudioError, match="too slow for this model"):
        list(microphone(RATE, 1.0))


def test_a_device_that_is_not_there(headset: FakePortAudio) -> None:
    with pytest.raises(AudioError) as caught:
        next(microphone(RATE, 0.05, "Fridge"))
    assert str(caught.value) == (
        "microphone: expected an input device 'Fridge', found 1 Headset (No input device matching 'Fridge'); "
        "choose one with --device, or plug one in"
    )


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"the microphone needs .*\[mic\]"):
        next(microphone(RATE, 0.05))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AudioError, match="expected the PortAudio library, found none; install it"):
        devices()


def piped(monkeypatch: pytest.MonkeyPatch, samples: np.ndarray) -> None:
    content = (samples * 32767).astype("<i2").tobytes()

    class Ragged(io.BytesIO):
        """Gives an odd number of bytes at a time, as pipes may."""

        def read1(self, size: int = -1) -> bytes:
            return self.read(min(size, 333))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Ragged(content)))


def test_a_pipe_gives_what_the_library_gives(make_model, speech_like, monkeypatch, call) -> None:
    model, samples = make_model(), speech_like(4.0)
    piped(monkeypatch, samples)
    rules = ("--silence", "0.24", "--max-length", "1.5", "--nothing", "0")
    options = ("stream", "--stdin", "--rate", RATE, "--model", model, *rules, "--stats")
    code, out, err = call(*options)
    assert code == 0, err
    endpoint = asr.EndpointConfig(trailing_silence_s=0.24, max_length_s=1.5, nothing_s=None)
    session = asr.load(model).stream(RATE, endpoint=endpoint)
    exact = (samples * 32767).astype("<i2")
    finals = [e.transcript for e in [*session.feed(exact), *session.finish()] if e.kind == "final"]
    expected = [f"{t.words[0].start_s:.2f} {t.words[-1].end_s:.2f} {t.text}" for t in finals if t.text]
    assert len(expected) > 2
    assert out.splitlines() == expected
    assert err.count("first token") == len(expected)
    assert err.count("real-time factor") >= len(expected)


def test_the_microphone_is_heard(headset: FakePortAudio, make_model, monkeypatch, call) -> None:
    model = make_model()

    class Queue(queue.Queue):
        """Ctrl-C when everything has been heard: a real microphone never ends by itself."""

        def get(self):
            if self.empty():
                raise KeyboardInterrupt
            return super().get()

    monkeypatch.setattr("asr.microphone.queue.Queue", Queue)
    rules = ("--silence", "0", "--max-length", "0", "--nothing", "0")
    code, out, err = call("stream", "--mic", "--rate", RATE, "--model", model, *rules)
    assert code == 0, err
    assert "listening" in err
    session = asr.load(model).stream(RATE)
    expected = (session.feed(headset.samples), session.finish())[1][0]
    assert out.split(maxsplit=2)[2].strip() == expected.text
    code, out, _ = call("stream", "--list-devices")
    assert (code, out) == (0, "1  Headset  (16000 Hz)\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected --mic or --stdin, found neither"),
        (("--mic", "--stdin"), "expected --mic or --stdin, found both"),
        (("--stdin",), "expected --model"),
        (("--stdin", "--silence", "-1"), "--silence"),
    ],
)
def test_refusals(options: tuple, message: str, make_model, call) -> None:
    model = ("--model", make_model()) if "--silence" in options else ()
    code, _, err = call("stream", *options, *model)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_a_file_as_live_audio_is_cut_and_measured(make_model, speech_like, tmp_path: Path, call) -> None:
    recording, model = tmp_path / "talk.wav", make_model()
    soundfile.write(recording, speech_like(4.0), RATE)
    options = ("transcribe", recording, "--model", model, "--stream", "--max-length", "1.5", "--stats")
    code, out, err = call(*options)
    assert code == 0, err
    assert err.count("first token") >= 2
    session = asr.load(model).stream(
        RATE, endpoint=asr.EndpointConfig(trailing_silence_s=None, nothing_s=None, max_length_s=1.5)
    )
    stored, _ = soundfile.read(recording, dtype="float32")
    finals = [e.text for e in [*session.feed(stored), *session.finish()] if e.kind == "final"]
    assert out.strip() == " ".join(text for text in finals if text)
    code, _, err = call(*options[:4], "--stats")
    assert code == 1
    assert "are for live audio: add --stream" in err
