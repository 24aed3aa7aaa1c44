from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr import state


@dataclass(frozen=True)
class Inner:
    x: Tensor
    nothing: None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple[Tensor, Tensor]


def make(batch: int, start: float = 0.0) -> Outer:
    x = torch.arange(batch * 3).reshape(batch, 3) + start
    return Outer(Inner(x), (x[:, 0] * 10, x.reshape(batch, 3, 1)))


def test_split_then_stack_is_the_identity() -> None:
    whole = make(4)
    again = state.stack(state.split(whole))
    for a, b in zip(state.leaves(whole), state.leaves(again), strict=True):
        assert torch.equal(a, b)
    assert state.batch_size(state.split(whole)[2]) == 1


def test_select_reorders_and_forks() -> None:
    chosen = state.select(make(4), torch.tensor([3, 0, 0]))
    assert torch.equal(chosen.inner.x[:, 0], torch.tensor([9.0, 0.0, 0.0]))
    assert torch.equal(chosen.pair[0], torch.tensor([90.0, 0.0, 0.0]))


def test_where_resets_some_streams_only() -> None:
    mixed = state.where(torch.tensor([True, False]), make(2, 100.0), make(2))
    assert torch.equal(mixed.inner.x, torch.tensor([[100.0, 101, 102], [3, 4, 5]]))
    assert mixed.pair[1].shape == (2, 3, 1)


def test_bytes_per_stream_do_not_depend_on_the_batch() -> None:
    assert state.bytes_per_stream(make(1)) == state.bytes_per_stream(make(5)) == 4 * (3 + 1 + 3)
