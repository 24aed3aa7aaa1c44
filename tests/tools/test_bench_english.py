"""tools/bench/english.py: recordings are decoded once, scored alike, and the table says what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from asr.data.manifests import file_recording, make_cut, write_cuts
from asr.errors import AsrError, ConfigError, DataError, MissingExtraError, ModelError
from asr.interrupt import Interrupt
from asr.recognizer import load
from asr.score.wer import WordErrors, bootstrap_interval

BENCH = Path(__file__).parents[2] / "tools" / "bench"
NAMES = ("child", "comparison", "decoding", "numerals", "onset", "recognisers")
RATE = 16000
TEXTS = ["mr brown has twenty one dogs", "it is cold", "come here now", "good morning"]
SECONDS = [1.0, 1.25, 1.5, 1.75]
ONSET_S = 0.5


class Bench:
    """The tool's modules by name."""

    english: ModuleType
    child: ModuleType
    comparison: ModuleType
    decoding: ModuleType
    numerals: ModuleType
    onset: ModuleType
    recognisers: ModuleType


@pytest.fixture(scope="module")
def bench(load_script: Callable[[Path], ModuleType]) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        found = Bench()
        found.english = load_script(BENCH / "english.py")
        for name in NAMES:
            setattr(found, name, sys.modules[name])
        yield found
        for name in NAMES:
            del sys.modules[name]


