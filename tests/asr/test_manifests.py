from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem
from typer.testing import CliRunner

from asr.cli.data import app
from asr.data.importers import import_corpus
from asr.data.manifests import (
    CorpusCard,
    cut_speaker,
    cut_text,
    file_recording,
    load_card,
    make_cut,
    read_cuts,
    save_card,
    write_cuts,
)
from asr.data.samples import SampleCache, load_samples
from asr.errors import AsrError, AudioError, ManifestError
from asr.text.lines import MAX_LINE_BYTES

RATE = 8000


def tone(path: Path, seconds: float = 0.5, hertz: float = 440.0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)
    soundfile.write(path, np.stack([wave] * channels, axis=1), RATE)
    return path


@pytest.fixture
def cut(tmp_path: Path):
    return make_cut(file_recording(tone(tmp_path / "a.wav"), "rec"), "cut", "hello there", speaker="ann")


def assert_one_line(error: AsrError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def write_items(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_cuts_survive_a_round_trip(tmp_path: Path, cut) -> None:
    path = tmp_path / "sub" / "cuts.jsonl.gz"
    write_cuts([cut], path)
    (read,) = read_cuts(path)
    assert read == cut
    assert (cut_text(read), cut_speaker(read)) == ("hello there", "ann")
    first = path.read_bytes()
    write_cuts([cut], path)
    assert path.read_bytes() == first
    write_cuts([cut], tmp_path / "plain.jsonl")
    assert list(read_cuts(tmp_path / "plain.jsonl")) == [cut]


def test_a_failed_write_leaves_the_old_manifest_and_nothing_else(tmp_path: Path, cut) -> None:
    path = tmp_path / "out" / "cuts.jsonl.gz"
    write_cuts([cut], path)
    before = path.read_bytes()

    def failing():
        yield cut
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="fire"):
        write_cuts(failing(), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["cuts.jsonl.gz"]


def test_write_refuses_other_names(tmp_path: Path, cut) -> None:
    with pytest.raises(ManifestError, match=r"\.jsonl"):
        write_cuts([cut], tmp_path / "cuts.json")


def test_text_of_several_supervisions_is_in_order_of_time(cut) -> None:
    later = SupervisionSegment("s2", "rec", start=0.4, duration=0.1, text="there")
    earlier = SupervisionSegment("s1", "rec", start=0.1, duration=0.1, text=" hello ", speaker="bo")
    silent = SupervisionSegment("s0", "rec", start=0.0, duration=0.1, text=None)
    cut.supervisions = [later, silent, earlier]
    assert cut_text(cut) == "hello there"
    assert cut_speaker(cut) == "bo"


def test_relative_paths_are_found_beside_the_manifest(tmp_path: Path, cut) -> None:
    item = cut.to_dict()
    item["recording"]["sources"][0]["source"] = "a.wav"
    (read,) = read_cuts(write_items(tmp_path / "cuts.jsonl", item))
    assert len(load_samples(read, RATE)) == 4000


@pytest.mark.parametrize("kind", ["command", "url", "memory", "shar"])
@pytest.mark.parametrize("place", ["cut", "track", "custom", "impulse"])
def test_sources_that_are_not_files_are_refused_and_not_run(
    tmp_path: Path, cut, kind: str, place: str
) -> None:
    marker = tmp_path / "ran"
    hostile = file_recording(tmp_path / "a.wav", "bad").to_dict()
    hostile["sources"] = [{"type": kind, "channels": [0], "source": f"touch {marker}"}]
    item = cut.to_dict()
    if place == "cut":
        item["recording"] = hostile
    elif place == "track":
        item = cut.append(cut).to_dict()
        item["tracks"][1]["cut"]["recording"] = hostile
    elif place == "custom":
        item["custom"] = {"target": hostile}
    else:
        transform = {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": hostile}}
        item["recording"]["transforms"] = [transform]
    path = write_items(tmp_path / "cuts.jsonl", cut.to_dict(), item)
    with pytest.raises(ManifestError) as caught:
        read_cuts(path)
    assert_one_line(caught.value, f"{path}:2", "'file'", kind)
    assert not marker.exists()


@pytest.mark.parametrize("source", ["pipe:touch x", "https://example.org/a.wav"])
def test_files_that_are_not_paths_are_refused(tmp_path: Path, cut, source: str) -> None:
    item = cut.to_dict()
    item["recording"]["sources"][0]["source"] = source
    with pytest.raises(ManifestError, match="store it in files"):
        read_cuts(write_items(tmp_path / "cuts.jsonl", item))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "at least one cut"),
        (b"\n{broken\n", ":2: expected a JSON object"),
        (b"[1, 2]\n", ":1: expected a JSON object"),
        (b'{"id": "x", "sources": []}\n', "a recording"),
        (b'{"audio_filepath": "x.wav", "text": "x"}\n', "asr data import"),
        (b'{"type": "MonoCut", "id": "x"}\n', ":1: not a valid lhotse"),
        (b"\xff\xfe\n", ":1: expected UTF-8"),
        (b'{"a": ' * 100_000 + b"\n", ":1: expected a JSON object"),
        (b"9" * 5000 + b"\n", ":1: expected a JSON object"),
        (b" " * (MAX_LINE_BYTES + 2), ":1: expected at most"),
    ],
)
def test_malformed_manifests_name_file_and_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "cuts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        read_cuts(path)
    assert_one_line(caught.value, str(path), reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"duration": 1e12}, "a duration"),
        ({"duration": -1.0}, "a duration"),
        ({"duration": "long"}, "duration"),
        ({"id": 7}, "an id"),
        ({"recording": None}, "not a valid lhotse"),
        (
            {"supervisions": [{"id": "s", "recording_id": "r", "start": 0, "duration": 1, "text": 5}]},
            "strings",
        ),
    ],
)
def test_fields_with_absurd_values_are_refused(tmp_path: Path, cut, change: dict, reason: str) -> None:
    path = write_items(tmp_path / "cuts.jsonl", {**cut.to_dict(), **change})
    with pytest.raises(ManifestError) as caught:
        read_cuts(path)
    assert_one_line(caught.value, f"{path}:1", reason)


