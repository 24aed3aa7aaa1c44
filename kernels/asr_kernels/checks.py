"""Checks of what users pass to the ops; every failure is a ValueError of one line."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.lattice.arcs import Alignment, Band, Lattice, Rules
from asr_kernels.lattice.topology import Topology

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int32, torch.int64)
_REDUCTIONS = ("none", "sum", "mean")
_CRITERIA = ("sum", "max")


class Problem(NamedTuple):
    """What was asked for, checked."""

    lattice: Lattice
    symbols: Tensor
    """(B, U+1, K) int64, on the device of the scores: see Topology.symbols."""
    vocab: int
    """Columns of the logits in the softmax; what follows are durations."""
    blank: int
    """Not negative."""


def problem(
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    *,
    shape: tuple[int, int, int],
    columns: int,
    device: torch.device,
    topology: Topology,
    criterion: str = "sum",
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    alignment: Alignment | Tensor | None = None,
    alignment_band: int = 0,
) -> Problem:
    """Check everything but the floating tensors; shape is (B, T, U), columns the width of the logits."""
    if not isinstance(topology, Topology):
        raise ValueError(f"expected a Topology such as asr_kernels.RNNT, found {topology!r}")
    B, T, U = shape
    V = columns - topology.extra_columns
    if V < 1:
        raise ValueError(
            f"expected logits of more than {topology.extra_columns} columns for topology {topology.name}, "
            f"found {columns}"
        )
    if not isinstance(blank, int) or not -V <= blank < V:
        raise ValueError(f"expected an integer blank within [-{V}, {V}), found {blank}")
    blank %= V
    expected = {"targets": (B, U), "logit_lengths": (B,), "target_lengths": (B,)}
    found = {"targets": targets, "logit_lengths": logit_lengths, "target_lengths": target_lengths}
    for name, tensor in found.items():
        integers(name, tensor, expected[name])
    frames = lengths("logit_lengths", logit_lengths, T)
    labels = lengths("target_lengths", target_lengths, U)
    # Padding becomes blank here, once, so that nothing beyond ever sees it.
    padding = torch.arange(U) >= torch.tensor(labels, dtype=torch.int64)[:, None]
    targets = targets.to("cpu", torch.int64).masked_fill(padding, blank)
    _targets(targets, V)
    rules = _rules(topology, criterion, fastemit, delay_penalty, _band(alignment, alignment_band, (B, U)))
    symbols = topology.symbols(targets, blank, columns).to(device)
    return Problem(Lattice(targets, frames, labels, rules), symbols, columns - topology.durations, blank)


def floats(name: str, tensor: Tensor, dims: str, sizes: tuple[int | None, ...]) -> None:
    """Check a floating tensor: `dims` as the message shows them, `sizes` with None where any will do."""
    tensors(**{name: tensor})
    if tensor.dtype not in FLOATS:
        raise ValueError(f"expected {name} of a floating dtype, found {tensor.dtype}")
    fits = tensor.ndim == len(sizes) and all(
        size in (None, found) for size, found in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"expected {name} of shape {dims}, found {tuple(tensor.shape)}")


def tensors(**given: Tensor | None) -> None:
    """Check that they are tensors, or None."""
    for name, tensor in given.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ValueError(f"expected {name} as a tensor, found {type(tensor).__name__}")


def same_device(name: str, first: Tensor, **others: Tensor | None) -> None:
    """Check that all are where the first is."""
    for other, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"expected {other} on {first.device}, where {name} is, found {tensor.device}: move it"
            )


def valid_frames(frames: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, T) of x (B, T, ...) and `lengths` (B,), checked: which frames count; None if all do."""
    if frames is None:
        return None
    B, T = x.shape[:2]
    integers("lengths", frames, (B,))
    if min(lengths("lengths", frames, T), default=T) == T:
        return None
    return torch.arange(T, device=x.device) < frames.to(x.device)[:, None]


def flag(name: str, value: bool) -> None:
    """Check a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} True or False, found {value!r}")


def integers(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Check an index tensor."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"expected {name} as a tensor of shape {shape}, found {type(tensor).__name__}")
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"expected {name} of dtype int32 or int64, found {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, found {tuple(tensor.shape)}")


def lengths(name: str, tensor: Tensor, maximum: int) -> list[int]:
    """The lengths as a list, each within [0, maximum]."""
    values: list[int] = tensor.tolist()
    for b, value in enumerate(values):
        if not 0 <= value <= maximum:
            raise ValueError(f"expected {name} within [0, {maximum}], found {value} for utterance {b}")
    return values


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """(B,), or its sum or mean."""
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def loss_dtype(scored: Tensor) -> torch.dtype:
    """Of losses computed from this tensor."""
    return torch.float64 if scored.dtype == torch.float64 else torch.float32


def reduction(name: str) -> None:
    """Check the name of a reduction."""
    if name not in _REDUCTIONS:
        raise ValueError(f"expected reduction among {', '.join(_REDUCTIONS)}, found {name!r}")


def _rules(
    topology: Topology, criterion: str, fastemit: float, delay_penalty: float, band: Band | None
) -> Rules:
    if criterion not in _CRITERIA:
        raise ValueError(f"expected criterion among {', '.join(_CRITERIA)}, found {criterion!r}")
    if not (math.isfinite(fastemit) and fastemit >= 0):
        raise ValueError(f"expected fastemit finite and at least 0, found {fastemit}")
    if not math.isfinite(delay_penalty):
        raise ValueError(f"expected a finite delay_penalty, found {delay_penalty}")
    return Rules(topology, "max" if criterion == "max" else "sum", fastemit, delay_penalty, band)


def _band(alignment: Alignment | Tensor | None, width: int, shape: tuple[int, int]) -> Band | None:
    if width < 0:
        raise ValueError(f"expected alignment_band of at least 0 frames, found {width}")
    if alignment is None:
        return None
    frames, end_frames = (alignment, None) if isinstance(alignment, Tensor) else alignment[:2]
    integers("alignment frames", frames, shape)
    if end_frames is not None:
        integers("alignment end_frames", end_frames, shape)
        end_frames = end_frames.to("cpu", torch.int64)
    return Band(frames.to("cpu", torch.int64), end_frames, width)


def _targets(targets: Tensor, V: int) -> None:
    wrong = (targets < 0) | (targets >= V)
    if wrong.any():
        b, u = wrong.nonzero()[0].tolist()
        raise ValueError(f"expected targets within [0, {V}), found {targets[b, u]} at [{b}, {u}]")