def tone(seconds: float, rate: int = RATE, onset_s: float = ONSET_S) -> np.ndarray:
    """Faint noise, and a loud tone from the onset on."""
    samples = 1e-3 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    start = round(onset_s * rate)
    samples[start:] += 0.3 * np.sin(0.2 * np.arange(len(samples) - start))
    return samples.astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What prepare.py writes, of one part."""
    cuts = []
    for number, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True)):
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, tone(seconds), RATE)
        cuts.append(make_cut(file_recording(path, f"u{number}"), f"u{number}", text, speaker="s"))
    write_cuts(cuts, tmp_path / "data" / "test.jsonl.gz")
    return tmp_path / "data"


class Fake:
    """A recogniser that knows recordings by their length; it can ask for an end while it hears one."""

    def __init__(self, bench: Bench, texts: list[str], interrupt: Interrupt | None = None, at: int = -1):
        self.ready = bench.child.Ready(RATE, True, 1.5)
        self._texts, self._interrupt, self._at, self._answer = texts, interrupt, at, bench.child.Answer
        self.heard: list[int] = []
        self.states: list[str] = []
        self.starts = 0

    def start(self, system: Any) -> Fake:
        self.starts += 1
        return self

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None: ...

    def hear(self, samples: np.ndarray, state: str) -> Any:
        number = SECONDS.index(len(samples) / RATE)
        self.heard.append(number)
        self.states.append(state)
        if number == self._at and self._interrupt is not None:
            self._interrupt.requested = True
        return self._answer(self._texts[number], 0.8, f"after {number}", 0.25, 0.5, 100.0 + number)


def options(bench: Bench, data: Path, out: Path, **other: Any) -> Any:
    systems = [bench.decoding.System("fake", "toolkit", "")]
    return bench.english.Options(data, out, systems, ("test",), **other)


def test_an_interrupted_run_goes_on_where_it_was(bench: Bench, data: Path, tmp_path: Path) -> None:
    wanted, interrupt = options(bench, data, tmp_path / "out"), Interrupt()
    first = Fake(bench, TEXTS, interrupt, at=1)
    assert bench.english.compare(wanted, interrupt, first.start) == []
    assert first.heard == [0, 1]
    second = Fake(bench, TEXTS)
    (row,) = bench.english.compare(wanted, Interrupt(), second.start)
    assert second.heard == [2, 3]
    assert second.states == ["after 1", "after 2"]
    assert len(row.report.utterances) == 4
    third = Fake(bench, TEXTS)
    assert bench.english.compare(wanted, Interrupt(), third.start) == [row]
    assert third.starts == 0


def test_a_line_that_was_cut_off_is_decoded_again(bench: Bench, data: Path, tmp_path: Path) -> None:
    wanted = options(bench, data, tmp_path / "out")
    bench.english.compare(wanted, Interrupt(), Fake(bench, TEXTS).start)
    path = tmp_path / "out" / "fake" / "test.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = Fake(bench, TEXTS)
    bench.english.compare(wanted, Interrupt(), again.start)
    assert again.heard == [3]
    assert path.read_bytes() == whole


def test_a_sample_grows(bench: Bench, data: Path, tmp_path: Path) -> None:
    samples = [
        {cut.id for cut in bench.english.read_part(data, "test", size, 3).cuts} for size in (1, 2, 3, 0)
    ]
    assert [len(sample) for sample in samples] == [1, 2, 3, 4]
    assert samples[0] < samples[1] < samples[2] < samples[3]
    others = {next(iter(bench.english.read_part(data, "test", 1, seed).cuts)).id for seed in range(20)}
    assert len(others) > 1
    few, rest = Fake(bench, TEXTS), Fake(bench, TEXTS)
    (row,) = bench.english.compare(options(bench, data, tmp_path, sample=2), Interrupt(), few.start)
    bench.english.compare(options(bench, data, tmp_path), Interrupt(), rest.start)
    assert (len(few.heard), len(rest.heard)) == (2, 2)
    assert sorted(few.heard + rest.heard) == [0, 1, 2, 3]
    assert "| 2 of 4 |" in bench.comparison.table([row])


def test_results_of_another_model_are_not_mixed_in(bench: Bench, data: Path, tmp_path: Path) -> None:
    wanted = options(bench, data, tmp_path / "out")
    bench.english.compare(wanted, Interrupt(), Fake(bench, TEXTS).start)
    (tmp_path / "model.bin").write_bytes(b"other weights")
    other = wanted._replace(systems=[bench.decoding.System("fake", "toolkit", str(tmp_path))])
    with pytest.raises(ConfigError, match=r"out/fake: was decoded with other settings \(model ''\)"):
        bench.english.compare(other, Interrupt(), Fake(bench, TEXTS).start)


def test_the_table(bench: Bench, data: Path, tmp_path: Path) -> None:
    """One word of 14 is wrong; 4 recordings of 5.5 s in all cost 1 s of CPU and 2 s of waiting."""
    said = ["Mister Brown has 21 dogs.", "IT IS COLD", "come here, now!", "Good morning"]
    (row,) = bench.english.compare(options(bench, data, tmp_path), Interrupt(), Fake(bench, said).start)
    counts = [
        WordErrors(substitutions=1, reference_words=6),
        *(WordErrors(reference_words=words) for words in (3, 3, 2)),
    ]
    low, high = bootstrap_interval(counts)
    onset_s = bench.onset.speech_onset(tone(1.0), RATE)
    first = round(1000 * (0.8 - onset_s))
    line = bench.comparison.table([row]).splitlines()[-1]
    assert line == (
        f"| test | fake | all 4 | 7.1 [{100 * low:.1f}, {100 * high:.1f}] | 0.0 | 0.182 | 0.364 | 103 | "
        f"{first} ms | {first} ms |"
    )
    assert 0 <= low < 1 / 14 < high
    whole = bench.comparison.table([row._replace(first_word=None)])
    assert whole.endswith("| 103 | whole recording | whole recording |\n")


def test_a_recording_that_was_not_decoded_is_no_empty_text(bench: Bench, data: Path) -> None:
    part = bench.english.read_part(data, "test", 0, 0)
    with pytest.raises(DataError, match="fake, test: 4 recordings are not decoded"):
        bench.comparison.measure("fake", part, [], True)


def test_delays_leave_out_what_has_no_word(bench: Bench) -> None:
    record = bench.decoding.Record("u", "a", 2.0, 0.5, 0.9, 0.1, 0.1, 10.0, "")
    records = [record, record._replace(first_word_s=None), record._replace(onset_s=None)]
    assert bench.comparison.first_word_delays(records) == [pytest.approx(0.4)]


def test_the_command_writes_table_and_picture(
    bench: Bench, data: Path, tmp_path: Path, make_model: Callable[..., Path], capsys: Any
) -> None:
    arguments = [data, "--model", make_model(), "--peers", "", "--parts", "test", "--out", tmp_path / "out"]
    assert bench.english.main([*map(str, arguments)], Fake(bench, TEXTS).start) == 0
    out = capsys.readouterr().out
    written = (tmp_path / "out" / "table.md").read_text()
    assert "| test | asr-model-transducer-lstm-False-0 | all 4 | 0.0 [0.0, 0.0] |" in out
    assert out.splitlines()[2] in written
    assert "normalisation 'basic'" in written
    picture = (tmp_path / "out" / "comparison.svg").read_text()
    assert ">asr-model-transducer-lstm-False-0<" in picture
    assert "all 4" in picture


@pytest.mark.parametrize("peer", ["pocketsphinx", "whisper"])
def test_a_missing_package_is_one_line(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, peer: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench.english.main([str(tmp_path), "--peers", peer]) == 1
    message = f"error: {peer} needs an optional package: pip install 'asr-transducer[bench]'\n"
    assert capsys.readouterr().err == message
    with pytest.raises(MissingExtraError):
        bench.recognisers.require_peer(peer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "toolkit"], "--peers: expected pocketsphinx, whisper, found 'toolkit'"),
        (["--peers", ""], "found none: give --model or --peers"),
        (["--model", "a/x", "--model", "b/x", "--peers", ""], "different names"),
        (["--peers", "", "--model", "x", "--sample", "-1"], "--sample: expected 0 or more"),
        (["--peers", "", "--model", "x"], "what egs/english/prepare.py wrote"),
    ],
)
def test_mistakes_are_one_line(
    bench: Bench, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    assert bench.english.main([str(tmp_path), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_onset_of_speech(bench: Bench) -> None:
    find = bench.onset.speech_onset
    assert find(tone(2.0), RATE) == pytest.approx(ONSET_S, abs=0.03)
    assert find(0.01 * tone(2.0), RATE) == find(tone(2.0), RATE)
    clicked = tone(2.0)
    clicked[1600:1920] = 0.9  # 20 ms
    assert find(clicked, RATE) == pytest.approx(ONSET_S, abs=0.03)
    assert find(tone(2.0, 8000, 1.0), 8000) == pytest.approx(1.0, abs=0.03)
    assert find(np.zeros(RATE, np.float32), RATE) is None
    assert find(tone(2.0)[:100], RATE) is None


FAKE_CHILD = """
import sys
sys.path.insert(0, {bench!r})
from child import serve
from asr.errors import ModelError

