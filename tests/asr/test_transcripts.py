import gzip
import json

import pytest

from asr.errors import ManifestError
from asr.score import transcripts
from asr.score.transcripts import read_speakers, read_transcripts


def write(path, *lines):
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines
    )
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["hyp.jsonl", "hyp.jsonl.gz", "hyp"])
def test_json_lines(tmp_path, name):
    path = write(
        tmp_path / name, {"id": "u1", "text": "sieben drei", "speaker": "theo"}, "", {"id": "u2", "text": ""}
    )
    assert read_transcripts(path) == {"u1": "sieben drei", "u2": ""}
    assert read_speakers(path) == {"u1": "theo"}


def test_lhotse_cuts(tmp_path):
    plain = {"id": "c1", "type": "MonoCut", "supervisions": [{"text": "one", "speaker": "ann"}]}
    several = {
        "id": "c2",
        "supervisions": [{"text": "one", "speaker": "ann"}, {"text": "two", "speaker": "bob"}],
    }
    tracks = [
        {"cut": {"id": "x", "supervisions": [{"text": "six", "speaker": "ann"}]}, "offset": 0},
        {"cut": {"id": "pad", "duration": 1.0}, "offset": 1},
        {"cut": {"id": "y", "supervisions": [{"text": "nine", "speaker": "ann"}]}, "offset": 2},
    ]
    mixed = {"id": "c3", "type": "MixedCut", "tracks": tracks}
    silent = {"id": "c4", "supervisions": []}
    path = write(tmp_path / "test.jsonl.gz", plain, several, mixed, silent)
    assert read_transcripts(path) == {"c1": "one", "c2": "one two", "c3": "six nine", "c4": ""}
    assert read_speakers(path) == {"c1": "ann", "c3": "ann"}


def test_kaldi_text(tmp_path):
    path = write(tmp_path / "text", "u1 seven  three", "u2", "u3\tnine")
    assert read_transcripts(path) == {"u1": "seven  three", "u2": "", "u3": "nine"}


def test_plain_lines_keep_their_numbers(tmp_path):
    path = write(tmp_path / "ref.txt", "seven three", "", "nine")
    assert read_transcripts(path) == {"1": "seven three", "2": "", "3": "nine"}


def test_windows_files(tmp_path):
    path = tmp_path / "ref.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_transcripts(path) == {"1": "one", "2": "two"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "u1", "text": "a"}', '{"id": "u1", "text": "b"}'], ":2: the id u1 was given before"),
        (['{"id": "u1", "text": "a"}', "u2 b"], ":2: expected a JSON object"),
        (['{"id": "u1", "text": "a"}', "[1]"], ":2: expected a JSON object, found list"),
        (['{"text": "a"}'], ":1: expected an id, found None"),
        (['{"id": 7, "text": "a"}'], ":1: expected an id, found 7"),
        (['{"id": "u1", "text": 5}'], ":1: expected text to be a string, found 5"),
        (['{"id": "u1", "duration": 5}'], ":1: expected text or supervisions, found only id, duration"),
        (['{"id": "u1", "supervisions": [5]}'], ":1: expected each supervision to be an object"),
        (['{"id": "u1", "supervisions": 5}'], ":1: expected a list"),
        (['{"id": "u1", "tracks": [{}]}'], ":1: expected each cut to be an object"),
        (['{"id": "u1", "text": ' + "[" * 100_000], ":1: expected a JSON object"),
        ([""], "expected at least one transcript"),
    ],
)
def test_bad_content_names_file_and_line(tmp_path, lines, message):
    path = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(ManifestError) as caught:
        read_transcripts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ManifestError, match="found nothing there"):
        read_transcripts(tmp_path / "none")
    whole = write(tmp_path / "cut.jsonl.gz", {"id": "u1", "text": "a" * 5000}).read_bytes()
    for content in (whole[: len(whole) // 2], b"not gzip", whole[:20] + b"\xff\xff" + whole[22:]):
        (tmp_path / "cut.jsonl.gz").write_bytes(content)
        with pytest.raises(ManifestError, match=r"cut\.jsonl\.gz"):
            read_transcripts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "latin").write_bytes(b"u1 a\nu2 caf\xe9\n")
    with pytest.raises(ManifestError, match="latin:2: expected UTF-8"):
        read_transcripts(tmp_path / "latin")


def test_lines_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(transcripts, "MAX_LINE_BYTES", 50)
    path = write(tmp_path / "text", "u1 a", "u2 " + "b" * 60)
    with pytest.raises(ManifestError, match=":2: expected at most 50 bytes a line"):
        read_transcripts(path)
