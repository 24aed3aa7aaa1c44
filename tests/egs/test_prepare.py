from __future__ import annotations

import http.server
import io
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.data import download
from asr.data.download import OfflineError, fetch, unpack
from asr.data.manifests import cut_speaker, cut_text, load_card, read_cuts
from asr.errors import DataError, ManifestError, MissingExtraError

EGS = Path(__file__).parents[2] / "egs"
RATE = 8000


@pytest.fixture(scope="module")
def digits(load_script):
    return load_script(EGS / "digits" / "prepare.py")


@pytest.fixture(scope="module")
def synthesise(load_script):
    return load_script(EGS / "digits" / "synthesise.py")


@pytest.fixture(scope="module")
def yesno(load_script):
    return load_script(EGS / "yesno" / "prepare.py")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers, three digits, ten takes, each a constant of its own so that it can be found again."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    number = 0
    for speaker in ("ann", "bo", "cy"):
        for digit in (0, 4, 9):
            for index in range(10):
                number += 1
                samples = np.full(400 + number, 0.2 + number / 200)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", samples, RATE)
    (folder / "README.txt").write_text("not a recording")
    return folder


def offline(*_: object) -> Path:
    raise OfflineError("https://example.org: no connection (test)")


def test_official_split_of_digits(tmp_path: Path, digits, recordings: Path) -> None:
    assert digits.main([str(tmp_path), "--data-dir", str(recordings.parent), "--repeats", "3"]) == 0
    train, dev, test = (list(read_cuts(tmp_path / f"{part}.jsonl.gz")) for part in ("train", "dev", "test"))
    assert sorted({int(cut.id.split("_")[2]) for cut in train}) == [8, 9]
    assert len(train) == 3 * 3 * 2
    assert {cut_text(cut) for cut in train} == {"zero", "four", "nine"}
    for cuts, indices in ((dev, 3), (test, 5)):
        words = Counter((cut_speaker(cut), word) for cut in cuts for word in cut_text(cut).split())
        assert set(words.values()) == {3 * indices}
        assert len(words) == 9
        assert 1 <= max(len(cut_text(cut).split()) for cut in cuts) <= 7
    card = load_card(tmp_path)
    assert (card.name, card.synthetic, card.sample_rate) == ("digits", False, RATE)


def test_every_word_is_where_the_alignment_says(tmp_path: Path, digits, recordings: Path) -> None:
    cuts = digits.prepare(tmp_path, recordings, repeats=2, seed=5)
    used: Counter[int] = Counter()
    for cut in cuts["test"]:
        samples, rate = soundfile.read(cut.recording.sources[0].source)
        assert len(samples) == cut.recording.num_samples
        assert soundfile.info(cut.recording.sources[0].source).subtype == "PCM_16"
        words = cut.supervisions[0].alignment["word"]
        assert [word.symbol for word in words] == cut_text(cut).split()
        loud = np.abs(samples) > 0.1
        for word in words:
            start, count = round(word.start * rate), round(word.duration * rate)
            spoken = samples[start : start + count]
            assert np.ptp(spoken) < 1e-3
            used[round(float(spoken[0]) * 200)] += 1
            loud[start : start + count] = False
        assert not loud.any()
        gaps = [b.start - (a.start + a.duration) for a, b in pairwise(words)]
        assert all(0.0499 <= gap <= 0.4001 for gap in gaps)
    assert sum(used.values()) == 2 * 3 * 3 * 5
    assert set(used.values()) == {2}


def test_long_strings_have_all_recordings_of_test_again(
    tmp_path: Path, digits, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "LONG_STRING", 20)  # a speaker of this corpus has 15 recordings
    cuts = digits.prepare(tmp_path, recordings, repeats=4)
    words = [
        Counter((cut_speaker(cut), word) for cut in cuts[part] for word in cut_text(cut).split())
        for part in ("test", "long")
    ]
    assert words[0] == words[1]
    assert [len(cut_text(cut).split()) for cut in cuts["long"]] == [20] * 9
    assert {len(set(cut_text(cut).split())) for cut in cuts["long"]} == {3}
    monkeypatch.setattr(digits, "LONG_STRING", 1000)
    whole = digits.prepare(tmp_path, recordings, repeats=1)["long"]
    assert [len(cut_text(cut).split()) for cut in whole] == [15] * 3


