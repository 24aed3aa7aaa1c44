"""`asr stream`: pipes and microphones, what is said when there is none, and Ctrl-C wherever it comes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

import asr
from asr.errors import AudioError, MissingExtraError
from asr.microphone import devices, microphone
from asr.recognizer import Recognizer

RATE = 8000


class FakePortAudio(ModuleType):
    """The part of sounddevice that the microphone uses; it hears what it is given, then nothing."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, samples: np.ndarray) -> None:
        super().__init__("sounddevice")
        self.samples, self.opened, self.closed = samples, {}, False
        self.overflow_at: int | None = None
        self.faults: dict[str, str] = {}

    def fail(self, where: str) -> None:
        if where in self.faults:
            raise self.PortAudioError(self.faults[where])

    def query_devices(self) -> list[dict]:
        self.fail("query")
        return [
            {"index": 0, "name": "Loudspeaker", "max_input_channels": 0, "default_samplerate": 48000.0},
            {"index": 1, "name": "Headset", "max_input_channels": 1, "default_samplerate": 16000.0},
        ]

    def InputStream(self, *, callback: Callable, blocksize: int, **options):  # noqa: N802 (its name)
        self.fail("open")
        if options["device"] not in (None, 1, "Head"):
            raise ValueError(f"No input device matching {options['device']!r}")
        self.opened = {"blocksize": blocksize, **options}
        return _Opened(self, callback, blocksize)


class _Opened:
    def __init__(self, fake: FakePortAudio, callback: Callable, size: int) -> None:
        self.fake, self.callback, self.size = fake, callback, size

    def start(self) -> None:
        self.fake.fail("start")
        for number, start in enumerate(range(0, len(self.fake.samples), self.size)):
            block = self.fake.samples[start : start + self.size, None]
            status = SimpleNamespace(input_overflow=number == self.fake.overflow_at)
            self.callback(block, len(block), None, status)

    def close(self) -> None:
        self.fake.closed = True


