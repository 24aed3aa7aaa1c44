"""Streaming states: frozen dataclasses of batch-first tensors, and what a server does to them.

Every streaming component (features, encoder, predictor, search) passes its state in and out explicitly. A
state is a frozen dataclass whose fields are tensors with the batch as first dimension, or tuples, named
tuples or further states of such. These functions work on any of them, so that sessions can be batched as
they come and go, and beam search can fork and reorder hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

S = TypeVar("S")


def map_tensors(function: Callable[..., Tensor], *states: S) -> S:
    """Apply `function` to corresponding tensors of states of one structure; returns that structure."""
    return cast(S, _map(function, *states))


def leaves(state: object) -> list[Tensor]:
    """All tensors of a state, in field order."""
    if isinstance(state, Tensor):
        return [state]
    if state is None:
        return []
    parts = state if isinstance(state, tuple) else _parts(state)
    return [leaf for part in parts for leaf in leaves(part)]


def stack(states: Sequence[S]) -> S:
    """Join the states of several batches into one batch, in order."""
    return map_tensors(lambda *tensors: torch.cat(tensors), *states)


def split(state: S) -> list[S]:
    """One state of batch size 1 per stream."""
    return [map_tensors(lambda t, i=i: t[i : i + 1], state) for i in range(batch_size(state))]


def select(state: S, index: Tensor) -> S:
    """The streams `index` (int64, any order, repeats allowed): reorder, drop, or fork."""
    return map_tensors(lambda t: t.index_select(0, index.to(t.device)), state)


def flatten(state: S) -> S:
    """(B, K, ...) to (B*K, ...): hypotheses of streams as rows."""
    return map_tensors(lambda t: t.flatten(0, 1), state)


def unflatten(state: S, batch: int, width: int) -> S:
    """(B*K, ...) to (B, K, ...): rows as hypotheses of `batch` streams, `width` each."""
    return map_tensors(lambda t: t.view(batch, width, *t.shape[1:]), state)


def put(state: S, index: Tensor, part: S) -> S:
    """The state with the streams `index` (int64, distinct) replaced by those of `part`, in order."""
    return map_tensors(lambda t, new: t.index_copy(0, index.to(t.device), new), state, part)


def where(mask: Tensor, state: S, other: S) -> S:
    """Stream by stream: `state` where the boolean (B,) `mask` is True, else `other`.

    `where(ended, encoder.initial_state(...), state)` resets the streams that ended.
    """

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.to(a.device).view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_tensors(choose, state, other)


def batch_size(state: object) -> int:
    """Number of streams in a state."""
    sizes = {leaf.shape[0] for leaf in leaves(state)}
    assert len(sizes) == 1, f"state leaves disagree on the batch size: {sorted(sizes)}"
    return sizes.pop()


def bytes_per_stream(state: object) -> int:
    """Memory that one stream's state takes."""
    return sum(leaf.element_size() * leaf[0].numel() for leaf in leaves(state))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Of numbers of `dtype`, that in which many of them are added up: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _map(function: Callable[..., Tensor], *states: Any) -> Any:
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    if first is None:
        return None
    if isinstance(first, tuple):
        parts = [_map(function, *each) for each in zip(*states, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return type(first)(*[_map(function, *each) for each in zip(*map(_parts, states), strict=True)])


def _parts(state: object) -> list[Any]:
    """The fields of a dataclass, in the order of the arguments that make it."""
    kind: type = type(state)
    return [getattr(state, name) for name in _field_names(kind)]


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    assert is_dataclass(kind), f"a state is a dataclass of tensors, not {kind.__name__}"
    return tuple(f.name for f in fields(kind))