class Echo:
    sample_rate, streaming = 8000, True
    def hear(self, samples, state):
        from recognisers import Heard
        print("chatter on stdout")
        if state == "die":
            sys.exit(3)
        return Heard(f"{{len(samples)}} {{samples.sum():.1f}}", 0.1, state + "x")

def make():
    if sys.argv[1:] == ["broken"]:
        raise ModelError("no such model")
    return Echo()

serve(make)
"""


@pytest.fixture
def echo(bench: Bench, tmp_path: Path) -> Callable[..., Any]:
    script = tmp_path / "echo.py"
    script.write_text(FAKE_CHILD.format(bench=str(BENCH)))
    return lambda *arguments: bench.child.Child([sys.executable, str(script), *arguments], "echo")


def test_a_child_answers_for_its_own_memory(bench: Bench, echo: Callable[..., Any]) -> None:
    ballast = np.ones(64 << 20, np.uint8)
    with echo() as child:
        assert child.ready[:2] == (8000, True)
        answers = [child.hear(np.full(n, 0.5, np.float32), "a") for n in (3, 0, 100_000)]
    assert [(a.text, a.first_word_s, a.state) for a in answers] == [
        ("3 1.5", 0.1, "ax"),
        ("0 0.0", 0.1, "ax"),
        ("100000 50000.0", 0.1, "ax"),
    ]
    assert 0 < answers[-1].peak_mib < bench.child.peak_mib() - len(ballast) / 2**20
    assert answers[-1].cpu_s >= 0


def test_a_child_that_gives_up_is_an_error(echo: Callable[..., Any]) -> None:
    with (
        pytest.raises(AsrError, match=r"echo: ended without an answer \(exit status 3\)"),
        echo() as child,
    ):
        child.hear(np.zeros(10, np.float32), "die")
    with pytest.raises(AsrError, match="no such model"), echo("broken"):
        pass


def test_this_toolkit_is_fed_live(
    bench: Bench, make_model: Callable[..., Path], speech_like: Callable[..., np.ndarray]
) -> None:
    samples = speech_like(2.0)
    path = make_model()
    live = bench.recognisers.Toolkit(str(path))
    heard = live.hear(samples, "")
    expected = load(path).transcribe(samples, live.sample_rate)
    assert expected.text
    assert heard.text == expected.text
    assert heard.first_word_s is not None
    assert expected.words[0].start_s < heard.first_word_s < 2.0
    assert heard.first_word_s / bench.recognisers.CHUNK_S == pytest.approx(round(heard.first_word_s / 0.1))
    whole = bench.recognisers.Toolkit(str(make_model(bidirectional=True)))
    assert not whole.streaming
    assert whole.hear(samples, "").first_word_s is None


def test_pocketsphinx_goes_on_from_a_state(bench: Bench, speech_like: Callable[..., np.ndarray]) -> None:
    pytest.importorskip("pocketsphinx", reason="the extra bench is not installed")
    first, second = (speech_like(0.6, RATE, seed) for seed in (0, 1))
    system = bench.recognisers.Pocketsphinx()
    before = system.hear(first, "")
    after = system.hear(second, before.state)
    assert before.state != after.state
    assert bench.recognisers.Pocketsphinx().hear(second, before.state) == after


def test_whisper_without_its_model_is_one_line(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper", reason="the extra bench is not installed")
    with pytest.raises(ModelError, match="give --whisper-model a directory in CTranslate2's form"):
        bench.recognisers.Whisper(str(tmp_path))


def test_what_was_heard_is_kept_line_by_line(bench: Bench, data: Path, tmp_path: Path) -> None:
    bench.english.compare(options(bench, data, tmp_path), Interrupt(), Fake(bench, TEXTS).start)
    lines = [json.loads(line) for line in (tmp_path / "fake" / "test.jsonl").read_text().splitlines()]
    assert [(line["id"], line["text"], line["audio_s"]) for line in lines] == [
        (f"u{number}", text, seconds)
        for number, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True))
    ]
    assert all(line["onset_s"] == pytest.approx(ONSET_S, abs=0.03) for line in lines)
    assert json.loads((tmp_path / "fake" / "system.json").read_text())["load_s"] == 1.5
