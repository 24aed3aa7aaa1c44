"""--find-batch: the search finds the limit that a memory model implies; a run prints it, writes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.config import save_config
from asr.data.batches import BatchesConfig
from asr.data.manifests import CorpusCard, file_recording, make_cut, save_card, write_cuts
from asr.data.plan import Source, plain_utterances, split_in_buckets
from asr.encoders import LstmEncoderConfig
from asr.errors import TrainingError
from asr.features.fbank import FbankConfig
from asr.joiner import JoinerConfig
from asr.losses import LossConfig
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig
from asr.train.find_batch import PRECISION, Trial, search
from asr.train.recipe import Recipe
from asr.transducer import TransducerConfig

RATE = 8000


class Model:
    """Trials of a network that takes `per_s` bytes for a padded second, more so in short utterances."""

    def __init__(self, durations_s: list[float], per_s: float = 100.0, short_costs: float = 0.0) -> None:
        self.per_s, self.short_costs, self.tried = per_s, short_costs, 0
        self.utterances = plain_utterances([Source(duration, "") for duration in durations_s])

    def buckets(self) -> list[object]:
        return split_in_buckets(self.utterances, 4)  # type: ignore[return-value]

    def __call__(self, bucket: list[object], most: int, max_duration_s: float) -> Trial:
        self.tried += 1
        longest = max(u.duration_s for u in bucket)  # type: ignore[attr-defined]
        count = max(1, min(most, int(max_duration_s / longest)))
        peak = 1000 + count * longest * (self.per_s + self.short_costs / longest)
        return Trial(count, count * longest, peak, 1.0)


DURATIONS_S = np.random.default_rng(0).uniform(1, 12, 200).tolist()


def test_the_limit_fits_and_a_little_more_does_not() -> None:
    model = Model(DURATIONS_S)
    found = search(model, BatchesConfig(), budget=51_000)  # type: ignore[arg-type]
    assert 500 / PRECISION - 12 <= found.max_duration_s <= 512
    assert all(trial.peak_bytes <= 51_000 for trial in found.buckets)
    assert len(found.buckets) == 4
    lengths = [trial.padded_s / trial.utterances for trial in found.buckets]
    assert lengths == sorted(lengths)
    assert model.tried < 20


def test_a_shorter_bucket_that_takes_more_lowers_the_limit() -> None:
    found = search(Model(DURATIONS_S, short_costs=300), BatchesConfig(), budget=51_000)  # type: ignore[arg-type]
    assert all(trial.peak_bytes <= 51_000 for trial in found.buckets)
    assert all(trial.padded_s <= found.max_duration_s for trial in found.buckets)
    assert max(found.buckets, key=lambda trial: trial.peak_bytes) is found.buckets[0]
    assert found.max_duration_s < 400


def test_no_more_utterances_than_there_may_be() -> None:
    found = search(Model(DURATIONS_S), BatchesConfig(max_utterances=6), budget=10**9)  # type: ignore[arg-type]
    assert [trial.utterances for trial in found.buckets] == [6] * 4


def test_an_utterance_that_does_not_fit_alone() -> None:
    with pytest.raises(TrainingError, match=r"an utterance of 1[12]\.\d s alone") as caught:
        search(Model(DURATIONS_S), BatchesConfig(), budget=1500)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe and a corpus."""
    data, rng = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for split in ("train", "dev"):
        cuts = []
        for i in range(8):
            path = data / f"{split}{i}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(round(rng.uniform(0.5, 2) * RATE)), RATE)
            cuts.append(make_cut(file_recording(path, path.stem), path.stem, "one two"))
        write_cuts(cuts, data / f"{split}.jsonl.gz")
    save_card(CorpusCard(name="noise", source="test", licence="none", sample_rate=RATE), data)
    config = Recipe(
        features=FbankConfig(sample_rate=RATE, num_mel_bins=20),
        tokenizer=TokenizerConfig(kind="word"),
        batches=BatchesConfig(num_buckets=2, max_utterances=16),
        network=TransducerConfig(
            encoder=LstmEncoderConfig(hidden=16, layers=1, lookahead=1),
            predictor=StatelessPredictorConfig(dim=16, context=1),
            joiner=JoinerConfig(dim=16),
            loss=LossConfig(),
        ),
    )
    save_config(config, tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml", data


def test_the_command_prints_the_setting_and_writes_nothing(files: tuple[Path, Path], call) -> None:
    recipe, data = files
    exp = data.parent / "exp"
    arguments = ("train", recipe, "--data", data, "--exp", exp, "--find-batch")
    code, out, _ = call(*arguments, "--memory", 8)
    assert code == 0
    assert re.search(r"^--set batches.max_duration_s=\d+(\.\d)?$", out, re.MULTILINE)
    assert out.count("MiB") == 3
    assert not exp.exists()
    for wrong, message in (((), "add --memory GIB"), (("--memory", 0.1), "alone takes")):
        code, out, err = call(*arguments, *wrong)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
    code, _, err = call("train", recipe, "--data", data, "--memory", 1)
    assert (code, err.count("\n")) == (1, 1)
