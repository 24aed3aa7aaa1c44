"""Parts in shards: written whole or not at all, equal to manifests, read in bounds, never trusted."""

from __future__ import annotations

import gc
import hashlib
import io
import pickle
import shutil
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from asr.config import load_config, save_config
from asr.data.augment import AugmentConfig, NoiseConfig, SpeedConfig
from asr.data.batch import Batch
from asr.data.batches import Batches, BatchesConfig, training_texts
from asr.data.manifests import file_recording, make_cut, read_cuts, write_cuts
from asr.data.parts import ManifestPart, MixingConfig, Pool, find_part, open_part
from asr.data.plan import KEPT_WINDOWS, Dealing
from asr.data.samples import load_as_recorded, load_samples
from asr.data.shard_writer import survey, write_shards
from asr.data.shards import ENTRY, ShardedPart, ShardsCard, file_sha256
from asr.errors import AsrError, AudioError, ConfigError, ManifestError
from asr.features.fbank import Fbank, FbankConfig
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

RATE = 8000
WORDS = ("zero", "one", "two")
FEATURES = FbankConfig(sample_rate=RATE, num_mel_bins=20, dither=1.0)
AUGMENT = AugmentConfig(speed=SpeedConfig(factors=(0.9, 1.0, 1.1)), noise=NoiseConfig(probability=0.5))
STRINGS = {"min_parts": 1, "max_parts": 3}


def sound(path: Path, seconds: float, seed: int, **options: object) -> Path:
    noise = np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))
    soundfile.write(path, noise, options.pop("rate", RATE), **options)  # type: ignore[arg-type]
    return path


def corpus(folder: Path, count: int = 25, name: str = "u") -> Path:
    """A manifest of `count` words by two speakers; the last two are stretches of one recording."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, cuts = np.random.default_rng(len(name)), []
    for i in range(count - 2):
        recording = file_recording(sound(folder / f"{name}{i}.wav", rng.uniform(0.2, 0.6), i), f"{name}{i}")
        cuts.append(make_cut(recording, f"{name}{i}", WORDS[i % 3], speaker=f"s{i % 2}"))
    long = file_recording(sound(folder / f"{name}long.wav", 1.0, 99), f"{name}long")
    for i, start_s in enumerate((0.1, 0.55)):
        cuts.append(
            make_cut(long, f"{name}{count - 2 + i}", "one", speaker="s0", start_s=start_s, duration_s=0.4)
        )
    write_cuts(cuts, folder / "train.jsonl.gz")
    return folder / "train.jsonl.gz"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def shards(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards of four cuts, the last one of one."""
    out = tmp_path_factory.mktemp("shards") / "train.shar"
    write_shards(manifest, out, shard_size=4)
    return out


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "train.shar"))


TOKENIZER = train_tokenizer(TokenizerConfig(kind="char"), [" ".join(WORDS)])


def make(source: object, *, training: bool = True, workers: int = 0, **settings: object) -> Batches:
    settings = {"max_duration_s": 1.5, "seed": 3, **settings}
    config = BatchesConfig(num_workers=workers, **settings)  # type: ignore[arg-type]
    pool = Pool([source]) if isinstance(source, ShardedPart) else source
    return Batches(pool, config, Fbank(FEATURES), TOKENIZER, AUGMENT, training=training)  # type: ignore[arg-type]


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert [b.ids for b in batches] == [b.ids for b in others]
    for one, other in zip(batches, others, strict=True):
        assert (one.texts, one.duration_s, one.seed) == (other.texts, other.duration_s, other.seed)
        for name in ("features", "feature_lengths", "targets", "target_lengths"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def tree(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}


def one_line(error: BaseException, *words: str) -> None:
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words), error


# What is written


@pytest.mark.parametrize("form", ["flac", "original"])
def test_what_is_stored_is_what_was_recorded(manifest: Path, tmp_path: Path, form: str) -> None:
    card = write_shards(manifest, tmp_path / "a.shar", shard_size=10, form=form)  # type: ignore[arg-type]
    assert (card.cuts, card.shards, card.skipped, card.format) == (25, 3, 0, form)
    part = ShardedPart(tmp_path / "a.shar")
    assert part.runs == [range(10), range(10, 20), range(20, 25)]
    for number, cut in enumerate(read_cuts(manifest)):
        assert part.words(number) == ManifestPart([cut]).words(0)
        for rate in (RATE, 16000):
            assert np.array_equal(part.samples(number, rate), load_samples(cut, rate))


