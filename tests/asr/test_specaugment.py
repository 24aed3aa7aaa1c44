"""SpecAugment: limits, seeds, padding, fill."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asr.config import validate
from asr.errors import ConfigError
from asr.features.specaugment import SpecAugment, SpecAugmentConfig

LENGTHS = torch.tensor([400, 0, 1, 7, 123, 400])


def features(seed: int = 0, frames: int = 400, bins: int = 80) -> Tensor:
    """Distinct values, none of which equals the fill; padding is NaN, so that any use of it shows."""
    generator = torch.Generator().manual_seed(seed)
    values = 5 + torch.randn(len(LENGTHS), frames, bins, generator=generator)
    padding = torch.arange(frames)[None, :, None] >= LENGTHS[:, None, None]
    return values.masked_fill(padding, torch.nan)


def masked(config: SpecAugmentConfig, seed: int = 0) -> Tensor:
    """(B, T, M) True where a value has changed."""
    before = features()
    after = SpecAugment(config)(before, LENGTHS, torch.Generator().manual_seed(seed))
    return (before != after) & ~before.isnan()


def time_only(**changes: object) -> SpecAugmentConfig:
    return SpecAugmentConfig.model_validate({"freq_masks": 0, "probability": 1.0, **changes})


def freq_only(**changes: object) -> SpecAugmentConfig:
    return SpecAugmentConfig.model_validate({"time_masks": 0, "probability": 1.0, **changes})


def test_same_seed_same_masks_and_input_untouched() -> None:
    before = features()
    kept = before.clone()
    augment = SpecAugment()
    first, second, other = (
        augment(before, LENGTHS, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.nan_to_num(-1), second.nan_to_num(-1))
    assert not torch.equal(first.nan_to_num(-1), other.nan_to_num(-1))
    assert torch.equal(before.nan_to_num(-1), kept.nan_to_num(-1))
    assert first.data_ptr() != before.data_ptr()


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_padding_is_neither_read_nor_altered(fill: str) -> None:
    before = features()
    config = SpecAugmentConfig.model_validate({"fill": fill, "probability": 1.0})
    for seed in range(20):
        after = SpecAugment(config)(before, LENGTHS, torch.Generator().manual_seed(seed))
        assert torch.equal(after.isnan(), before.isnan())


def test_masks_do_not_depend_on_padding() -> None:
    config = SpecAugmentConfig(probability=1.0)
    longer = torch.cat([features(), torch.full((len(LENGTHS), 50, 80), torch.nan)], dim=1)
    found = SpecAugment(config)(longer, LENGTHS, torch.Generator().manual_seed(1))
    expected = SpecAugment(config)(features(), LENGTHS, torch.Generator().manual_seed(1))
    assert torch.equal(found[:, :400].nan_to_num(-1), expected.nan_to_num(-1))


def test_time_masks_keep_to_their_limits() -> None:
    widest = 0
    for seed in range(100):
        frames = masked(time_only(time_masks=3, max_time_width=20, max_time_fraction=0.3), seed)
        assert (frames.all(dim=2) == frames.any(dim=2)).all()  # whole frames
        taken = frames.all(dim=2).sum(dim=1)
        assert (taken <= LENGTHS * 0.3).all()
        assert (taken <= 60).all()
        widest = max(widest, int(taken[0]))
    assert widest > 40


def test_number_of_time_masks_follows_the_budget() -> None:
    """T = 400, 15 %: a budget of 60 frames is one mask of at most 60, if masks may be 100 wide."""
    for seed in range(100):
        frames = masked(time_only(time_masks=10, max_time_width=100, max_time_fraction=0.15), seed)[0, :, 0]
        starts = (frames.int().diff(prepend=torch.zeros(1, dtype=torch.int32)) == 1).sum()
        assert starts <= 1
        assert frames.sum() <= 60


def test_freq_masks_keep_to_their_limits() -> None:
    widest = 0
    for seed in range(100):
        bins = masked(freq_only(freq_masks=2, max_freq_width=15), seed)
        whole = bins[0].all(dim=0)
        assert torch.equal(whole, bins[0].any(dim=0))  # whole bins of the utterance
        assert whole.sum() <= 30
        widest = max(widest, int(whole.sum()))
    assert widest > 22


def test_freq_masks_leave_most_of_few_bins() -> None:
    few = features(bins=12)
    for seed in range(50):
        after = SpecAugment(freq_only(freq_masks=1))(few, LENGTHS, torch.Generator().manual_seed(seed))
        assert (after[0] != few[0]).any(dim=0).sum() <= 4


def test_masks_reach_every_place() -> None:
    hit_time, hit_freq = torch.zeros(400, dtype=torch.bool), torch.zeros(80, dtype=torch.bool)
    for seed in range(150):
        hit_time |= masked(time_only(max_time_fraction=0.3), seed)[0, :, 0]
        hit_freq |= masked(freq_only(), seed)[0, 0]
    assert hit_time[20:-20].all()  # the edges are covered by few places only
    assert hit_freq.all()


def test_utterances_are_masked_differently() -> None:
    found = masked(SpecAugmentConfig(probability=1.0))
    assert not torch.equal(found[0], found[5])


def test_probability() -> None:
    assert not masked(SpecAugmentConfig(probability=0.0)).any()
    hits = sum(
        bool(masked(freq_only(probability=0.5, max_freq_width=26), seed)[0].any()) for seed in range(200)
    )
    assert 60 < hits < 130


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_fill(fill: str) -> None:
    before = features()
    config = SpecAugmentConfig.model_validate({"fill": fill, "probability": 1.0})
    after = SpecAugment(config)(before, LENGTHS, torch.Generator().manual_seed(0))
    for row in (0, 4, 5):
        length = int(LENGTHS[row])
        changed = after[row, :length][after[row, :length] != before[row, :length]]
        expected = before[row, :length].mean() if fill == "mean" else torch.tensor(0.0)
        assert len(changed)
        assert torch.allclose(changed, expected, rtol=1e-5)


def test_all_off() -> None:
    assert not masked(SpecAugmentConfig(time_masks=0, freq_masks=0)).any()
    assert not masked(SpecAugmentConfig(max_time_fraction=0.0, freq_masks=0, probability=1.0)).any()


def test_empty_batch() -> None:
    empty = torch.zeros(0, 0, 80)
    found = SpecAugment()(empty, torch.zeros(0, dtype=torch.int64), torch.Generator())
    assert found.shape == (0, 0, 80)


@pytest.mark.parametrize(
    "settings", [{"max_time_fraction": 1.5}, {"time_masks": -1}, {"max_freq_width": 0}, {"fill": "noise"}]
)
def test_wrong_config(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(settings, SpecAugmentConfig, "recipe.yaml")
