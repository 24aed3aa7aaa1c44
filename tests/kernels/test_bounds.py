"""Which label positions pruning keeps, against every legal choice."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import Case, make, occupations_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr_kernels import pruning_bounds

V = 4


def kept(label: Tensor, blank: Tensor, bounds: tuple[int, ...], S: int) -> float:
    """Occupation of the nodes within the bounds, of one utterance: label (T, U), blank (T, U+1)."""
    width = blank.shape[1]
    node = blank + torch.nn.functional.pad(label, (0, 1))
    return sum(float(node[t, first : min(first + S, width)].sum()) for t, first in enumerate(bounds))


def assert_legal(ranges: Tensor, case: Case, S: int) -> None:
    B, T, width = case.logits.shape[:3]
    S = min(S, width)
    assert ranges.dtype == torch.int64
    assert ranges.shape == (B, T, S)
    assert torch.equal(ranges, ranges[..., :1] + torch.arange(S))
    assert ranges.min() >= 0 or ranges.numel() == 0
    assert (ranges < width).all()
    for b, (frames, labels) in enumerate(zip(*case[2:], strict=True)):
        first = ranges[b, : int(frames), 0].tolist()
        if first:
            assert tuple(first) in set(oracles.legal_bounds(len(first), int(labels), S, width - S))


@pytest.mark.parametrize("S", [1, 2, 3, 4, 7])
def test_bounds_are_legal_and_keep_the_most(S: int) -> None:
    """By trying every legal pruning; where there is none, with too few frames, nothing is promised."""
    case = make([(T, U) for T in range(1, 6) for U in range(5)] * 2, V, seed=6)
    width = 5
    possible = (case.logit_lengths - 1) * (min(S, width) - 1) + min(S, width) > case.target_lengths
    assert possible.any()
    label, blank = occupations_of(case, seed=6)
    ranges = pruning_bounds(label, blank, *case[2:], S)
    some = [x[possible] for x in case]
    assert_legal(ranges[possible], Case(*some), S)
    S = min(S, width)
    for b in possible.nonzero().flatten().tolist():
        T, U = int(case.logit_lengths[b]), int(case.target_lengths[b])
        own, highest = (label[b, :T], blank[b, :T]), width - S
        best = max(kept(*own, bounds, S) for bounds in oracles.legal_bounds(T, U, S, highest))
        assert kept(*own, tuple(ranges[b, :T, 0].tolist()), S) == pytest.approx(best, abs=1e-6)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=4),
    S=st.integers(2, 9),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=40, deadline=None)
def test_bounds_of_any_batch_are_legal(lengths: list[tuple[int, int]], S: int, seed: int) -> None:
    lengths = [(T, min(U, T * (S - 1))) for T, U in lengths]
    case = make(lengths, V, seed=seed)
    ranges = pruning_bounds(*occupations_of(case, seed), *case[2:], S)
    B, T, width = case.logits.shape[:3]
    size = min(S, width)
    assert ranges.shape == (B, T, size)
    assert torch.equal(ranges, ranges[..., :1] + torch.arange(size))
    assert 0 <= int(ranges.min()) <= int(ranges.max()) < width
    for b, (frames, labels) in enumerate(lengths):
        first = ranges[b, :frames, 0]
        assert first[0] == 0
        assert (first.diff() >= 0).all()
        assert (first.diff() <= size - 1).all()
        assert first[-1] <= labels < first[-1] + size


def test_bounds_follow_a_sure_alignment() -> None:
    """Occupations of a single path: every one of its nodes is kept, by ranges of two."""
    emitted = [[0, 2, 3, 6, 7], [1, 2, 3, 4, 5]]
    label, blank = torch.zeros(2, 8, 5), torch.zeros(2, 8, 6)
    for b, frames in enumerate(emitted):
        for t in range(8):
            blank[b, t, sum(frame <= t for frame in frames)] = 1
        for u, frame in enumerate(frames):
            label[b, frame, u] = 1
    lengths = torch.tensor([8, 8]), torch.tensor([5, 5])
    ranges = pruning_bounds(label, blank, *lengths, 2)
    for b in range(2):
        assert kept(label[b], blank[b], tuple(ranges[b, :, 0].tolist()), 2) == 8 + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"S": 0}, "S, an integer of at least 1, found 0"),
        ({"S": 2.0}, "S, an integer of at least 1, found 2.0"),
        ({"label_occupation": torch.zeros(1, 3, 3)}, r"label_occupation of shape .*found \(1, 3, 3\)"),
        ({"blank_occupation": torch.zeros(3, 3)}, r"blank_occupation of shape .*found \(3, 3\)"),
        ({"logit_lengths": torch.tensor([4])}, r"logit_lengths within \[0, 3\], found 4"),
        ({"target_lengths": torch.tensor([3])}, r"target_lengths within \[0, 2\], found 3"),
    ],
)
def test_wrong_input_of_the_bounds_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "label_occupation": torch.zeros(1, 3, 2),
        "blank_occupation": torch.zeros(1, 3, 3),
        "logit_lengths": torch.tensor([3]),
        "target_lengths": torch.tensor([2]),
        "S": 2,
    }
    assert pruning_bounds(**good).shape == (1, 3, 2)
    with pytest.raises(ValueError, match=message) as error:
        pruning_bounds(**(good | change))
    assert "\n" not in str(error.value)
