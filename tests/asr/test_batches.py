from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.data.augment import (
    AugmentConfig,
    ConcatenateConfig,
    NoiseConfig,
    ReverbConfig,
    SpeedConfig,
    VolumeConfig,
)
from asr.data.batch import Batch
from asr.data.batches import Batches, BatchesConfig, training_texts
from asr.data.manifests import file_recording, make_cut, read_cuts, write_cuts
from asr.data.plan import Dealing, Source, plain_utterances, plan_batches, plan_utterances
from asr.errors import AudioError, TokenError, TrainingError
from asr.features.fbank import Fbank, FbankConfig
from asr.lengths import frame_count
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

RATE = 8000
WORDS = ("zero", "one", "two")
AUGMENT = AugmentConfig(
    speed=SpeedConfig(factors=(0.9, 1.0, 1.1), spread=0.02),
    volume=VolumeConfig(probability=0.5),
    noise=NoiseConfig(probability=0.5),
    reverb=ReverbConfig(probability=0.5),
)
STRINGS = ConcatenateConfig(max_parts=4)
FEATURES = FbankConfig(sample_rate=RATE, num_mel_bins=20, dither=1.0)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    made = []
    for speaker in ("ann", "bo"):
        for index in range(12):
            path = folder / f"{speaker}{index}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(int(rng.uniform(0.2, 0.6) * RATE)), RATE)
            text = WORDS[index % 3]
            made.append(make_cut(file_recording(path, path.stem), path.stem, text, speaker=speaker))
    write_cuts(made, folder / "train.jsonl.gz")
    return list(read_cuts(folder / "train.jsonl.gz"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(kind="char"), [" ".join(WORDS)])


class Mask:
    """Stands in for SpecAugment: zeroes a random tenth."""

    def __call__(self, features, feature_lengths, generator):
        return features * (torch.rand(features.shape, generator=generator) > 0.1)


def make(cuts, tokenizer, *, training: bool = True, workers: int = 0, views: int = 1, **settings) -> Batches:
    settings = {"max_duration_s": 4.0, "concatenate": STRINGS, "seed": 3, **settings}
    config = BatchesConfig(num_workers=workers, **settings)
    fbank = Fbank(FEATURES)
    return Batches(cuts, config, fbank, tokenizer, AUGMENT, Mask(), views=views, training=training)


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert [b.ids for b in batches] == [b.ids for b in others]
    for one, other in zip(batches, others, strict=True):
        assert one.texts == other.texts
        assert one.duration_s == other.duration_s
        for name in ("features", "feature_lengths", "targets", "target_lengths"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_shapes_texts_and_lengths(cuts, tokenizer) -> None:
    batches = make(cuts, tokenizer)
    for batch in batches:
        size = len(batch.ids)
        assert batch.features.shape == (size, int(batch.feature_lengths.max()), 20)
        assert (batch.features.dtype, batch.targets.dtype) == (torch.float32, torch.int64)
        assert batch.feature_lengths.dtype == batch.target_lengths.dtype == torch.int64
        assert batch.targets.shape == (size, int(batch.target_lengths.max()))
        for row, text in enumerate(batch.texts):
            labels = batch.targets[row, : batch.target_lengths[row]].tolist()
            assert tokenizer.decode(labels) == text
            assert not batch.targets[row, batch.target_lengths[row] :].any()
            assert not batch.features[row, batch.feature_lengths[row] :].any()
        parts = [part for name in batch.ids for part in name.split("+")]
        assert len(parts) == sum(len(text.split()) for text in batch.texts)
        assert batch.to("cpu").ids == batch.ids


def test_views_are_masked_by_draws_of_their_own_and_differ_in_nothing_else(cuts, tokenizer) -> None:
    for once, twice in zip(make(cuts, tokenizer), make(cuts, tokenizer, views=2), strict=True):
        assert (once.views, twice.views) == (1, 2)
        for name in ("ids", "texts", "duration_s", "seed"):
            assert getattr(once, name) == getattr(twice, name)
        assert torch.equal(once.targets, twice.targets)
        assert torch.equal(once.feature_lengths.repeat(2), twice.feature_lengths)
        first, second = twice.features.chunk(2)
        assert ((first == 0) != (second == 0)).any(dim=(1, 2)).all()
        heard = (first != 0) & (second != 0)
        assert torch.equal(first[heard], second[heard])
    assert {batch.views for batch in make(cuts, tokenizer, training=False, views=2)} == {1}


def test_every_recording_is_used_once_an_epoch_and_speakers_do_not_mix(cuts, tokenizer) -> None:
    batches = make(cuts, tokenizer)
    orders = []
    for epoch in range(2):
        assert batches.epoch == epoch
        ids = [name for batch in batches for name in batch.ids]
        orders.append(ids)
        assert Counter(part for name in ids for part in name.split("+")) == Counter(cut.id for cut in cuts)
        assert all(len({part.rstrip("0123456789") for part in name.split("+")}) == 1 for name in ids)
        assert 2 <= max(len(name.split("+")) for name in ids) <= 4
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_batches_are_those_of_the_uninterrupted_run(cuts, tokenizer, workers: int) -> None:
    whole = make(cuts, tokenizer)
    expected = [[*whole], [*whole]]
    assert len(expected[0]) >= 4
    interrupted = make(cuts, tokenizer, workers=workers)
    taken = []
    for batch in interrupted:
        taken.append(batch)
        if len(taken) == 2:
            break
    assert_same(taken, expected[0][:2])
    state = interrupted.state_dict()
    interrupted.close()
    resumed = make(cuts, tokenizer, workers=workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    assert_same([*resumed], expected[0][2:])
    assert resumed.epoch == 1
    resumed.set_epoch(1)
    assert_same([*resumed], expected[1])
    resumed.close()


def test_stopping_within_an_epoch_and_going_back(cuts, tokenizer) -> None:
    """As a trainer does that looks at some batches first; the workers stay."""
    batches = make(cuts, tokenizer, workers=1)
    start = batches.state_dict()
    looked_at = [batch for batch, _ in zip(batches, range(2), strict=False)]
    batches.load_state_dict(start)
    again = [*batches]
    assert_same(looked_at, again[:2])
    assert_same(again, [*make(cuts, tokenizer)])
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_dealt_to_processes_are_those_of_one(cuts, tokenizer, workers: int) -> None:
    expected = [*make(cuts, tokenizer, max_duration_s=1.5)]
    assert len(expected) == 10
    for rank, numbers in enumerate([[0, 2, 3, 5, 6, 8, 9], [1, 4, 7]]):
        batches = make(cuts, tokenizer, workers=workers, max_duration_s=1.5)
        batches.deal(Dealing(rank, world_size=2, per_step=3))
        steps = batches.steps()
        first = next(steps)
        after = batches.state_dict()
        assert after["position"] == 3
        rest = [*steps]
        assert len(rest) == 3
        assert_same([*first, *(b for own in rest for b in own)], [expected[number] for number in numbers])
        assert (batches.epoch, batches.state_dict()["position"]) == (1, 0)
        # Three processes, of which all go through equally many, go on behind the first step.
        batches.load_state_dict(after)
        batches.deal(Dealing(rank, world_size=3, per_step=3, in_step=True))
        shares = [[(b.ids, b.borrowed) for b in own] for own in batches.steps()]
        own = [[(expected[number + rank].ids, False)] for number in (3, 6)]
        assert shares == [*own, [(expected[9].ids, rank > 0)]]
        batches.close()


def test_a_finished_epoch_stays_finished(cuts, tokenizer) -> None:
    batches = make(cuts, tokenizer)
    for batch in batches:
        state = batches.state_dict()
        assert len(batch.ids) > 0
    assert state["position"] == len(batches.plans())
    resumed = make(cuts, tokenizer)
    resumed.load_state_dict(state)
    assert [*resumed] == []
    assert resumed.state_dict()["epoch"] == 1
    resumed.set_epoch(0)
    assert len([*resumed]) == state["position"]


def test_small_cache_and_other_workers_change_nothing(cuts, tokenizer) -> None:
    assert_same([*make(cuts, tokenizer)], [*make(cuts, tokenizer, cache_mb=0.01)])


def test_evaluation_takes_cuts_as_they_are_every_time(cuts, tokenizer) -> None:
    batches = make(cuts, tokenizer, training=False)
    first = [*batches]
    next(iter(batches))
    assert sorted(name for b in first for name in b.ids) == sorted(cut.id for cut in cuts)
    durations = {cut.id: cut.duration for cut in cuts}
    order = [durations[name] for batch in first for name in batch.ids]
    assert order == sorted(order)
    second = [*batches]
    assert [b.ids for b in first] == [b.ids for b in second]
    for batch in first:
        for name, length in zip(batch.ids, batch.feature_lengths.tolist(), strict=True):
            assert length == frame_count(
                round(durations[name] * RATE), FEATURES.window, FEATURES.shift, False
            )
    total = sum(batch.duration_s for batch in first)
    assert total == pytest.approx(sum(durations.values()))


def test_the_random_numbers_of_the_caller_are_left_alone(cuts, tokenizer) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    next(iter(make(cuts, tokenizer)))
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unknown_symbol_names_the_utterance_in_one_line(cuts, workers: int) -> None:
    narrow = train_tokenizer(TokenizerConfig(kind="char"), ["one two"])
    batches = make(cuts, narrow, workers=workers, concatenate=ConcatenateConfig())
    with pytest.raises(TokenError) as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert any(cut.id in str(caught.value) for cut in cuts)
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_audio_names_the_utterance_in_one_line(tmp_path: Path, tokenizer, workers: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.ones(RATE) * 0.1, RATE)
    cut = make_cut(file_recording(path, "x"), "utterance-x", "one")
    path.unlink()
    batches = make([cut], tokenizer, workers=workers, corrupt="stop")
    with pytest.raises(AudioError) as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert "utterance-x" in str(caught.value)
    batches.close()


def test_a_state_of_other_data_or_settings_is_refused(cuts, tokenizer) -> None:
    state = make(cuts, tokenizer).state_dict()
    make(cuts, tokenizer, workers=1, cache_mb=1.0).load_state_dict(state)
    for other in (make(cuts[1:], tokenizer), make(cuts, tokenizer, max_duration_s=5.0)):
        with pytest.raises(TrainingError, match="checkpoint"):
            other.load_state_dict(state)


def test_nothing_to_make_batches_of(tokenizer) -> None:
    with pytest.raises(TrainingError, match="at least one cut"):
        make([], tokenizer)


def test_training_texts_hold_the_space_of_concatenation(cuts) -> None:
    texts = list(training_texts(cuts, BatchesConfig(concatenate=STRINGS)))
    assert set(WORDS) <= set(texts)
    assert any(" " in text for text in texts)
    assert all(" " not in text for text in training_texts(cuts, BatchesConfig()))


def test_a_worker_that_dies_is_one_line(cuts, tokenizer) -> None:
    batches = make(cuts, tokenizer, workers=1, max_duration_s=0.5)
    iterator = iter(batches)
    next(iterator)
    (worker,) = batches._loader._iterator._workers  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(TrainingError, match="data worker died") as caught:
        list(iterator)
    assert "\n" not in str(caught.value)


SIGNALLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_batches import *
cuts = list(read_cuts({manifest!r}))
tokenizer = train_tokenizer(TokenizerConfig(kind="char"), [" ".join(WORDS)])
torch.set_num_threads(2)
torch.rand(400, 400) @ torch.rand(400, 400)  # the parent's thread pool is up before the fork
received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda signum, frame: received.append(signum))
batches = make(cuts, tokenizer, workers=1, max_duration_s=0.5)
for epoch in range(2):
    for batch in batches:
        if epoch == 1 and len(received) < 2:
            os.killpg(0, (signal.SIGINT, signal.SIGTERM)[len(received)])
print(batches.epoch, len(received), "signals")
"""


def test_signals_to_the_process_group_leave_the_workers_working(cuts) -> None:
    """A trainer that finishes its step and saves on Ctrl-C or SIGTERM still gets its batches."""
    manifest = Path(cuts[0].recording.sources[0].source).parent / "train.jsonl.gz"
    code = SIGNALLED.format(here=str(Path(__file__).parent), manifest=str(manifest))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "2 2 signals\n", "")


SOURCES = [
    Source(duration, f"s{i % 3}") for i, duration in enumerate(np.random.default_rng(1).uniform(0.2, 5, 300))
]


def batches_of(utterances, **settings):
    settings = {"max_duration_s": 30.0, "max_utterances": 20, "num_buckets": 8, "shuffle": True, **settings}
    return plan_batches(utterances, seed=0, epoch=0, **settings)


def test_batches_keep_to_their_limits_and_lose_nothing() -> None:
    utterances = plain_utterances(SOURCES)
    planned = batches_of(utterances)
    assert sorted(u.parts[0] for batch in planned for u in batch.utterances) == list(range(300))
    for batch in planned:
        longest = max(u.duration_s for u in batch.utterances)
        assert longest * len(batch.utterances) <= 30
        assert len(batch.utterances) <= 20
    assert len({batch.seed for batch in planned}) == len(planned)


def test_an_utterance_above_the_limit_is_a_batch_of_its_own() -> None:
    planned = batches_of(plain_utterances([Source(50.0, ""), Source(1.0, ""), Source(1.0, "")]))
    assert sorted(len(batch.utterances) for batch in planned) == [1, 2]


def test_buckets_save_padding() -> None:
    def padding(num_buckets: int) -> float:
        planned = batches_of(plain_utterances(SOURCES), num_buckets=num_buckets)
        padded = sum(max(u.duration_s for u in b.utterances) * len(b.utterances) for b in planned)
        return padded / sum(source.duration_s for source in SOURCES)

    assert padding(8) < 1.25 < padding(1)


def test_planned_durations_count_gaps_and_speed() -> None:
    config = ConcatenateConfig(min_parts=2, max_parts=3, gap_s=(0.1, 0.1), edge_s=(0.2, 0.2))
    utterances = plan_utterances(SOURCES, config, SpeedConfig(factors=(2.0,)), seed=0, epoch=0)
    assert len({utterance.seed for utterance in utterances}) == len(utterances)
    for utterance in utterances:
        parts = len(utterance.parts)
        spoken = sum(SOURCES[i].duration_s for i in utterance.parts)
        assert utterance.duration_s == pytest.approx((spoken + 0.4 + 0.1 * (parts - 1)) / 2)
        assert len({SOURCES[i].speaker for i in utterance.parts}) == 1
