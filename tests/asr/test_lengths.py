from __future__ import annotations

import pytest
import torch

from asr.lengths import frame_count, padding_mask, seconds_to_frames, seconds_to_samples, subsampled


@pytest.mark.parametrize(
    ("seconds", "rate", "samples"),
    [(0, 8000, 0), (1.0, 16000, 16000), (0.5 / 8000, 8000, 1), (0.49 / 8000, 8000, 0)],
)
def test_seconds_round_half_up_to_samples(seconds: float, rate: int, samples: int) -> None:
    assert seconds_to_samples(seconds, rate) == samples


def test_seconds_round_half_up_to_frames() -> None:
    assert [seconds_to_frames(s, 0.01) for s in (0.0, 0.004, 0.0051, 0.126)] == [0, 0, 1, 13]


@pytest.mark.parametrize(
    ("samples", "whole", "shifted"), [(0, 0, 0), (39, 0, 0), (40, 0, 1), (199, 0, 2), (200, 1, 3)]
)
def test_frames_are_counted_as_kaldi_does(samples: int, whole: int, shifted: int) -> None:
    assert frame_count(samples, 200, 80, snip_edges=True) == whole
    assert frame_count(samples, 200, 80, snip_edges=False) == shifted


def test_every_frame_counts_in_subsampling() -> None:
    assert [subsampled(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_padding_mask() -> None:
    mask = padding_mask(torch.tensor([2, 0, 3]))
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert padding_mask(torch.tensor([1]), 4).tolist() == [[True, False, False, False]]
