"""k2's pruned transducer losses (https://github.com/k2-fsa/k2) as a backend, where the user has installed it.

k2 is imported when it is asked for and never needed. What it defines differently is made as this package
defines it: no frames are an infinite loss (there 0), a loss without a path has no gradient (there it has
one), padding may hold anything, half precision is computed in float32. The bounds are k2's own.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels.lattice.arcs import Lattice
from asr_kernels.lattice.topology import MONOTONIC, RNNT
from asr_kernels.nodes import Nodes
from asr_kernels.pruned.reference import within

NAME = "k2"


def simple_loss(
    am: Tensor,
    lm: Tensor,
    lattice: Lattice,
    blank: int,
    am_scale: float,
    lm_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,) of am (B, T, V) + lm (B, U+1, V), and occupations: label (B, T, U), blank (B, T, U+1)."""
    k2, nodes = _library(), Nodes(lattice.frames, lattice.labels, lm.shape[1])
    heard, spoken = within(am, lm, nodes)
    losses, (label, by_blank) = k2.rnnt_loss_smoothed(
        lm=torch.where(spoken, lm, 0.0),
        am=torch.where(heard, am, 0.0),
        lm_only_scale=lm_scale,
        am_only_scale=am_scale,
        return_grad=True,
        **_options(lattice, blank, am.device),
    )
    T = am.shape[1]  # label occupations of the regular topology have a frame more
    return _defined(losses, lattice), label[..., :T].transpose(1, 2), by_blank.transpose(1, 2)


def bounds(
    label_occupation: Tensor, blank_occupation: Tensor, frames: list[int], labels: list[int], S: int
) -> Tensor:
    """(B, T, S) label positions, from occupations (B, T, U) and (B, T, U+1)."""
    boundary = _boundary(frames, labels, blank_occupation.device)
    found: Tensor = _library().get_rnnt_prune_ranges(
        px_grad=functional.pad(label_occupation.transpose(1, 2), (0, 1)),
        py_grad=blank_occupation.transpose(1, 2).contiguous(),
        boundary=boundary,
        s_range=S,
    )
    return found


def pruned_loss(logits: Tensor, ranges: Tensor, nodes: Nodes, lattice: Lattice, blank: int) -> Tensor:
    """Losses (B,) of logits (B, T, S, V) at the label positions `ranges` (B, T, S)."""
    valid = nodes.valid(logits.shape[1], logits.device)
    losses = _library().rnnt_loss_pruned(
        logits=torch.where(valid[..., None], logits, 0.0),
        ranges=ranges,
        **_options(lattice, blank, logits.device),
    )
    return _defined(losses, lattice)


def _library() -> ModuleType:
    if importlib.util.find_spec(NAME) is None:
        raise ImportError(
            'backend="k2" needs k2, which is not installed (https://k2-fsa.github.io/k2/installation); '
            "the other backends need nothing"
        )
    return importlib.import_module(NAME)


def _options(lattice: Lattice, blank: int, device: torch.device) -> dict[str, Any]:
    """Arguments that all of k2's losses take. Raises ValueError for rules that k2 does not know."""
    rules = lattice.rules
    kinds = {RNNT: "regular", MONOTONIC: "modified"}
    for name, found, known in (
        ("topology RNNT or MONOTONIC", rules.topology.name, rules.topology in kinds),
        ('criterion "sum"', rules.criterion, rules.criterion == "sum"),
        ("fastemit 0", rules.fastemit, rules.fastemit == 0),
        ("no alignment", "one", rules.band is None),
    ):
        if not known:
            raise ValueError(f'expected {name} for backend="k2", found {found}')
    return {
        "symbols": lattice.targets.to(device),
        "termination_symbol": blank,
        "boundary": _boundary(lattice.frames, lattice.labels, device),
        "rnnt_type": kinds[rules.topology],
        "delay_penalty": rules.delay_penalty,
        "reduction": "none",
    }


def _boundary(frames: list[int], labels: list[int], device: torch.device) -> Tensor:
    """(B, 4) int64: first label, first frame, number of labels, number of frames."""
    rows = [[0, 0, U, T] for T, U in zip(frames, labels, strict=True)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _defined(losses: Tensor, lattice: Lattice) -> Tensor:
    """The losses, infinite and without a gradient where there is no path."""
    no_frames = torch.tensor([T == 0 for T in lattice.frames], device=losses.device)
    return torch.where(no_frames | (losses == torch.inf), torch.inf, losses)
