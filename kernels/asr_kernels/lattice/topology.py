"""Topologies as data: which arcs leave a node of the lattice.

A transducer's lattice has a node for every "u labels are out, frame t comes next". A topology lists the
arcs that leave a node: the symbol that must be emitted to take it, how many frames it consumes and how
many labels it puts out. A path leads from (0, 0) to (T, U), and its score is the sum of the scores of its
arcs. Everything else (losses, best paths, gradients, every backend) follows from the list:

    RNNT         blank: 1 frame                   label: 0 frames                    Graves 2012
    MONOTONIC    blank: 1 frame                   label: 1 frame                     Sak et al. 2017 (RNA)
    CTC          blank: 1 frame                   label, repetition: 1 frame         Graves et al. 2006
    multi_blank  blank: 1 frame, big blanks: d    label: 0 frames                    Xu et al. 2023a
    tdt          blank: d > 0 frames              label: d frames, d predicted       Xu et al. 2023b

With repetitions a label may be held: the label just put out is emitted again without a new one, and an
equal next label needs a blank in between. That takes a second state per label count, "a label was last".

Sources: A. Graves, *Sequence transduction with recurrent neural networks*, 2012. A. Graves et al.,
*Connectionist temporal classification*, 2006. H. Sak et al., *Recurrent neural aligner*, 2017. A. Tripathi et
al., *Monotonic recurrent neural network transducer*, 2019. H. Xu et al., *Multi-blank transducers for speech
recognition*, 2023. H. Xu et al., *Efficient sequence transduction by jointly predicting tokens and durations*
(TDT), 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["blank", "label", "repeat", "big blank"]
BLANK: Final = "blank"
LABEL: Final = "label"
REPEAT: Final = "repeat"
BIG_BLANK: Final = "big blank"
BLANK_SYMBOL: Final = 0
LABEL_SYMBOL: Final = 1


class Arc(NamedTuple):
    """A way to leave a node."""

    kind: Kind
    symbol: int
    """Which of the node's symbols is emitted: its place in the last dimension of `Topology.symbols`."""
    frames: int
    """Frames consumed."""
    duration: int | None = None
    """The place, likewise, of the duration that has to be predicted with the symbol; None for no duration."""

    @property
    def labels(self) -> int:
        """Labels put out."""
        return int(self.kind == LABEL)


@dataclass(frozen=True)
class Topology:
    """The arcs that leave a node. Made by the constants and functions of this module."""

    name: str
    arcs: tuple[Arc, ...]
    big_blanks: int = 0
    """Blanks of more than one frame: that many columns at the end of the logits, within the softmax."""
    durations: int = 0
    """Columns at the end of the logits that are a distribution over durations, a softmax of their own."""
    sigma: float = 0.0
    """Subtracted from the log-probability of every symbol (logit under-normalisation: favours few arcs)."""
    ends_with_blank: bool = False
    """Whether a label must not be the symbol that consumes the last frame."""

    @property
    def repeats(self) -> bool:
        """Whether labels may be held, which takes two states per label count."""
        return any(arc.kind == REPEAT for arc in self.arcs)

    @property
    def extra_columns(self) -> int:
        """Columns of the logits behind those of the labels and blank."""
        return self.big_blanks + self.durations

    def symbols(self, targets: Tensor, blank: int, columns: int) -> Tensor:
        """The columns of the logits that the arcs read: (B, U+1, K), from int64 targets (B, U).

        `columns` is the width of the logits. K is blank, next label, then what the topology adds: the last
        label, big blanks, durations. Where there is no next or last label, blank stands in.
        """
        B, U = targets.shape
        end = targets.new_full((B, 1), blank)
        kinds = [end.expand(B, U + 1), torch.cat((targets, end), dim=1)]
        if self.repeats:
            kinds.append(torch.cat((end, targets), dim=1))
        kinds += [targets.new_full((B, U + 1), columns - n) for n in range(self.extra_columns, 0, -1)]
        return torch.stack(kinds, dim=-1)

    def frames_needed(self, target: Sequence[int]) -> int:
        """Fewest frames that can emit `target`."""
        label, blank = (min(arc.frames for arc in self.arcs if arc.kind == kind) for kind in (LABEL, BLANK))
        frames = label * len(target)
        if self.repeats:
            frames += sum(a == b for a, b in pairwise(target))
        if self.ends_with_blank or label == 0:
            frames += blank
        return max(1, frames)


RNNT = Topology("rnnt", (Arc(BLANK, 0, 1), Arc(LABEL, 1, 0)))
"""Any number of labels on a frame, then one blank."""

MONOTONIC = Topology("monotonic", (Arc(BLANK, 0, 1), Arc(LABEL, 1, 1)))
"""Exactly one symbol per frame: the recurrent neural aligner, or monotonic RNN-T."""

CTC = Topology("ctc", (Arc(BLANK, 0, 1), Arc(LABEL, 1, 1), Arc(REPEAT, 2, 1)))
"""One symbol per frame; a label may be held, and an equal one behind it needs a blank in between."""


def multi_blank(durations: Sequence[int] = (2, 4), sigma: float = 0.0) -> Topology:
    """RNN-T with further blanks that consume `durations` frames: the last columns of the logits, in order.

    Raises ValueError unless the durations are distinct and above 1 and sigma is finite and not negative.
    """
    if not _distinct(durations) or min(durations) < 2:
        raise ValueError(
            f"expected distinct integer durations of big blanks above 1, found {tuple(durations)}"
        )
    _check_sigma(sigma)
    big = (Arc(BIG_BLANK, 2 + i, frames) for i, frames in enumerate(durations))
    return Topology("multi_blank", (*RNNT.arcs, *big), big_blanks=len(durations), sigma=sigma)


def tdt(durations: Sequence[int] = (0, 1, 2, 3, 4), sigma: float = 0.0) -> Topology:
    """Token-and-duration transducer: the last columns of the logits are a distribution over `durations`.

    As in NeMo, blank with duration 0 does not exist and the last symbol is a blank.
    Raises ValueError unless the durations are distinct and not negative, with one above 0, and sigma is fit.
    """
    if not _distinct(durations) or min(durations) < 0 or max(durations) < 1:
        raise ValueError(
            f"expected distinct integer durations from 0 with one above it, found {tuple(durations)}"
        )
    _check_sigma(sigma)
    each = [(2 + i, frames) for i, frames in enumerate(durations)]
    arcs = [Arc(BLANK, 0, frames, duration) for duration, frames in each if frames > 0]
    arcs += [Arc(LABEL, 1, frames, duration) for duration, frames in each]
    return Topology("tdt", tuple(arcs), durations=len(durations), sigma=sigma, ends_with_blank=True)


def _distinct(durations: Sequence[int]) -> bool:
    """Whether these are one or more integers, each of them once."""
    integers = all(isinstance(each, int) for each in durations)
    return integers and 0 < len(set(durations)) == len(durations)


def _check_sigma(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"expected sigma finite and at least 0, found {sigma}")