def test_lhotse_reads_the_shards(manifest: Path, shards: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its reader leaves the files to the collector
        theirs = list(CutSet.from_shar(in_dir=shards / "shards"))
        gc.collect()
    for cut, other in zip(read_cuts(manifest), theirs, strict=True):
        assert (cut.id, cut.duration, cut.supervisions[0].text) == (
            other.id,
            other.duration,
            other.supervisions[0].text,
        )
        assert np.array_equal(load_as_recorded(cut).samples, other.load_audio()[0])
    assert [cut.id for cut in ShardedPart(shards).cuts()] == [cut.id for cut in theirs]


@pytest.mark.parametrize(
    ("subtype", "tolerance"), [("PCM_16", 0), ("PCM_24", 0), ("PCM_U8", 0), ("FLOAT", 2**-24)]
)
def test_sample_formats(tmp_path: Path, subtype: str, tolerance: float) -> None:
    cut = make_cut(file_recording(sound(tmp_path / "x.wav", 0.3, 0, subtype=subtype), "x"), "x", "one")
    write_cuts([cut], tmp_path / "x.jsonl")
    write_shards(tmp_path / "x.jsonl", tmp_path / "x.shar")
    stored = ShardedPart(tmp_path / "x.shar").samples(0, RATE)
    assert np.abs(stored - load_samples(cut, RATE)).max() <= tolerance


def test_float_samples_above_full_scale_and_mixes_of_channels(tmp_path: Path) -> None:
    loud = np.array([0.5, -1.5, 1.25] * 900, np.float32)
    soundfile.write(tmp_path / "loud.wav", loud, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "two.wav", np.random.default_rng(0).uniform(-1, 1, (3000, 2)), RATE)
    cuts = [make_cut(file_recording(tmp_path / f"{n}.wav", n), n, "one") for n in ("loud", "two")]
    write_cuts(cuts, tmp_path / "x.jsonl")
    write_shards(tmp_path / "x.jsonl", tmp_path / "x.shar")
    part = ShardedPart(tmp_path / "x.shar")
    for number, cut in enumerate(cuts):
        assert np.array_equal(part.samples(number, RATE), load_samples(cut, RATE))


def test_opus_keeps_length_and_most_of_the_sound(tmp_path: Path, speech_like) -> None:
    for rate in (8000, 22050):
        soundfile.write(tmp_path / f"{rate}.wav", speech_like(2.0, rate), rate)
    cuts = [make_cut(file_recording(tmp_path / f"{n}.wav", n), n, "one") for n in ("8000", "22050")]
    write_cuts(cuts, tmp_path / "x.jsonl")
    card = write_shards(tmp_path / "x.jsonl", tmp_path / "x.shar", form="opus")
    assert card.audio_bytes < sum(path.stat().st_size for path in tmp_path.glob("*.wav")) / 2
    part = ShardedPart(tmp_path / "x.shar")
    for number, cut in enumerate(cuts):
        ours, theirs = part.samples(number, 8000), load_samples(cut, 8000)
        assert abs(len(ours) - len(theirs)) <= 1
        count = min(len(ours), len(theirs))
        assert np.corrcoef(ours[:count], theirs[:count])[0, 1] > 0.9


class Interrupt(BaseException):
    pass


def test_an_interrupted_job_goes_on_and_another_one_begins_anew(
    manifest: Path, shards: Path, tmp_path: Path
) -> None:
    out, aside = tmp_path / "train.shar", tmp_path / ".train.shar.unfinished"

    def stop(done: int, total: int) -> None:
        assert total == 25
        if done == 8:
            raise Interrupt

    for size in (5, 4):  # the first is another job, whose shards must not get in
        with pytest.raises(Interrupt):
            write_shards(manifest, out, shard_size=size, progress=stop if size == 4 else _stop_at_once)
        assert not out.exists()
    first = aside / "shards" / "recording.000001.tar"
    before = first.stat().st_mtime_ns
    for name in (".recording.000002.tar.tmp", ".cuts.000002.jsonl.gz.123.tmp"):  # as SIGKILL leaves them
        (aside / "shards" / name).write_bytes(b"half")
    (aside / "shards" / "recording.000002.tar").write_bytes(b"without its piece of the index")
    write_shards(manifest, out, shard_size=4)
    assert (out / "shards" / "recording.000001.tar").stat().st_mtime_ns == before
    assert tree(out) == tree(shards)
    assert not aside.exists()


def _stop_at_once(done: int, total: int) -> None:
    raise Interrupt


def test_two_writers_do_not_meet(manifest: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(ManifestError, match="another process") as caught:
            write_shards(manifest, tmp_path / "train.shar")
        one_line(caught.value)

    write_shards(manifest, tmp_path / "train.shar", progress=second)


def test_jobs_that_cannot_be_done(manifest: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"ending in \.shar"):
        write_shards(manifest, tmp_path / "train")
    with pytest.raises(ManifestError, match="already"):
        write_shards(manifest, shards)
    cut = next(iter(read_cuts(manifest)))
    for ids, message in ((["../x"], "name a file"), (["/x"], "name a file"), (["x", "x"], "repeated")):
        write_cuts([make_cut(cut.recording, name, "one") for name in ids], tmp_path / "x.jsonl")
        with pytest.raises(ManifestError, match=message) as caught:
            survey(tmp_path / "x.jsonl")
        one_line(caught.value)


def test_broken_recordings_stop_the_writing_or_are_counted(tmp_path: Path) -> None:
    manifest = corpus(tmp_path, 8)
    (tmp_path / "u1.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError) as caught:
        write_shards(manifest, tmp_path / "train.shar", shard_size=3)
    one_line(caught.value, "u1")
    card = write_shards(manifest, tmp_path / "train.shar", shard_size=3, skip_broken=True)
    assert (card.cuts, card.skipped, card.shards) == (7, 1, 3)
    ids = [ShardedPart(tmp_path / "train.shar").words(number).id for number in range(7)]
    assert ids == ["u0", *(f"u{i}" for i in range(2, 8))]


def test_the_command_says_where_and_how_large(manifest: Path, tmp_path: Path, call) -> None:
    code, out, err = call("data", "shard", manifest, tmp_path / "t.shar", "--shard-size", 10)
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 't.shar'}: 25 cuts, 0.003 h in 3 shards, 0.2 MiB of flac")
    code, out, err = call("data", "shard", manifest, tmp_path / "t.shar")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_an_interrupted_command_says_how_to_go_on(
    manifest: Path, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asr.data.shard_writer.encode_cut", interrupted)
    code, out, err = call("data", "shard", manifest, tmp_path / "t.shar")
    assert (code, out) == (130, "")
    assert err == f"{tmp_path / 't.shar'}: interrupted; the same command goes on with what is there\n"


# What is read


@pytest.mark.parametrize("training", [True, False])
def test_shards_in_one_window_are_their_manifest_bit_for_bit(
    manifest: Path, shards: Path, training: bool
) -> None:
    for concatenate in ({}, STRINGS):
        settings = {"training": training, "concatenate": concatenate, "max_duration_s": 3.0}
        ours, theirs = (make(source, **settings) for source in (ShardedPart(shards), read_cuts(manifest)))
        for _ in range(2):
            assert_same([*ours], [*theirs])
    config = BatchesConfig(concatenate=STRINGS)
    assert [*training_texts(Pool([ShardedPart(shards)]), config)] == [
        *training_texts(read_cuts(manifest), config)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_windows_are_resumed_at_any_batch_with_any_workers(shards: Path, workers: int) -> None:
    """Two shards at a time, four windows; the workers are forked once and each state is gone on from."""
    part = ShardedPart(shards)
    settings = {"window_shards": 2, "concatenate": STRINGS}
    whole = make(part, **settings)
    epochs = [[*whole], [*whole]]
    assert [b.ids for b in epochs[0]] != [b.ids for b in epochs[1]]
    heard = Counter(part for batch in epochs[1] for name in batch.ids for part in name.split("+"))
    assert heard == Counter(f"u{i}" for i in range(25))
    resumed = make(part, workers=workers, **settings)
    fingerprint = resumed.fingerprint()
    for position in range(0, len(epochs[1]) + 1, 2 * workers - 1):
        resumed.load_state_dict({"epoch": 1, "position": position, "fingerprint": fingerprint})
        assert_same([*resumed], epochs[1][position:])
        assert resumed.epoch == 2
    resumed.close()


def test_batches_are_of_the_shards_of_a_window(shards: Path) -> None:
    part = ShardedPart(shards)
    batches = make(part, window_shards=2)
    shard_of = {part.words(number).id: shard for shard, run in enumerate(part.runs) for number in run}
    order = [{shard_of[name] for name in batch.ids} for batch in batches]
    windows: list[set[int]] = []
    for used in order:
        if not windows or len(windows[-1] | used) > 2:
            windows.append(set())
        windows[-1] |= used
    assert [len(window) for window in windows] == [2, 2, 2, 1]
    assert sorted(shard for window in windows for shard in window) == list(range(7))


@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_share_the_batches_of_all_windows(shards: Path, workers: int) -> None:
    expected = [*make(ShardedPart(shards), window_shards=2)]
    for position, processes in ((0, 2), (6, 2), (6, 3)):
        for rank in range(processes):
            batches = make(ShardedPart(shards), workers=workers, window_shards=2)
            batches.load_state_dict({"epoch": 0, "position": position, "fingerprint": batches.fingerprint()})
            batches.deal(Dealing(rank, processes, per_step=3))
            steps = [expected[i : i + 3] for i in range(position, len(expected), 3)]
            assert_same([*batches], [batch for step in steps for batch in step[rank::processes]])
            batches.close()


def test_memory_is_bounded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.data.shards.OPEN_SHARDS", 3)
    part = ShardedPart(shards)
    batches = make(part, window_shards=2, cache_mb=0.02, max_duration_s=1.0)
    maker, plans = batches._maker, batches.plans()
    for _ in batches:
        assert maker._cache is not None
        assert maker._cache.used_bytes <= 20_000
        assert len(part._open) <= 3
        assert len(plans._kept) <= KEPT_WINDOWS
        assert sum(len(batch.utterances) for window in plans._kept.values() for batch in window) <= 16


def test_workers_that_are_spawned_open_the_shards_themselves(shards: Path) -> None:
    part = pickle.loads(pickle.dumps(ShardedPart(shards)))
    assert len(pickle.dumps(part)) < 1000
    assert len(part.samples(24, RATE)) == round(0.4 * RATE)


# What is damaged


def damage(part: Path, shard: int, place: float = 0.5) -> None:
    """Turn bytes over in every recording of a shard."""
    path, index = part / "shards" / f"recording.{shard:06d}.tar", ShardedPart(part)._index
    content = bytearray(path.read_bytes())
    for row in index[index["shard"] == shard]:
        content[int(row["offset"]) + int(row["size"] * place)] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_recordings_are_left_out_and_named(copied: Path, workers: int) -> None:
    damage(copied, 2)
    tar = copied / "shards" / "recording.000004.tar"
    with tar.open("r+b") as file:
        file.truncate(int(ShardedPart(copied)._index[17]["offset"]) + 100)
    (copied / "shards" / "recording.000005.tar").unlink()
    lost = {8, 9, 10, 11, 17, 18, 19, 20, 21, 22, 23}
    batches = make(ShardedPart(copied), workers=workers)
    made = [*batches]
    batches.close()
    found = {line.split(":")[0]: line for batch in made for line in batch.corrupt}
    assert set(found) == {f"u{i}" for i in lost}
    assert "checksum" in found["u8"]
    assert "truncated" in found["u17"]
    assert "No such file" in found["u20"]
    assert {name for batch in made for name in batch.ids} == {f"u{i}" for i in set(range(25)) - lost}
    for batch in made:
        assert len(batch.features) == max(len(batch.ids), 1) == len(batch.targets)
        assert all("\n" not in line for line in batch.corrupt)


def test_a_batch_without_any_recording_is_empty_and_a_corrupt_one_can_stop(copied: Path) -> None:
    for shard in range(7):
        damage(copied, shard)
    for batch in make(ShardedPart(copied)):
        assert batch.empty
        assert batch.features.shape == (1, int(batch.feature_lengths[0]), 20)
        assert batch.targets.tolist() == [[1]]
    for settings in ({"corrupt": "stop"}, {"training": False}):
        with pytest.raises(AudioError, match="checksum") as caught:
            [*make(ShardedPart(copied), **settings)]
        one_line(caught.value, "recording.0000")


def test_checking_names_what_is_damaged(copied: Path, call) -> None:
    code, out, _ = call("data", "check", copied)
    assert (code, out) == (0, "25 cuts, 25 recordings, 0.003 h\nno problems found\n")
    damage(copied, 6)
    code, out, _ = call("data", "check", copied)
    assert code == 1
    assert "audio file unreadable" in out
    assert "u24" in out


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("duration_s", 1e9, "durations"),
        ("duration_s", np.nan, "durations"),
        ("size", 0, "sizes"),
        ("size", 2**31, "sizes"),
        ("shard", 99, "shards"),
        ("words_at", 2**63, "words"),
        ("text_bytes", 2**31, "words"),
        ("offset", 2**63, "offsets"),
    ],
)
def test_an_index_that_lies_is_refused(copied: Path, field: str, value: float, message: str) -> None:
    rows = np.fromfile(copied / "index.bin", ENTRY)
    rows[-1][field] = value
    rows.tofile(copied / "index.bin")
    with pytest.raises(ManifestError, match="not the file") as caught:
        ShardedPart(copied)
    one_line(caught.value)
    card = load_config(copied / "shards.yaml", ShardsCard)
    changed = {"index_sha256": hashlib.sha256(rows.tobytes()).hexdigest()}
    save_config(card.model_copy(update=changed), copied / "shards.yaml")
    with pytest.raises(ManifestError, match=message) as caught:
        ShardedPart(copied)
    one_line(caught.value)


def test_a_recording_of_hours_in_place_of_a_word_is_not_decoded(copied: Path) -> None:
    """As large as it may be in bytes, with a true checksum: silence takes few bytes."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(60 * RATE, np.int16), RATE, format="FLAC")
    content, rows = stream.getvalue(), np.fromfile(copied / "index.bin", ENTRY)
    path = copied / "shards" / "recording.000006.tar"
    path.write_bytes(b"\0" * 512 + content)
    rows[-1]["offset"], rows[-1]["size"], rows[-1]["crc32"] = 512, len(content), zlib.crc32(content)
    rows.tofile(copied / "index.bin")
    card = load_config(copied / "shards.yaml", ShardsCard)
    changed = {"index_sha256": hashlib.sha256(rows.tobytes()).hexdigest()}
    save_config(card.model_copy(update=changed), copied / "shards.yaml")
    with pytest.raises(AudioError, match=r"at most 0\.900 s") as caught:
        ShardedPart(copied).samples(24, RATE)
    one_line(caught.value, "u24")


@pytest.mark.parametrize("name", ["index.bin", "words.bin", "shards.yaml"])
def test_missing_or_damaged_files_are_one_line(copied: Path, name: str) -> None:
    for ruin in (lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()):
        ruin(copied / name)
        with pytest.raises(AsrError) as caught:
            ShardedPart(copied)
        one_line(caught.value, str(copied))


def test_shards_of_another_manifest_are_not_taken_for_it(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    path = corpus(folder, 5)
    assert find_part(folder, "train") == path
    assert find_part(folder, "test") is None
    write_shards(path, folder / "train.shar")
    assert find_part(folder, "train") == folder / "train.shar"
    corpus(folder, 6)
    with pytest.raises(ManifestError, match="beside it") as caught:
        find_part(folder, "train")
    one_line(caught.value)
    path.unlink()
    assert isinstance(open_part(folder / "train.shar"), ShardedPart)


# What is mixed


class Numbers:
    """A part of utterances of one second that nothing can be read of."""

    def __init__(self, count: int, shard_size: int | None = None) -> None:
        self.count, self.size, self.sharded = count, shard_size or count, shard_size is not None
        self.durations_s = np.ones(count)

    def __len__(self) -> int:
        return self.count

    @property
    def runs(self) -> list[range]:
        return [range(i, min(i + self.size, self.count)) for i in range(0, self.count, self.size)]


def epoch_counts(pool: Pool, epoch: int, window_shards: int = 8) -> np.ndarray:
    """How often each utterance is heard in an epoch."""
    windows = pool.windows(window_shards, seed=0, epoch=epoch)
    return np.bincount(np.concatenate([pool.numbers(w) for w in windows]), minlength=len(pool))


@pytest.mark.parametrize("shard_size", [None, 50])
@pytest.mark.parametrize(
    ("mixing", "shares"),
    [
        ({}, (0.9, 0.1)),
        ({"temperature": 2.0}, (0.75, 0.25)),
        ({"weights": (1, 1)}, (0.5, 0.5)),
        ({"weights": (1, 3)}, (0.25, 0.75)),
    ],
)
def test_corpora_are_heard_in_proportion(
    mixing: dict[str, object], shares: tuple[float, float], shard_size: int | None
) -> None:
    """900 and 100 s; temperature 2 makes 9 : 1 to 3 : 1."""
    pool = Pool([Numbers(900, shard_size), Numbers(100)], MixingConfig(**mixing))  # type: ignore[arg-type]
    total = np.zeros(len(pool), int)
    for epoch in range(8):
        counts = epoch_counts(pool, epoch)
        assert counts[:900].sum() == pytest.approx(1000 * shares[0], abs=10)
        assert counts[900:].sum() == pytest.approx(1000 * shares[1], abs=10)
        total += counts
    for part in (total[:900], total[900:]):  # and all of a corpus equally often
        assert part.max() - part.min() <= 1


def test_without_mixing_every_recording_is_heard_once() -> None:
    pool = Pool([Numbers(90, 7), Numbers(35), Numbers(20, 5)])
    for epoch in range(3):
        assert np.array_equal(epoch_counts(pool, epoch, window_shards=3), np.ones(145))


def test_corpora_are_mixed_all_along_an_epoch() -> None:
    """A small corpus in a manifest, heard many times, is near in every window of a large one in shards."""
    pool = Pool([Numbers(4000, 50), Numbers(200)], MixingConfig(weights=(1.0, 1.0)))
    windows = pool.windows(16, seed=0, epoch=0)
    shares = [np.mean(pool.numbers(window) >= 4000) for window in windows]
    assert len(windows) > 5
    assert 0.3 < min(shares) <= max(shares) < 0.7
    orders = [[visit.cuts.start for w in pool.windows(16, 0, epoch) for visit in w] for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_mixed_corpora_are_resumed_exactly(manifest: Path, shards: Path, tmp_path: Path) -> None:
    other = ManifestPart(read_cuts(corpus(tmp_path, 12, name="v")))
    mixing = {"weights": (1.0, 2.0)}
    settings = {"mixing": mixing, "window_shards": 3, "concatenate": STRINGS}
    pool = Pool([ShardedPart(shards), other], MixingConfig(**mixing))  # type: ignore[arg-type]
    expected = [*make(pool, **settings)]
    speakers = {
        name: pool.words(number).speaker for number in range(len(pool)) for name in [pool.words(number).id]
    }
    assert all(len({speakers[part] for part in name.split("+")}) == 1 for b in expected for name in b.ids)
    for position in (1, len(expected) // 2, len(expected) - 1):
        resumed = make(pool, **settings)
        resumed.load_state_dict({"epoch": 0, "position": position, "fingerprint": resumed.fingerprint()})
        assert_same([*resumed], expected[position:])


def test_weights_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(ConfigError, match="a weight for each of 2 corpora, found 3") as caught:
        Pool([Numbers(5), Numbers(6)], MixingConfig(weights=(1, 2, 3)))  # type: ignore[arg-type]
    one_line(caught.value)
    for wrong in ({"weights": (1, 0)}, {"temperature": 0.5}, {"weights": (1, 2), "temperature": 2}):
        with pytest.raises(ValueError):
            MixingConfig(**wrong)  # type: ignore[arg-type]


def test_a_curriculum_goes_from_short_to_long(shards: Path) -> None:
    batches = make(ShardedPart(shards), curriculum_epochs=1, max_duration_s=1.2)
    longest = [[max(u.duration_s for u in p.utterances) for p in _plans(batches, epoch)] for epoch in (0, 1)]
    assert longest[0] == sorted(longest[0])
    assert longest[1] != sorted(longest[1])


def _plans(batches: Batches, epoch: int) -> list[object]:
    batches.set_epoch(epoch)
    return [batches.plans()[number] for number in range(len(batches))]


def test_runs_that_began_before_there_were_shards_can_go_on(manifest: Path) -> None:
    """The fingerprint of a manifest with settings of that time is as it was computed then."""
    cuts = list(read_cuts(manifest))
    batches = make(cuts)
    new = {"mixing", "window_shards", "curriculum_epochs", "corrupt", "max_corrupt"}
    settings = batches.config.model_dump_json(exclude={"num_workers", "cache_mb", "start_method", *new})
    digest = hashlib.sha256(f"{settings}{AUGMENT.model_dump_json()}True".encode())
    for cut in cuts:
        digest.update(f"{cut.id} {cut.duration:.6f} {cut.supervisions[0].speaker}\n".encode())
    assert batches.fingerprint() == digest.hexdigest()[:16]
    assert make(cuts, corrupt="stop").fingerprint() == batches.fingerprint()
    assert make(cuts, window_shards=3).fingerprint() != batches.fingerprint()
