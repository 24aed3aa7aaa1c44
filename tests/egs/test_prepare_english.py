from __future__ import annotations

import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import probe
from asr.data.augment import AugmentConfig, Augmenter, NoiseConfig, ReverbConfig
from asr.data.download import OfflineError
from asr.data.manifests import cut_speaker, cut_text, load_card, read_cuts, read_unique_cuts
from asr.data.samples import load_samples
from asr.errors import DataError, ManifestError

ENGLISH = Path(__file__).parents[2] / "egs" / "english"
RATE = 16000
PARTS = ("train", "dev", "test-so762-adults", "test-so762-children", "test-kathleen")
FORMATS = {".opus": ("OGG", "OPUS"), ".flac": ("FLAC", None), ".wav": ("WAV", None), ".WAV": ("WAV", None)}
TRAIN_AGES = {"0001": 6, "0002": 9, "0003": 15, "0004": 19, "0005": 20, "0006": 37}
TEST_AGES = {"0011": 7, "0012": 15, "0013": 19, "0014": 43}


@pytest.fixture(scope="module")
def english(with_neighbours):
    with with_neighbours(ENGLISH / "prepare.py") as module:
        yield module


def sound(path: Path, seconds: float = 0.2, rate: int = RATE, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    container, coding = FORMATS[path.suffix]
    samples = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, samples, rate, format=container, subtype=coding)


def letters(number: int) -> str:
    """A word of its own for every number below 676."""
    return "word" + chr(97 + number // 26) + chr(97 + number % 26)


def make_speechocean762(folder: Path, suffix: str) -> None:
    for side, ages, first in (("train", TRAIN_AGES, 0), ("test", TEST_AGES, 100)):
        lines: dict[str, list[str]] = {"text": [], "wav.scp": [], "utt2spk": []}
        for i, speaker in enumerate(ages):
            for j in range(2):
                utterance = f"0{speaker}00{j}0"
                path = f"WAVE/SPEAKER{speaker}/{utterance}{suffix}"
                sound(folder / path)
                lines["text"].append(f"{utterance}\tIT'S {letters(first + 2 * i + j).upper()}")
                lines["wav.scp"].append(f"{utterance}\t{path}")
                lines["utt2spk"].append(f"{utterance}\t{speaker}")
        lines["spk2age"] = [f"{speaker}\t{age}" for speaker, age in ages.items()]
        (folder / side).mkdir()
        for name, rows in lines.items():
            (folder / side / name).write_text("".join(f"{row}\n" for row in rows))


def kathleen_texts() -> dict[str, str]:
    """Forty prompts, every fourth read twice."""
    return {
        f"arctic_a{i:04d}_{1592000000 + take}": f"Prompt {letters(200 + i)}, said."
        for i in range(40)
        for take in range(2 if i % 4 == 3 else 1)
    }


def write_metadata(folder: Path, rows: dict[str, str], suffix: str, recorded: Iterable[str]) -> None:
    for name in recorded:
        sound(folder / "wavs" / f"{name}{suffix}")
    (folder / "metadata.csv").write_text("".join(f"{name}|{text}\n" for name, text in rows.items()))


def make_ljspeech(folder: Path, suffix: str) -> None:
    rows = {f"LJ001-{i:04d}": f"In 18{i:02d}|In the year {letters(300 + i)}." for i in range(40)}
    write_metadata(folder, rows, suffix, list(rows)[:30])


def make_corpora(folder: Path, suffix: str = ".wav") -> Path:
    make_speechocean762(folder / "speechocean762", ".WAV" if suffix == ".wav" else suffix)
    texts = kathleen_texts()
    write_metadata(folder / "kathleen", texts, suffix, texts)
    make_ljspeech(folder / "ljspeech", suffix)
    sound(folder / "noise" / "tap.flac", 1.0)
    sound(folder / "rir" / "hall.wav")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_corpora(tmp_path / "data")


def manifests(folder: Path) -> dict[str, list]:
    return {part: read_unique_cuts(folder / f"{part}.jsonl.gz") for part in PARTS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prompts(cuts: list) -> set[str]:
    return {cut.id.rpartition("_")[0] for cut in cuts if cut.id.startswith("arctic")}


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".opus"])
def test_every_format_gives_every_part(tmp_path: Path, english, suffix: str) -> None:
    data = make_corpora(tmp_path / "data", suffix)
    out = tmp_path / "out"
    assert english.main([str(out), "--data-dir", str(data)]) == 0
    cuts = manifests(out)
    for cut in (cut for part in PARTS for cut in cuts[part]):
        assert cut.duration == probe(cut.recording.sources[0].source).duration_s
        assert cut.supervisions[0].language == "English"
    assert len(load_samples(cuts["train"][0], RATE)) == round(0.2 * RATE)
    assert {cut_text(cut) for cut in cuts["test-so762-adults"]} == {
        f"it's {letters(number)}" for number in range(104, 108)
    }
    card = load_card(out)
    assert (card.name, card.sample_rate, card.synthetic) == ("english", RATE, False)
    for name in ("speechocean762", "kathleen", "ljspeech", "noise", "rir"):
        assert name in card.source
        assert name in card.licence