def test_damaged_gzip_is_one_line(tmp_path: Path, cut) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    write_cuts([cut] * 50, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError) as caught:
        read_cuts(path)
    assert_one_line(caught.value, str(path), "damaged gzip")
    path.write_bytes(b"plain text")
    with pytest.raises(ManifestError, match="damaged gzip"):
        read_cuts(path)


def test_a_line_that_unpacks_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    with gzip.open(path, "wb") as packed:
        for _ in range(8):
            packed.write(b" " * MAX_LINE_BYTES)
    with pytest.raises(ManifestError, match="expected at most"):
        read_cuts(path)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nothing there"):
        read_cuts(tmp_path / "none.jsonl.gz")


def test_card_round_trip(tmp_path: Path) -> None:
    card = CorpusCard(name="x", source="y", licence="z", sample_rate=8000, synthetic=True)
    save_card(card, tmp_path)
    assert load_card(tmp_path) == card


def kaldi(folder: Path) -> Path:
    """Two recordings, three utterances; audio relative to the parent of the data directory."""
    tone(folder / "wav" / "r1.wav", 2.0)
    tone(folder / "wav" / "r2.wav", 1.0)
    data = folder / "train"
    data.mkdir()
    (data / "wav.scp").write_text("r1 wav/r1.wav\nr2 wav/r2.wav\n")
    (data / "text").write_text("u1 good morning\nu2 night\n\nu3\n")
    (data / "utt2spk").write_text("u1 ann\nu2 ann\nu3 bo\n")
    (data / "segments").write_text("u1 r1 0.00 0.75\nu2 r1 0.75 2.01\nu3 r2 0.0 -1\n")
    return data


def test_kaldi_directory_with_segments(tmp_path: Path) -> None:
    cuts = list(import_corpus(kaldi(tmp_path)).cuts)
    assert [c.id for c in cuts] == ["u1", "u2", "u3"]
    assert [cut_text(c) for c in cuts] == ["good morning", "night", ""]
    assert [cut_speaker(c) for c in cuts] == ["ann", "ann", "bo"]
    assert [(c.start, c.end) for c in cuts] == [(0.0, 0.75), (0.75, 2.0), (0.0, 1.0)]
    assert len(load_samples(cuts[0], RATE)) == 6000


