"""How a hypothesis may go on from a frame, as its topology has it, with the log-probability of each way.

- quiet: no label. Blank, big blanks, blank with a duration, the last label held.
- taking: a label that consumes frames: monotonic and CTC topologies, TDT with a duration above 0.
- staying: a label that consumes none: RNN-T, multi-blank, TDT with duration 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr.search.confidence import PLAIN, ConfidenceConfig
from asr_kernels import Topology


class Moves(NamedTuple):
    """Log-probabilities of the ways on of rows (...)."""

    quiet: Tensor
    """(..., Q)."""
    taking: Tensor
    """(..., V, D): of label v with the d-th number of frames; minus infinity for blank. D may be 0."""
    staying: Tensor | None
    """(..., V), minus infinity for blank; None if no label stays."""
    wants: Tensor
    """(...) bool: whether the most probable way is a label that stays."""
    symbols: Tensor
    """(..., V) log-probability of the label itself, without that of a duration."""
    confidences: Tensor
    """(..., V) logarithm of the confidence in the label."""


class MoveTable:
    """The ways on in a topology over labels 0..V-1, of which 0 is blank."""

    def __init__(self, topology: Topology, vocab_size: int, confidence: ConfidenceConfig = PLAIN) -> None:
        self.topology, self.vocab_size, self.confidence = topology, vocab_size, confidence
        blanks = [arc for arc in topology.arcs if arc.kind in ("blank", "big blank")]
        labels = [arc for arc in topology.arcs if arc.kind == "label"]
        # Blank consumes a frame at least, whatever duration is predicted.
        self._blanks = [arc for arc in blanks if arc.frames > 0]
        self._taking = [arc for arc in labels if arc.frames > 0]
        self._staying = [arc for arc in labels if arc.frames == 0]
        repeats = [1] if topology.repeats else []
        self.quiet_frames = torch.tensor([arc.frames for arc in self._blanks] + repeats)
        """(Q,) frames that quiet moves consume; the last one holds on a label if the topology repeats."""
        self.taking_frames = torch.tensor([arc.frames for arc in self._taking], dtype=torch.int64)
        """(D,) frames that labels consume."""
        self.stays = bool(self._staying)

    def __call__(self, logits: Tensor, held: Tensor) -> Moves:
        """Moves of rows with logits (..., V + extra); held (...): the label that may be held, 0 for none."""
        durations, vocab = self.topology.durations, self.vocab_size
        logits = logits.float()
        symbols = logits[..., : logits.shape[-1] - durations].log_softmax(dim=-1)
        lengths = logits[..., logits.shape[-1] - durations :].log_softmax(dim=-1) if durations else None

        def probability(column: Tensor, place: int | None) -> Tensor:
            """Of a symbol's column (..., N), with the duration at `place` among the extra columns."""
            if lengths is None or place is None:
                return column
            return column + lengths[..., place - 2, None]

        labels = symbols[..., :vocab].clone()
        labels[..., 0] = -torch.inf
        quiet = []
        for arc in self._blanks:
            place = 0 if arc.kind == "blank" else vocab + arc.symbol - 2
            quiet.append(probability(symbols[..., place, None], arc.duration))
        if self.topology.repeats:
            repeated = labels.gather(-1, held[..., None])
            quiet.append(repeated)
            labels = labels.scatter(-1, held[..., None], -torch.inf)
        taking = [probability(labels, arc.duration) for arc in self._taking]
        staying = [probability(labels, arc.duration) for arc in self._staying]
        none = labels.new_empty(*labels.shape, 0)
        best = symbols.argmax(dim=-1)
        wants = (best > 0) & (best < vocab) & self.stays
        if lengths is not None and staying:
            wants &= lengths.argmax(dim=-1) == (self._staying[0].duration or 0) - 2
        return Moves(
            torch.cat(quiet, dim=-1),
            torch.stack(taking, dim=-1) if taking else none,
            staying[0] if staying else None,
            wants,
            symbols[..., :vocab],
            self.confidence.log_confidences(symbols)[..., :vocab],
        )