def test_speakers_of_speechocean762_are_in_one_part_only(tmp_path: Path, english, data: Path) -> None:
    assert english.main([str(tmp_path / "out"), "--data-dir", str(data)]) == 0
    cuts = manifests(tmp_path / "out")
    speakers = {
        part: {cut_speaker(cut)[-4:] for cut in members if cut_speaker(cut).startswith("speechocean762")}
        for part, members in cuts.items()
    }
    assert speakers["test-so762-adults"] == {"0013", "0014"}
    assert speakers["test-so762-children"] == {"0011", "0012"}
    assert speakers["train"] | speakers["dev"] == set(TRAIN_AGES)
    assert not speakers["train"] & speakers["dev"]
    assert sorted(TRAIN_AGES[name] >= 18 for name in speakers["dev"]) == [False, True]


def test_kathleen_is_split_by_prompt(tmp_path: Path, english, data: Path) -> None:
    assert english.main([str(tmp_path / "out"), "--data-dir", str(data)]) == 0
    cuts = manifests(tmp_path / "out")
    assert prompts(cuts["test-kathleen"]) == {"arctic_a0038", "arctic_a0039"}
    assert prompts(cuts["dev"]) == {"arctic_a0037"}
    assert prompts(cuts["train"]) == {f"arctic_a{i:04d}" for i in range(37)}
    takes = Counter(cut.id.rpartition("_")[0] for cut in cuts["test-kathleen"])
    assert takes == {"arctic_a0038": 1, "arctic_a0039": 2}