def test_kaldi_directory_without_segments(tmp_path: Path) -> None:
    data = kaldi(tmp_path)
    (data / "segments").unlink()
    (data / "utt2spk").unlink()
    (data / "text").write_text("r1 one\nr2 two\n")
    cuts = list(import_corpus(data, "kaldi").cuts)
    assert [(c.id, c.duration, cut_text(c)) for c in cuts] == [("r1", 2.0, "one"), ("r2", 1.0, "two")]


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        (
            "wav.scp",
            "r2 touch {marker}; cat x.wav |",
            "wav.scp:2: expected an audio file, found a shell command",
        ),
        ("wav.scp", "r2", "wav.scp:2: expected KEY VALUE"),
        ("wav.scp", "r1 wav/r2.wav", "wav.scp:2: expected each key once"),
        ("wav.scp", "r9 wav/r2.wav", "r2 in wav.scp"),
        ("wav.scp", "r2 wav/none.wav", "no such audio file"),
        ("wav.scp", "r2 train/text", "wav.scp:2"),
        ("segments", "u3 r2 0.0 5.0", "within 1.000 s of audio"),
        ("segments", "u3 r2 x 5.0", "segments:3: expected UTTERANCE"),
        ("segments", "u4 r2 0.0 0.5", "u3 in segments"),
    ],
)
def test_kaldi_mistakes_name_file_and_line(tmp_path: Path, file: str, line: str, reason: str) -> None:
    data = kaldi(tmp_path)
    marker = tmp_path / "ran"
    lines = (data / file).read_text().splitlines()[:-1]
    (data / file).write_text("\n".join([*lines, line.format(marker=marker)]) + "\n")
    with pytest.raises((ManifestError, AudioError)) as caught:
        import_corpus(data)
    assert_one_line(caught.value, reason)
    assert not marker.exists()


def test_missing_audio_can_be_skipped(tmp_path: Path) -> None:
    data = kaldi(tmp_path)
    (tmp_path / "wav" / "r2.wav").unlink()
    imported = import_corpus(data, skip_missing=True)
    assert [c.id for c in imported.cuts] == ["u1", "u2"]
    assert imported.skipped == ["u3"]


def test_broken_audio_can_be_skipped(tmp_path: Path) -> None:
    data = kaldi(tmp_path)
    (tmp_path / "wav" / "r1.wav").write_bytes(b"this is no sound")
    imported = import_corpus(data, skip_broken=True)
    assert [c.id for c in imported.cuts] == ["u3"]
    assert imported.skipped == []
    assert list(imported.broken) == ["u1", "u2"]
    for reason in imported.broken.values():
        assert "r1.wav: expected audio" in reason


def test_nemo_lines(tmp_path: Path) -> None:
    tone(tmp_path / "clips" / "a.wav", 2.0)
    path = write_items(
        tmp_path / "train.json",
        {"audio_filepath": "clips/a.wav", "text": "one", "duration": 0.5},
        {"audio_filepath": "clips/a.wav", "text": "two", "duration": 0.75, "offset": 1.0, "speaker": "bo"},
        {"audio_filepath": str(tmp_path / "clips" / "a.wav"), "text": "all"},
    )
    cuts = list(import_corpus(path).cuts)
    assert [(c.id, c.start, c.duration) for c in cuts] == [("a", 0, 0.5), ("a-2", 1, 0.75), ("a-3", 0, 2)]
    assert cut_speaker(cuts[1]) == "bo"


@pytest.mark.parametrize(
    "change",
    [{"text": None}, {"audio_filepath": 3}, {"duration": "1"}, {"offset": -1}, {"duration": float("nan")}],
)
def test_nemo_mistakes_name_the_line(tmp_path: Path, change: dict) -> None:
    tone(tmp_path / "a.wav")
    good = {"audio_filepath": "a.wav", "text": "one"}
    path = write_items(tmp_path / "train.json", good, {**good, **change})
    with pytest.raises(ManifestError) as caught:
        import_corpus(path)
    assert_one_line(caught.value, f"{path}:2")


def test_ljspeech_prefers_normalised_text(tmp_path: Path) -> None:
    tone(tmp_path / "wavs" / "x1.wav")
    tone(tmp_path / "wavs" / "x2.flac")
    (tmp_path / "metadata.csv").write_text("x1|Dr. No|doctor no\nx2|plain\n")
    for source in (tmp_path, tmp_path / "metadata.csv"):
        assert [(c.id, cut_text(c)) for c in import_corpus(source).cuts] == [
            ("x1", "doctor no"),
            ("x2", "plain"),
        ]


