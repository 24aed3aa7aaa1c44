"""`asr align`: recordings and manifests with their texts to times, and the files that hold them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.align import Options, align_file, align_manifest, align_text
from asr.cli.textgrid import Interval, textgrid
from asr.data.manifests import read_cuts, write_cuts
from asr.errors import AudioError, ConfigError, DataError, ManifestError, TokenError
from asr.recognizer import WHOLE_S, Recognizer, load

WORDS = {"zero": 500.0, "one": 900.0, "two": 1400.0}
RATE = 8000


def tones(*words: str) -> np.ndarray:
    """Tones of 300 ms with silence of 200 ms around them."""
    rng = np.random.default_rng(1)
    t = np.arange(round(0.3 * RATE)) / RATE
    silence = np.zeros(round(0.2 * RATE))
    parts = [silence]
    for word in words:
        parts += [0.3 * np.sin(2 * np.pi * WORDS[word] * t) * np.hanning(len(t)), silence]
    samples = np.concatenate(parts)
    return (samples + 0.002 * rng.standard_normal(len(samples))).astype(np.float32)


@pytest.fixture
def hybrid(make_model) -> Path:
    return make_model(kind="hybrid")


def parse_textgrid(text: str) -> dict[str, list[Interval]]:
    """The interval tiers of a long TextGrid, as Praat's manual has them."""
    lines = iter(text.splitlines())
    assert next(lines) == 'File type = "ooTextFile"'
    assert next(lines) == 'Object class = "TextGrid"'
    values = re.findall(r'(xmin|xmax|name|text|size|class) = ("(?:[^"]|"")*"|[\d.]+)', text)[1:]
    tiers: dict[str, list[Interval]] = {}
    end = float(values[1][1])
    place = 3
    for _ in range(int(values[2][1])):
        head = dict(values[place : place + 5])
        assert head["class"] == '"IntervalTier"'
        assert (float(head["xmin"]), float(head["xmax"])) == (0.0, end)
        place += 5
        rows = []
        for _ in range(int(head["size"])):
            (_, low), (_, high), (_, label) = values[place : place + 3]
            rows.append(Interval(float(low), float(high), label[1:-1].replace('""', '"')))
            place += 3
        tiers[head["name"][1:-1]] = rows
    assert place == len(values)
    for rows in tiers.values():
        assert rows[0].start_s == 0
        assert rows[-1].end_s == end
        assert all(row.start_s < row.end_s for row in rows)
        assert all(a.end_s == b.start_s for a, b in pairwise(rows))
    return tiers


@pytest.mark.parametrize("head", ["ctc", "transducer"])
def test_times_are_in_order_and_inside_the_recording(hybrid: Path, head: str) -> None:
    samples = tones("zero", "one", "one", "two")
    found = align_text(load(hybrid), samples, "zero  one one two", options=Options(head=head))
    transcript = found.transcript
    assert transcript.text == "zero one one two"
    assert [word.text for word in transcript.words] == ["zero", "one", "one", "two"]
    assert len(transcript.tokens) == len(found.log_probs) == 4
    assert all(0 <= item.start_s < item.end_s <= len(samples) / RATE for item in transcript.words)
    assert all(a.start_s <= b.start_s for a, b in pairwise(transcript.words))
    assert found.log_prob <= 0
    assert [token.confidence for token in transcript.tokens] == pytest.approx(np.exp(found.log_probs))


def test_the_recordings_end_bounds_its_last_frame(hybrid: Path) -> None:
    """Every frame has to say a label: the last one reaches behind the end."""
    recognizer = load(hybrid)
    samples = tones("zero")[:3300]
    frames = len(recognizer.encode(samples))
    text = " ".join(["zero", "one"] * frames).split()[:frames]
    words = align_text(recognizer, samples, " ".join(text), options=Options(head="ctc")).transcript.words
    assert frames / recognizer.network.encoder.frame_rate > 3300 / RATE
    assert words[-1].end_s == 3300 / RATE


def test_frames_are_those_that_the_search_hears(hybrid: Path) -> None:
    recognizer = load(hybrid)
    samples = tones("two", "zero")
    whole = recognizer.encode(samples)
    assert len(samples) / RATE < WHOLE_S
    parts = [
        recognizer.step(
            torch.from_numpy(samples)[None], torch.tensor([len(samples)]), recognizer.initial_state()
        )
    ]
    parts.append(recognizer.flush(parts[0].state))
    streamed = torch.cat([e.y[0, : int(e.y_lengths[0])] for part in parts for e in part.encoded])
    torch.testing.assert_close(whole, streamed, atol=1e-4, rtol=1e-4)