def test_held_out_texts_are_nowhere_else(
    tmp_path: Path, english, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = kathleen_texts()
    test, dev = texts["arctic_a0039_1592000000"], texts["arctic_a0037_1592000000"]
    texts |= {"arctic_a0001_1592000000": test.upper(), "arctic_a0002_1592000000": dev.replace(",", " -")}
    texts["arctic_a0036_1592000000"] = texts["arctic_a0005_1592000000"]  # both in train: they stay
    write_metadata(data / "kathleen", texts, ".wav", texts)
    table = data / "ljspeech" / "metadata.csv"
    table.write_text(table.read_text() + f"LJ002-0001|{test}\nLJ002-0002|{dev}\nLJ002-0003|Free of both.\n")
    assert english.main([str(tmp_path / "out"), "--data-dir", str(data)]) == 0
    cuts = manifests(tmp_path / "out")
    said = {part: {cut_text(cut) for cut in members} for part, members in cuts.items()}
    assert not said["test-kathleen"] & (said["dev"] | said["train"])
    trained = {cut.id for cut in cuts["train"]}
    assert not {"arctic_a0001_1592000000", "arctic_a0002_1592000000"} & trained
    assert {"arctic_a0036_1592000000", "arctic_a0005_1592000000"} <= trained
    shown = capsys.readouterr().out
    assert "kathleen: in train, but its text is held out (arctic_a0001_1592000000, arctic_a0002" in shown
    lines = (tmp_path / "out" / "text" / "lm.txt").read_text().splitlines()
    assert lines[-1] == "free of both"
    assert len(lines) == 40 - 1 + 1  # without the dev sentence and the two held-out ones
    assert not set(lines) & set().union(*(said[part] for part in PARTS[1:]))


def test_text_is_letters_or_left_out_by_name(
    tmp_path: Path, english, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = data / "ljspeech" / "metadata.csv"
    lines = table.read_text().splitlines()
    lines[0] = "LJ001-0000|x|At Müller's execution"
    lines[1] = "LJ001-0001|x|In 1848, “Mr. Death’s” well-known – 'tis said: etc."
    lines[2] = "LJ001-0002|x|“Mr. Death’s” well-known – 'tis said: etc."
    table.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    assert english.main([str(out), "--data-dir", str(data), "--only", "ljspeech"]) == 0
    texts = {cut.id: cut_text(cut) for cut in read_cuts(out / "train.jsonl.gz")}
    assert texts["LJ001-0002"] == "mr death's well known tis said etc"
    assert "2 ljspeech: text is not only letters (LJ001-0000, LJ001-0001)" in capsys.readouterr().out
    left_out = dict(line.split("\t") for line in (out / "left-out.txt").read_text().splitlines())
    assert left_out["LJ001-0039"] == "ljspeech: no recording"
    assert (out / "text" / "lm.txt").read_text().splitlines()[0] == texts["LJ001-0002"]


def test_preparing_again_gives_the_same_files(tmp_path: Path, english, data: Path) -> None:
    out = tmp_path / "out"
    english.prepare(out, data)
    first = contents(out)
    english.prepare(out, data)
    assert contents(out) == first
    drawn = set()
    for seed in range(1, 5):
        english.prepare(out, data, seed=seed)
        again = contents(out)
        changed = {name for name in first if again[name] != first[name]}
        assert changed <= {"train.jsonl.gz", "dev.jsonl.gz", "corpus.yaml"}  # the tests are the same
        drawn.add(again["dev.jsonl.gz"])
    assert len(drawn) > 1


def test_who_is_drawn_depends_on_the_seed_alone(english) -> None:
    ages = {f"s{i:03d}": 5 + i % 30 for i in range(125)}
    shuffled = dict(sorted(ages.items(), key=lambda item: item[1]))
    drawn = [sys.modules["splits"].draw_speakers(ages, seed) for seed in range(3)]
    assert drawn == [sys.modules["splits"].draw_speakers(shuffled, seed) for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    children = sum(age < 18 for age in ages.values())
    for names in drawn:
        adult = Counter(ages[name] >= 18 for name in names)
        assert adult == {False: -(-children // 10), True: -(-(125 - children) // 10)}


def test_only_some_corpora_leave_nothing_of_the_others(tmp_path: Path, english, data: Path) -> None:
    out = tmp_path / "out"
    english.prepare(out, data)
    assert english.main([str(out), "--data-dir", str(data), "--only", "kathleen,rir"]) == 0
    assert sorted(contents(out)) == [
        "corpus.yaml",
        "dev.jsonl.gz",
        "rir.jsonl.gz",
        "test-kathleen.jsonl.gz",
        "train.jsonl.gz",
    ]
    assert {cut_speaker(cut) for cut in read_cuts(out / "train.jsonl.gz")} == {"kathleen"}
    assert "ljspeech" not in load_card(out).source


def test_an_interrupted_run_leaves_no_card_and_no_half_file(
    tmp_path: Path, english, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    english.prepare(out, data)
    first = contents(out)
    write = english.write_cuts

    def interrupted(cuts: list, path: Path) -> None:
        if path.name.startswith("test"):
            raise KeyboardInterrupt
        write(cuts, path)

    monkeypatch.setattr(english, "write_cuts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        english.prepare(out, data, seed=1)
    assert sorted(contents(out)) == ["dev.jsonl.gz", "train.jsonl.gz"]
    monkeypatch.setattr(english, "write_cuts", write)
    english.prepare(out, data)
    assert contents(out) == first


def test_few_broken_recordings_are_named_and_many_are_fatal(
    tmp_path: Path, english, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    english.prepare(out, data)
    first = contents(out)
    broken = data / "kathleen" / "wavs" / "arctic_a0003_1592000000.wav"
    broken.write_bytes(broken.read_bytes()[:1000])
    (data / "kathleen" / "wavs" / "arctic_a0004_1592000000.wav").unlink()
    assert english.main([str(out), "--data-dir", str(data)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "at most 1% of 50 recordings" in error
    assert "found 2, for example" in error
    assert "arctic_a0003_1592000000.wav: truncated" in error
    assert contents(out) == first
    monkeypatch.setattr(sys.modules["splits"], "MAX_BROKEN", 0.05)
    assert english.main([str(out), "--data-dir", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "1 kathleen: recording cannot be read (arctic_a0003_1592000000)" in shown
    assert "1 kathleen: no recording (arctic_a0004_1592000000)" in shown
    names = {cut.id for cut in manifests(out)["train"]}
    assert not names & {"arctic_a0003_1592000000", "arctic_a0004_1592000000"}


def test_noise_and_responses_can_be_trained_with(tmp_path: Path, english, data: Path) -> None:
    english.prepare(tmp_path, data)
    config = AugmentConfig(
        noise=NoiseConfig(probability=1, source=str(tmp_path / "noise.jsonl.gz")),
        reverb=ReverbConfig(probability=1, source=str(tmp_path / "rir.jsonl.gz")),
    )
    samples = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    changed = Augmenter.build(config, RATE)(samples, np.random.default_rng(1))
    assert changed.shape == samples.shape
    assert not np.allclose(changed, samples)


def test_the_table_counts_cuts_words_hours_and_speakers(
    tmp_path: Path, english, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = data / "speechocean762" / "test" / "text"
    text.write_text(text.read_text().replace(letters(100).upper(), letters(101).upper()))
    learnt = data / "speechocean762" / "train" / "text"
    names = [line.split()[0] for line in learnt.read_text().splitlines()]
    learnt.write_text("".join(f"{name} IT'S {letters(101)}\n" for name in names))
    assert english.main([str(tmp_path / "out"), "--data-dir", str(data)]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["test-so762-children"] == ["4", "8", "0.000", "2", "2"]
    assert rows["test-kathleen"] == ["3", "9", "0.000", "1", "0"]
    assert rows["train"][:2] == [str(8 + 46 + 29), str(8 * 2 + 46 * 3 + 29 * 4)]
    assert "speechocean762's tests: 2 of 8 utterances, 1 of 7 texts are in train" in shown


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("speechocean762/test/spk2age", "0014\t43\n", "", "found none of speechocean762-0014"),
        ("speechocean762/test/spk2age", "0014\t43", "0014\told", "spk2age:4: expected SPEAKER AGE"),
        ("speechocean762/test/utt2spk", "\t0014", "\t0001", "not to be in test, found speechocean762-0001"),
        ("kathleen/metadata.csv", "arctic_a0000_1592000000", "LJ001-0001", "no audio file for LJ001-0001"),
        ("ljspeech/metadata.csv", "LJ001-0001|", "LJ001-0000|", "expected each id once"),
    ],
)
def test_corpora_that_are_not_as_published_are_one_line(
    tmp_path: Path,
    english,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    old: str,
    new: str,
    reason: str,
) -> None:
    (data / file).write_text((data / file).read_text().replace(old, new))
    assert english.main([str(tmp_path / "out"), "--data-dir", str(data)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("only", "missing", "reason"),
    [
        ("kathlen", "", "--only: expected speechocean762, kathleen, ljspeech, with them perhaps noise, rir"),
        ("noise", "", "found noise"),
        ("", "ljspeech", "--only leaves it out"),
        ("kathleen,rir", "rir", "--only leaves it out"),
    ],
)
def test_corpora_that_are_not_there_are_one_line(
    tmp_path: Path,
    english,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    only: str,
    missing: str,
    reason: str,
) -> None:
    if missing:
        (data / missing).rename(tmp_path / "elsewhere")
    assert english.main([str(tmp_path / "out"), "--data-dir", str(data), "--only", only]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def test_without_connection_the_line_says_what_to_pass(
    tmp_path: Path, english, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(url: str, *_: object) -> Path:
        raise OfflineError(f"{url}: no connection (test)")

    monkeypatch.setattr(sys.modules["sources"], "fetch", offline)
    assert english.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pass --data-dir with the folder that holds speechocean762/" in error


def publish(name: str, folder: Path, path: Path) -> Path:
    """The archive of a corpus as its publisher makes it, with files that nobody needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "kathleen":
        with zipfile.ZipFile(path, "w") as packed:
            for member in sorted(folder.iterdir()):
                packed.write(member, f"dataset-voice-kathleen-master/data/{member.name}")
            packed.writestr("dataset-voice-kathleen-master/README.md", "read me")
        return path
    top = {"speechocean762": "speechocean762", "ljspeech": "LJSpeech-1.1", "noise": "./_background_noise_"}
    with tarfile.open(path, "w:bz2" if path.suffix == ".bz2" else "w:gz") as packed_tar:
        packed_tar.add(folder, top[name])
        packed_tar.add(__file__, "./zero/1.wav")
    return path


def test_downloads_are_read_as_published(
    tmp_path: Path, english, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"
    for name, text in kathleen_texts().items():
        sound(published / f"{name}.wav", rate=48000, channels=2)
        (published / f"{name}.txt").write_text(f"{text}\n")
    sound(data / "noise" / "mew.wav")
    asked = {}

    def fetch(url: str, path: Path, max_bytes: int) -> Path:
        name = path.name.split("-")[0]
        asked[name] = (url, max_bytes)
        return publish(name, published if name == "kathleen" else data / name, path)

    monkeypatch.setattr(sys.modules["sources"], "fetch", fetch)
    english.prepare(tmp_path / "local", data)
    prepared = english.prepare(tmp_path / "out", only=["speechocean762", "kathleen", "ljspeech", "noise"])
    assert sorted(asked) == ["kathleen", "ljspeech", "noise", "speechocean762"]
    assert all(url.startswith("https://") and 10**8 < limit < 10**10 for url, limit in asked.values())
    here, there = manifests(tmp_path / "local"), manifests(tmp_path / "out")
    for part in PARTS:
        assert [(c.id, cut_text(c), cut_speaker(c)) for c in here[part]] == [
            (c.id, cut_text(c), cut_speaker(c)) for c in there[part]
        ]
    assert {cut.sampling_rate for cut in there["test-kathleen"]} == {48000}
    assert len(load_samples(there["test-kathleen"][0], RATE)) == round(0.2 * RATE)
    assert [cut.id for cut in prepared.acoustics["noise"]] == ["mew.wav"]
    assert load_card(tmp_path / "out").sample_rate == RATE


def test_responses_are_one_of_each_room(tmp_path: Path, english, data: Path, monkeypatch) -> None:
    def fetch(url: str, path: Path, max_bytes: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as packed:
            for size in ("smallroom", "largeroom"):
                for room in ("Room001", "Room002", "Room011"):
                    for place in ("00001", "00002"):
                        name = f"simulated_rirs/{size}/{room}/{room}-{place}.wav"
                        packed.write(data / "rir" / "hall.wav", f"RIRS_NOISES/{name}")
        return path

    monkeypatch.setattr(sys.modules["sources"], "fetch", fetch)
    folder = sys.modules["sources"].download("rir", tmp_path / "download")
    assert [cut.id for cut in english.read_acoustics(folder)] == [
        f"{size}/{room}/{room}-00001.wav"
        for size in ("largeroom", "smallroom")
        for room in ("Room001", "Room011")
    ]


def test_folders_without_recordings_are_refused(tmp_path: Path, english, data: Path) -> None:
    (data / "rir" / "hall.wav").rename(data / "rir" / "hall.txt")
    with pytest.raises(ManifestError, match="expected recordings"):
        english.prepare(tmp_path / "out", data)
    (data / "noise" / "tap.flac").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"tap\.flac"):
        english.prepare(tmp_path / "out", data)