@pytest.fixture
def headset(monkeypatch: pytest.MonkeyPatch, speech_like) -> FakePortAudio:
    fake = FakePortAudio(speech_like(3.0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr("asr.microphone.SILENT_S", 0.3)
    return fake


def heard_before_the_end(samples_per_block_s: float = 0.05, device=None) -> tuple[list[np.ndarray], str]:
    """Blocks, and the error that ended them."""
    heard: list[np.ndarray] = []
    with microphone(RATE, samples_per_block_s, device) as blocks, pytest.raises(AudioError) as caught:
        heard.extend(blocks)
    return heard, str(caught.value)


@pytest.mark.parametrize("device", [None, "1", 1, "Head"])
def test_blocks_come_as_they_were_heard(headset: FakePortAudio, device) -> None:
    heard, error = heard_before_the_end(device=device)
    assert np.array_equal(np.concatenate(heard), headset.samples)
    assert error == "microphone: no samples for 0.3 s; is the device still plugged in?"
    assert headset.opened["samplerate"] == RATE
    assert headset.opened["blocksize"] == 400
    assert headset.closed
    assert devices() == ["1  Headset  (16000 Hz)"]


def test_lost_samples_are_an_error_and_not_a_gap(headset: FakePortAudio) -> None:
    headset.overflow_at = 3
    heard, error = heard_before_the_end()
    assert "samples were lost" in error
    assert np.array_equal(np.concatenate(heard), headset.samples[:1200])


def test_a_reader_that_is_too_slow_is_told(headset: FakePortAudio) -> None:
    headset.samples = np.zeros(40 * RATE, np.float32)  # more than the queue holds before anything is read
    heard, error = heard_before_the_end(1.0)
    assert "too slow for this model" in error
    assert len(heard) == 30


@pytest.mark.parametrize(
    ("faults", "device", "message"),
    [
        (
            {},
            "Fridge",
            "microphone: expected an input device 'Fridge' at 8000 Hz, found 1 Headset (16000 Hz) "
            "(No input device matching 'Fridge'); choose one with --device",
        ),
        (
            {"start": "Device unavailable [PaErrorCode -9985]"},
            None,
            "microphone: expected a microphone at 8000 Hz, found 1 Headset (16000 Hz) "
            "(Device unavailable [PaErrorCode -9985]); choose one with --device",
        ),
        (
            {"open": "Invalid sample rate [PaErrorCode -9997]"},
            None,
            "microphone: expected a microphone at 8000 Hz, found 1 Headset (16000 Hz) (Invalid sample rate "
            "[PaErrorCode -9997]); choose one of these rates with --rate, the model takes any",
        ),
        (
            {"query": "Internal error", "open": "Error querying device -1"},
            None,
            "microphone: PortAudio cannot list the devices (Internal error)",
        ),
    ],
)
def test_a_device_that_cannot_be_opened(
    headset: FakePortAudio, faults: dict[str, str], device: str | None, message: str
) -> None:
    headset.faults = faults
    with pytest.raises(AudioError) as caught, microphone(RATE, 0.05, device):
        pass
    assert str(caught.value) == message


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"the microphone needs .*\[mic\]"), microphone(RATE, 0.05):
        pass
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


NO_RULES = ("--silence", "0", "--max-length", "0", "--nothing", "0")


def spoken(out: str) -> str:
    """The text of a line with times."""
    return out.split(maxsplit=2)[2].strip()


def test_the_microphone_is_heard_until_ctrl_c(
    headset: FakePortAudio, make_model, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which comes while the command waits for the device."""
    model, feed, fed = make_model(), asr.Session.feed, list[int]()

    def feed_and_wait(session: asr.Session, samples: np.ndarray) -> list:
        fed.append(len(samples))
        if sum(fed) == len(headset.samples):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return feed(session, samples)

    with monkeypatch.context() as patch:
        patch.setattr(asr.Session, "feed", feed_and_wait)
        code, out, err = call("stream", "--mic", "--rate", RATE, "--model", model, *NO_RULES)
    assert code == 0, err
    assert "listening" in err
    session = asr.load(model).stream(RATE)
    expected = (session.feed(headset.samples), session.finish())[1][0]
    assert spoken(out) == expected.text
    code, out, _ = call("stream", "--list-devices")
    assert (code, out) == (0, "1  Headset  (16000 Hz)\n")


def test_ctrl_c_while_computing_loses_nothing(headset: FakePortAudio, make_model, call, monkeypatch) -> None:
    step, steps = Recognizer.step, []

    def interrupted(self: Recognizer, *args):
        steps.append(1)
        if len(steps) == 12:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    model = make_model()
    monkeypatch.setattr(Recognizer, "step", interrupted)
    code, out, err = call("stream", "--mic", "--rate", RATE, "--model", model, *NO_RULES)
    assert code == 0, err
    monkeypatch.setattr(Recognizer, "step", step)
    heard = headset.samples[: 400 * 14]  # the block with which the twelfth step was due
    assert spoken(out) == asr.load(model).transcribe(heard, RATE).text


def test_a_device_that_goes_away_loses_nothing(headset: FakePortAudio, make_model, call) -> None:
    model = make_model()
    code, out, err = call("stream", "--mic", "--rate", RATE, "--model", model, *NO_RULES)
    assert code == 1
    assert err.splitlines()[-1].startswith("asr: microphone: no samples for 0.3 s")
    assert spoken(out) == asr.load(model).transcribe(headset.samples, RATE).text


def test_nothing_is_said_to_listen_before_it_does(headset: FakePortAudio, make_model, call) -> None:
    headset.faults = {"start": "Device unavailable"}
    code, _, err = call("stream", "--mic", "--rate", RATE, "--model", make_model())
    assert code == 1
    assert "listening" not in err
    assert err.count("\n") == 1


class Running:
    """An `asr` command in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-c", "from asr.cli.app import main; main()", *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def until(self, text: bytes) -> bytes:
        """Its stderr so far, when `text` has come."""
        seen = b""
        while text not in seen:
            line = self.process.stderr.readline()
            assert line, seen
            seen += line
        return seen

    def interrupted(self) -> tuple[int, str, str]:
        """Exit code and output after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode(), err.decode()


def test_ctrl_c_ends_a_pipe_that_has_stalled(make_model, speech_like) -> None:
    model, samples = make_model(), (speech_like(2.0) * 32767).astype("<i2")
    running = Running("stream", "--stdin", "--rate", RATE, "--model", model, *NO_RULES)
    running.process.stdin.write(samples.tobytes())
    running.process.stdin.flush()
    running.until(b"[   1.9")
    code, out, err = running.interrupted()
    assert code == 0, err
    recognizer = asr.load(model)
    assert spoken(out) in {
        recognizer.transcribe(samples[: 400 * blocks], RATE).text for blocks in (38, 39, 40)
    }


def test_ctrl_c_ends_transcription_and_its_loop(make_model, speech_like, tmp_path: Path) -> None:
    model, recordings = make_model(), [tmp_path / "a.wav", tmp_path / "b.wav"]
    for number, recording in enumerate(recordings):
        soundfile.write(recording, speech_like(30.0, seed=number), RATE)
    running = Running("transcribe", *recordings, "--model", model, "--stream", "--realtime")
    running.until(b"[   1.")
    code, out, err = running.interrupted()
    assert code == 130
    assert err.splitlines()[-1] == f"asr: {recordings[0]}: interrupted; this is what was heard"
    assert len(out.splitlines()) == 1
    whole = asr.load(model).transcribe(recordings[0]).text
    assert len(out.split()) >= 3
    assert whole.startswith(out.strip())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected --mic or --stdin, found neither"),
        (("--mic", "--stdin"), "expected --mic or --stdin, found both"),
        (("--stdin", "--silence", "-1"), "--silence"),
        (("--stdin", "--device", "1"), "--device is for --mic"),
        (("--stdin", "--silence", "0", "--vad"), "--vad decides what --silence counts as silence"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stats",), "are for live audio: add --stream"),
        (("--realtime",), "are for live audio: add --stream"),
        (("--chunk-ms", "50"), "are for live audio: add --stream"),
        (("--stream", "--vad"), "--vad decides what --silence counts as silence: give --silence SECONDS"),
        (("--stream", "--latency", "full"), "choose how much it hears at once"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    options: tuple, message: str, make_model, speech_like, tmp_path: Path, call
) -> None:
    """Once, whatever the number of files."""
    recordings = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for recording in recordings:
        soundfile.write(recording, speech_like(0.5), RATE)
    code, out, err = call("transcribe", *recordings, "--model", make_model(), *options)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_breaks_off_shows_what_was_heard(make_model, speech_like, tmp_path: Path, call) -> None:
    broken, model = tmp_path / "a.flac", make_model()
    soundfile.write(broken, speech_like(40.0), RATE)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    code, out, err = call("transcribe", broken, "--model", model, "--stream")
    assert code == 1
    assert f"asr: {broken}: " in err
    assert len(out.split()) > 5