def test_recordings_with_their_texts_beside_them(tmp_path: Path) -> None:
    tone(tmp_path / "b.wav")
    tone(tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("Good\nmorning.\n")
    (tmp_path / "b.txt").write_text("Night.")
    assert [(c.id, cut_text(c)) for c in import_corpus(tmp_path).cuts] == [
        ("a", "Good morning."),
        ("b", "Night."),
    ]
    (tmp_path / "c.txt").write_text("Nobody.")
    with pytest.raises(ManifestError, match=r"c\.wav: there is no such audio file"):
        import_corpus(tmp_path)
    assert import_corpus(tmp_path, skip_missing=True).skipped == ["c"]


@pytest.mark.parametrize("line", ["x1", "../x1|text", "|text"])
def test_ljspeech_mistakes_name_the_line(tmp_path: Path, line: str) -> None:
    tone(tmp_path / "wavs" / "x1.wav")
    (tmp_path / "metadata.csv").write_text(f"{line}\n")
    with pytest.raises(ManifestError) as caught:
        import_corpus(tmp_path)
    assert_one_line(caught.value, "metadata.csv:1")


def test_lhotse_recordings_and_supervisions(tmp_path: Path) -> None:
    recording = file_recording(tone(tmp_path / "a.wav", 2.0), "rec")
    segments = [SupervisionSegment(f"s{i}", "rec", start=i, duration=1.0, text=f"t{i}") for i in range(2)]
    segments[1] = segments[1].with_alignment("word", [AlignmentItem("t1", 1.25, 0.5)])
    RecordingSet.from_recordings([recording]).to_file(tmp_path / "x_recordings_train.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file(tmp_path / "x_supervisions_train.jsonl.gz")
    for source in (tmp_path, tmp_path / "x_recordings_train.jsonl.gz"):
        cuts = list(import_corpus(source).cuts)
        assert [(c.id, c.start, c.duration, cut_text(c)) for c in cuts] == [
            ("s0", 0, 1, "t0"),
            ("s1", 1, 1, "t1"),
        ]
        (word,) = cuts[1].supervisions[0].alignment["word"]
        assert (word.start, word.duration) == (1.25, 0.5)  # from the recording's start


def test_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"wav\.scp"):
        import_corpus(tmp_path)


def test_import_command(tmp_path: Path) -> None:
    out = tmp_path / "cuts.jsonl.gz"
    result = CliRunner().invoke(app, ["import", str(kaldi(tmp_path)), str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "3 cuts" in result.output
    assert len(list(read_cuts(out))) == 3


def test_samples_of_every_kind_of_cut(tmp_path: Path, cut) -> None:
    whole = load_samples(cut, RATE)
    assert (whole.shape, whole.dtype) == ((4000,), np.float32)
    np.testing.assert_array_equal(load_samples(cut.truncate(offset=0.1, duration=0.2), RATE), whole[800:2400])
    mixed = cut.append(cut)
    np.testing.assert_allclose(load_samples(mixed, RATE), np.tile(whole, 2), atol=1e-6)
    assert len(load_samples(cut, 16000)) == 8000
    assert len(load_samples(mixed, 16000)) == 16000
    stereo = make_cut(file_recording(tone(tmp_path / "st.wav", channels=2), "st"), "st", "x")
    np.testing.assert_allclose(load_samples(stereo, RATE), whole, atol=1e-6)


def test_missing_audio_names_the_cut(tmp_path: Path, cut) -> None:
    mixed = cut.append(cut)
    (tmp_path / "a.wav").unlink()
    for broken in (cut, mixed):
        with pytest.raises(AudioError) as caught:
            load_samples(broken, RATE)
        assert_one_line(caught.value, broken.id, "a.wav")


def test_the_cache_stays_within_its_bytes(tmp_path: Path) -> None:
    cuts = []
    for i in range(5):
        recording = file_recording(tone(tmp_path / f"{i}.wav", 0.1, hertz=100 + i), str(i))
        cuts.append(make_cut(recording, str(i), "x"))
    cache = SampleCache(lambda number: load_samples(cuts[number], RATE), max_bytes=2 * 800 * 4 + 1)
    first = cache[0]
    assert cache[0] is first
    for i in range(5):
        assert np.array_equal(cache[i], load_samples(cuts[i], RATE))
        assert cache.used_bytes <= cache.max_bytes
    assert cache[0] is not first