def test_long_recordings_are_encoded_in_blocks(hybrid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer, samples = load(hybrid), tones("two", "zero", "one", "two")
    whole = recognizer.encode(samples)
    monkeypatch.setattr("asr.recognizer.WHOLE_S", 1.0)
    monkeypatch.setattr("asr.pipeline.BLOCK_S", 0.37)
    torch.testing.assert_close(recognizer.encode(samples), whole, atol=1e-4, rtol=1e-4)


def test_an_empty_text_is_nowhere(hybrid: Path) -> None:
    recognizer = load(hybrid)
    found = align_text(recognizer, tones("one"), " \n")
    assert found.transcript.words == ()
    assert -np.inf < found.log_prob <= 0
    nothing = align_text(recognizer, np.zeros(0, np.float32), "")
    assert nothing.transcript.words == ()


def test_what_cannot_be_aligned_says_why(hybrid: Path, make_model) -> None:
    recognizer, samples = load(hybrid), tones("one")
    with pytest.raises(TokenError, match=r"utterance u1: .*no word 'seven'"):
        align_text(recognizer, samples, "one seven", "u1")
    with pytest.raises(DataError, match=r"utterance u1: expected at least 2\d\d encoder frames .* found \d+"):
        align_text(recognizer, samples, "one " * 120, "u1", Options(head="ctc"))
    with pytest.raises(DataError, match=r"utterance u1: .*at most 0 MiB.*use the CTC head"):
        align_text(recognizer, samples, "one", "u1", Options(max_bytes=100))
    with pytest.raises(DataError, match=r"utterance u1: expected at least 1 encoder"):
        align_text(recognizer, np.zeros(0, np.float32), "one", "u1")
    with pytest.raises(AudioError, match="u1"):
        align_text(recognizer, np.full(4000, np.nan, np.float32), "one", "u1")
    with pytest.raises(ConfigError, match="no CTC head"):
        align_text(load(make_model()), samples, "one", options=Options(head="ctc"))
    with pytest.raises(ConfigError, match="normalization"):
        align_text(recognizer, samples, "one", options=Options(normalization="french"))


def test_texts_may_be_normalised(hybrid: Path) -> None:
    options = Options(normalization="basic")
    words = align_text(load(hybrid), tones("one", "two"), "One, TWO!", options=options).transcript.words
    assert [word.text for word in words] == ["one", "two"]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a b.wav"
    soundfile.write(path, tones("zero", "one", "two"), RATE)
    return path


def test_the_command_writes_every_format(hybrid: Path, recording: Path, call, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("zero one\ntwo\n", encoding="utf-8")
    results = {}
    for name in ("json", "ctm", "textgrid"):
        out = tmp_path / f"out.{name}"
        arguments = ["--model", hybrid, "--head", "ctc", "--format", name]
        code, printed, _ = call("align", recording, f"@{tmp_path / 'text.txt'}", *arguments)
        assert code == 0
        assert call("align", recording, "zero one two", *arguments, "--out", out)[0] == 0
        assert out.read_text(encoding="utf-8") == printed
        results[name] = printed
    entry = json.loads(results["json"])
    assert (entry["id"], entry["text"]) == ("a b", "zero one two")
    assert [token["text"] for token in entry["tokens"]] == ["▁zero", "▁one", "▁two"]
    assert all(token["log_prob"] <= 0 for token in entry["tokens"])
    words = [(word["start_s"], word["text"]) for word in entry["words"]]
    lines = [line.split() for line in results["ctm"].splitlines()]
    assert [(float(line[2]), line[4]) for line in lines] == [
        (pytest.approx(start, abs=0.006), word) for start, word in words
    ]
    assert {line[0] for line in lines} == {"a_b"}
    tiers = parse_textgrid(results["textgrid"])
    spoken = [(round(row.start_s, 3), row.text) for row in tiers["words"] if row.text]
    assert spoken == words
    assert [row.text for row in tiers["tokens"] if row.text] == ["▁zero", "▁one", "▁two"]


def test_the_command_refuses_what_makes_no_sense(hybrid: Path, recording: Path, call, tmp_path: Path) -> None:
    for arguments, message in (
        ([recording], "expected a recording and its text"),
        ([], "expected a recording and its text"),
        ([recording, "one", "--data", "x.jsonl"], "expected a recording and its text"),
        (["--data", "x.jsonl"], "add --out DIR"),
        ([recording, f"@{tmp_path / 'none.txt'}"], "expected a text file"),
        ([recording, "one nine"], f"utterance {recording}: the tokenizer has no word 'nine'"),
        ([recording, "one", "--max-memory-mb", 1, "--head", "ctc", "--normalization", "x"], "normalization"),
    ):
        code, out, err = call("align", *arguments, "--model", hybrid)
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    assert "UTF-8" in call("align", recording, f"@{tmp_path / 'latin.txt'}", "--model", hybrid)[2]


@pytest.fixture
def corpus(write_tones, tmp_path: Path) -> Path:
    return write_tones(tmp_path / "tones", WORDS, {"test": 2})


def test_a_manifest_gets_the_times_of_its_words(hybrid: Path, corpus: Path, call, tmp_path: Path) -> None:
    out = tmp_path / "aligned"
    code, printed, _ = call("align", "--data", corpus / "test.jsonl.gz", "--out", out, "--model", hybrid)
    assert code == 0
    assert printed == f"6 utterances aligned, 0 not: {out}\n"
    cuts = list(read_cuts(out / "test.jsonl.gz"))
    entries = [json.loads(line) for line in (out / "alignment.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == [cut.id for cut in cuts]
    for cut, entry in zip(cuts, entries, strict=True):
        (supervision,) = cut.supervisions
        (item,) = supervision.alignment["word"]
        (word,) = entry["words"]
        assert item.symbol == word["text"] == supervision.text
        assert item.start == pytest.approx(word["start_s"], abs=1e-3)
        assert item.end == pytest.approx(word["end_s"], abs=1e-3)
        assert item.end <= cut.duration
        assert Path(cut.recording.sources[0].source).is_absolute()


def test_a_manifest_as_files_and_as_a_ctm(hybrid: Path, corpus: Path, call, tmp_path: Path) -> None:
    cuts = list(read_cuts(corpus / "test.jsonl.gz"))
    names = ["../up", "a/b", "a_b", "A_B", "x", "y"]
    for cut, name in zip(cuts, names, strict=True):
        cut.id = name
    cuts[5].supervisions[0].text = "seven"
    write_cuts(cuts, corpus / "odd.jsonl.gz")
    out = tmp_path / "aligned"
    arguments = "--data", corpus / "odd.jsonl.gz", "--out", out, "--model", hybrid
    code, printed, err = call("align", *arguments, "--format", "textgrid")
    assert code == 1
    assert "utterance y: the tokenizer has no word 'seven'" in err
    assert printed.startswith("5 utterances aligned, 1 not")
    written = sorted(path.name for path in out.glob("*.TextGrid"))
    assert written == ["A_B-3.TextGrid", "_up.TextGrid", "a_b-2.TextGrid", "a_b.TextGrid", "x.TextGrid"]
    for path in out.glob("*.TextGrid"):
        assert sum(bool(row.text) for row in parse_textgrid(path.read_text())["words"]) == 1
    assert len(list(read_cuts(out / "odd.jsonl.gz"))) == 5
    assert call("align", *arguments, "--format", "ctm")[0] == 1
    assert [line.split()[0] for line in (out / "alignment.ctm").read_text().splitlines()] == names[:5]
    same = call("align", "--data", corpus / "odd.jsonl.gz", "--out", corpus, "--model", hybrid)
    assert "another directory" in same[2]


def test_supervisions_of_a_cut_share_its_words(hybrid: Path, recording: Path, tmp_path: Path) -> None:
    from asr.data.manifests import file_recording, make_cut

    cut = make_cut(file_recording(recording, "r"), "r", "One,")
    (first,) = cut.supervisions
    second, third = (
        type(first)(id=text, recording_id="r", start=start, duration=0.1, text=text, speaker="b")
        for start, text in ((0.9, "two"), (0.5, "…"))
    )
    cut.supervisions = [second, first, third]
    write_cuts([cut], tmp_path / "m.jsonl")
    options = Options(normalization="basic")
    (found,) = align_manifest(load(hybrid), tmp_path / "m.jsonl", options)
    assert found.error is None
    spoken = {s.text: [item.symbol for item in s.alignment["word"]] for s in found.cut.supervisions}
    assert spoken == {"One,": ["one"], "two": ["two"], "…": []}
    with pytest.raises(ManifestError, match="found shards"):
        next(align_manifest(load(hybrid), tmp_path / "m.shar"))


def test_a_file_by_its_name(hybrid: Path, recording: Path) -> None:
    recognizer: Recognizer = load(hybrid)
    found = align_file(recognizer, recording, "zero one two")
    samples = soundfile.read(recording, dtype="float32")[0]
    assert found.transcript == align_text(recognizer, samples, "zero one two").transcript


def test_textgrids_have_no_gaps_and_no_overlaps() -> None:
    tier = [
        Interval(0.0, 0.04, 'say "a"'),
        Interval(0.04, 0.08, "b"),
        Interval(0.04, 0.08, "c"),
        Interval(0.04, 0.12, "d"),
        Interval(0.1, 0.3, "e"),
        Interval(1.0, 1.0, "ü"),
    ]
    tiers = parse_textgrid(textgrid(1.0, {"words": tier, "none": []}))
    assert [row.text for row in tiers["words"]] == ['say "a"', "b", "c", "d", "e", "", "ü"]
    assert [row.start_s for row in tiers["words"]] == [0, 0.04, 0.06, 0.08, 0.1, 0.3, 1.0]
    assert tiers["none"] == [Interval(0.0, tiers["words"][-1].end_s, "")]
    assert parse_textgrid(textgrid(0.0, {"words": []}))["words"][0].text == ""


def test_transcripts_can_be_textgrids(hybrid: Path, recording: Path, call) -> None:
    code, printed, _ = call("transcribe", recording, "--model", hybrid, "--format", "textgrid")
    assert code == 0
    assert list(parse_textgrid(printed)) == ["words"]