def test_preparing_again_gives_the_same_files(tmp_path: Path, digits, recordings: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    digits.prepare(tmp_path, recordings, repeats=2)
    first = contents()
    (tmp_path / "strings" / "test" / "stale.wav").write_bytes(b"")
    digits.prepare(tmp_path, recordings, repeats=2)
    assert contents() == first
    digits.prepare(tmp_path, recordings, repeats=2, seed=1)
    assert contents() != first


def test_speakers_split_keeps_speakers_apart(tmp_path: Path, digits, recordings: Path) -> None:
    arguments = [str(tmp_path), "--data-dir", str(recordings), "--split", "speakers", "--test-speakers", "bo"]
    assert digits.main(arguments) == 0
    speakers = {
        part: {cut_speaker(cut) for cut in read_cuts(tmp_path / f"{part}.jsonl.gz")}
        for part in ("train", "dev", "test")
    }
    assert speakers == {"train": {"ann", "cy"}, "dev": {"ann", "cy"}, "test": {"bo"}}
    assert "test speakers bo" in load_card(tmp_path).note


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--split", "speakers", "--test-speakers", "dan"], "there are ann, bo, cy"), ([], "found none")],
)
def test_mistakes_are_one_line(
    tmp_path: Path, digits, recordings: Path, capsys: pytest.CaptureFixture[str], arguments: list, reason: str
) -> None:
    data = recordings if arguments else tmp_path
    assert digits.main([str(tmp_path / "out"), "--data-dir", str(data), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


class Beeper:
    """Speaks every text as a tone in silence."""

    sample_rate = 22050

    def seed(self, seed: int) -> None:
        self.seeded = seed

    def set_voice(self, name: str) -> None:
        self.voice = name

    def speak(self, text: str, *, rate: int, pitch: int, range: int) -> np.ndarray:
        tone = np.sin(2 * np.pi * (100 + pitch) * np.arange(4000) / self.sample_rate)
        return np.pad(tone, 1000).astype(np.float32)


def test_synthetic_takes_are_trimmed_varied_and_repeatable(tmp_path: Path, synthesise) -> None:
    for name in ("a", "b"):
        synthesise.synthesise_corpus(tmp_path / name, seed=1, takes=2, speaker=Beeper())
    synthesise.synthesise_corpus(tmp_path / "c", seed=2, takes=2, speaker=Beeper())
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 6 * 10 * 2
    assert len({name.split("_")[1] for name in names}) == 6
    contents = {folder: [(tmp_path / folder / name).read_bytes() for name in names] for folder in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    assert len(set(contents["a"])) == len(names)
    for name in names[:20]:
        samples, rate = soundfile.read(tmp_path / "a" / name)
        assert rate == RATE
        assert 0.15 < len(samples) / rate < 0.35  # the tone's 0.18 s, not the silence around it
        assert np.abs(samples).max() <= 1


def test_no_connection_is_said_in_one_line_and_a_synthetic_corpus_marked(
    tmp_path: Path, digits, synthesise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Few:
        LICENCE, SAMPLE_RATE = synthesise.LICENCE, synthesise.SAMPLE_RATE

        @staticmethod
        def synthesise_corpus(out_dir: Path, *, seed: int) -> Path:
            return synthesise.synthesise_corpus(out_dir, seed=seed, takes=9, speaker=Beeper())

    monkeypatch.setattr(digits, "fetch", offline)
    monkeypatch.setitem(sys.modules, "synthesise", Few)
    assert digits.main([str(tmp_path), "--repeats", "1"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "no connection" in line]
    assert len(said) == 1
    assert "synthetic" in said[0]
    assert load_card(tmp_path).synthetic
    assert len(list(read_cuts(tmp_path / "train.jsonl.gz"))) == 6 * 10


def test_synthesis_without_the_extra_says_what_to_install(
    synthesise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"asr-transducer\[synth\]"):
        synthesise.synthesise_corpus(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_espeak_speaks(synthesise) -> None:
    pytest.importorskip("espeakng_loader", reason="the extra `synth` is not installed")
    espeak = synthesise.Espeak()
    espeak.seed(0)
    for voice in synthesise.VOICES:
        espeak.set_voice(voice.espeak)
        spoken = espeak.speak("seven", rate=voice.rate, pitch=voice.pitch, range=50)
        assert 0.2 < len(spoken) / espeak.sample_rate < 1.5
        assert 0.05 < np.abs(spoken).max() <= 1
    slow, fast = (len(espeak.speak("seven", rate=rate, pitch=50, range=50)) for rate in (100, 250))
    assert slow > 1.3 * fast
    with pytest.raises(DataError, match="no voice"):
        espeak.set_voice("xx-none")


def test_yesno_split_and_words(tmp_path: Path, yesno) -> None:
    folder = tmp_path / "data" / "waves_yesno"
    folder.mkdir(parents=True)
    names = [f"{i:08b}" for i in range(0, 240, 4)]
    for name in names:
        soundfile.write(folder / f"{'_'.join(name)}.wav", np.full(800, 0.1), RATE)
    out = tmp_path / "out"
    assert yesno.main([str(out), "--data-dir", str(tmp_path / "data")]) == 0
    train, dev, test = (list(read_cuts(out / f"{part}.jsonl.gz")) for part in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (25, 5, 30)
    assert [cut.id.replace("_", "") for cut in [*train, *dev]] == names[::2]
    assert [cut.id.replace("_", "") for cut in test] == names[1::2]
    assert cut_text(test[0]) == "NO NO NO NO NO YES NO NO"
    assert load_card(out).name == "yesno"


def test_words_of_a_recording_are_cut_in_their_pauses(tmp_path: Path, yesno) -> None:
    rng, rate = np.random.default_rng(0), 8000
    starts_s = [0.3, 0.9, 1.45, 2.1, 2.7, 3.2, 3.9, 4.5]
    samples = 1e-4 * rng.standard_normal(round(5.2 * rate))
    for start_s in starts_s:
        at = round(start_s * rate)
        samples[at : at + 2400] += 0.2 * rng.standard_normal(2400) * np.hanning(2400)
    path = tmp_path / "0_1_1_0_0_1_0_1.wav"
    soundfile.write(path, samples, rate)
    cuts = yesno.word_cuts(path)
    assert [cut.supervisions[0].text for cut in cuts] == ["NO", "YES", "YES", "NO", "NO", "YES", "NO", "YES"]
    assert sum(cut.duration for cut in cuts) == pytest.approx(5.2)
    for cut, start_s in zip(cuts, starts_s, strict=True):
        assert cut.start < start_s + 0.08  # the soft beginning of a burst may count as pause
        assert cut.start + cut.duration > start_s + 0.22
    soundfile.write(path, 0.1 * rng.standard_normal(rate), rate)  # no pauses at all
    (whole,) = yesno.word_cuts(path)
    assert whole.duration == 1.0
    assert len(whole.supervisions[0].text.split()) == 8


def test_yesno_without_connection_is_one_line(
    tmp_path: Path, yesno, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(yesno, "fetch", offline)
    assert yesno.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--data-dir" in error


PAYLOAD = bytes(range(256)) * 2000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves PAYLOAD with ranges; /broken stops half-way, /missing is 404."""

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        body = PAYLOAD[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture(scope="module")
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, url: str) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(OfflineError, match="run again"):
        fetch(f"{url}/broken", path, 10**6)
    part = tmp_path / "a.bin.part"
    assert not path.exists()
    assert 0 < part.stat().st_size < len(PAYLOAD)
    fetch(f"{url}/whole", path, 10**6)
    assert path.read_bytes() == PAYLOAD
    assert not part.exists()
    assert fetch("http://nowhere.invalid/", path, 1) == path


def test_downloads_that_cannot_be_are_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(OfflineError, match="404"):
        fetch(f"{url}/missing", tmp_path / "a", 10**6)
    with pytest.raises(DataError, match="at most 1000 bytes") as caught:
        fetch(f"{url}/whole", tmp_path / "b", 1000)
    assert not isinstance(caught.value, OfflineError)
    with pytest.raises(OfflineError, match="no connection"):
        fetch("http://127.0.0.1:1/x", tmp_path / "c", 1000)
    assert list(tmp_path.iterdir()) == []


def archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as packed_tar:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                packed_tar.addfile(entry, io.BytesIO(content))
            for name, target in (links or {}).items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                packed_tar.addfile(entry)
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_unpacking_takes_only_what_matches_and_leaves_the_folder(tmp_path: Path, name: str) -> None:
    members = {"top/recordings/1.wav": b"one", "top/code.py": b"x", "../../recordings/2.wav": b"two"}
    links = {"top/recordings/3.wav": "/etc/passwd"}
    out = tmp_path / "deep" / "recordings"
    unpack(archive(tmp_path / name, members, links), out, "*/recordings/*.wav")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"1.wav": b"one", "2.wav": b"two"}
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["1.wav", "2.wav", name]
    assert unpack(tmp_path / "gone.zip", out, "*") == out


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_folders_of_an_archive_can_be_kept(tmp_path: Path, name: str) -> None:
    members = {"top/train/text": b"one", "top/test/text": b"two", "top/WAVE/S1/1.WAV": b"x", "/top/a/b": b"y"}
    out = unpack(archive(tmp_path / name, members), tmp_path / "out", "*top/*", strip=1)
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert found == {"train/text": b"one", "test/text": b"two", "WAVE/S1/1.WAV": b"x", "a/b": b"y"}


@pytest.mark.parametrize("path", ["top/../../../x", "top", "top/.."])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(ManifestError, match="expected a path within"):
        unpack(archive(tmp_path / "a.tar.gz", {path: b"x"}), tmp_path / "out", "*", strip=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archives_that_are_too_large_or_damaged_leave_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / name, {"x/1.wav": bytes(5000)})
    with pytest.raises(ManifestError, match="found none"):
        unpack(path, tmp_path / "out", "*.flac")
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ManifestError, match="not that large"):
        unpack(path, tmp_path / "out", "*.wav")
    path.write_bytes(b"this is no archive")
    with pytest.raises(ManifestError, match="cannot be unpacked"):
        unpack(path, tmp_path / "out", "*.wav")
    assert [p.name for p in tmp_path.iterdir()] == [name]
