"""How a hypothesis may go on from a frame, as its topology has it, with the log-probability of each way.

- quiet: no label. Blank, big blanks, blank with a duration, the last label held.
- taking: a label that consumes frames: monotonic and CTC topologies, TDT with a duration above 0.
- staying: a label that consumes none: RNN-T, multi-blank, TDT with duration 0.

The network's answer is a tensor, what a search makes of it are decisions about single hypotheses: `MoveTable`
takes the few labels of each row that a beam can use, and gives them as lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr.search.confidence import PLAIN, ConfidenceConfig
from asr_kernels import Topology
from asr_kernels.lattice.topology import Arc

HOLDS = 0
"""In place of frames: the last label is held on for a frame."""


class Ways(NamedTuple):
    """For each of N rows the k labels that are worth most, best first; of row n from place n k on.

    Flat lists, as there are many, and Python looks through all lists of lists now and then.
    """

    most: int
    """k."""
    worth: list[float]
    """Log-probability and what scorers add; minus infinity for what is no way."""
    label: list[int]
    frames: list[int]
    """What it consumes."""
    log_prob: list[float]
    """Of the label, with its duration."""
    symbol: list[float]
    """Log-probability of the label without that of a duration."""
    sure: list[float]
    """Logarithm of the confidence in the label."""
    added: list[float]
    """What scorers add."""


class Moves(NamedTuple):
    """The ways on of N rows."""

    quiet: list[float]
    """Log-probabilities, Q of each row."""
    taking: Ways | None
    staying: Ways | None
    wants: Callable[[int], bool]
    """Whether the most probable way of a row is a label that stays."""


class MoveTable:
    """The ways on in a topology over labels 0..V-1, of which 0 is blank; `most` labels of each row."""

    def __init__(
        self, topology: Topology, vocab_size: int, most: int, confidence: ConfidenceConfig = PLAIN
    ) -> None:
        self.topology, self.vocab_size, self.most = topology, vocab_size, most
        self.confidence = confidence
        blanks = [arc for arc in topology.arcs if arc.kind in ("blank", "big blank")]
        labels = [arc for arc in topology.arcs if arc.kind == "label"]
        # Blank consumes a frame at least, whatever duration is predicted.
        self._blanks = [arc for arc in blanks if arc.frames > 0]
        self._taking = [arc for arc in labels if arc.frames > 0]
        self._staying = [arc for arc in labels if arc.frames == 0]
        self.quiet_frames = [arc.frames for arc in self._blanks] + [HOLDS] * topology.repeats
        """Frames that quiet moves consume, or HOLDS."""

    def __call__(self, logits: Tensor, added: Tensor, held: Tensor | None) -> Moves:
        """Moves of rows with logits (N, V + extra).

        added (N, V): what scorers add, minus infinity for blank; held (N,): the label that may be held, 0 for
        none, where the topology repeats.
        """
        logits, durations = logits.float(), self.topology.durations
        symbols = logits[:, : logits.shape[1] - durations].log_softmax(dim=1)
        lengths = logits[:, logits.shape[1] - durations :].log_softmax(dim=1) if durations else None
        quiet = [
            self._with_duration(symbols[:, _column(arc, self.vocab_size)], arc, lengths)
            for arc in self._blanks
        ]
        labels = symbols[:, : self.vocab_size]
        sure = self.confidence.log_confidences(symbols)
        # The probability itself is gathered once.
        sures = None if sure is symbols else sure
        if held is not None:
            repeated = labels.gather(1, held[:, None])
            quiet.append(repeated.masked_fill(held[:, None] == 0, -torch.inf)[:, 0])
            added = added.scatter(1, held[:, None], -torch.inf)
        return Moves(
            flat(torch.stack(quiet, dim=1) if len(quiet) > 1 else quiet[0]),
            self._ways(self._taking, labels, lengths, added, sures),
            self._ways(self._staying, labels, lengths, added, sures),
            lambda row: self._wants(symbols[row], None if lengths is None else lengths[row]),
        )

    def _with_duration(self, column: Tensor, arc: Arc, lengths: Tensor | None) -> Tensor:
        """Log-probabilities (N, ...) of a symbol with the duration of an arc."""
        if lengths is None or arc.duration is None:
            return column
        length = lengths[:, arc.duration - 2]
        return column + (length if column.dim() == 1 else length[:, None])

    def _ways(
        self, arcs: list[Arc], labels: Tensor, lengths: Tensor | None, added: Tensor, sures: Tensor | None
    ) -> Ways | None:
        """The best labels by these arcs, of which each label has all."""
        if not arcs:
            return None
        vocab = self.vocab_size
        columns = [self._with_duration(labels, arc, lengths) for arc in arcs]
        log_prob = columns[0] if len(arcs) == 1 else torch.cat(columns, dim=1)
        worth = log_prob + (added if len(arcs) == 1 else added.repeat(1, len(arcs)))
        worth, best = worth.topk(min(self.most, worth.shape[1]), dim=1)
        chosen, many = flat(log_prob.gather(1, best)), best.numel()
        if len(arcs) == 1 and lengths is None:
            label, frames, symbol = best, [arcs[0].frames] * many, chosen
        else:
            label, consumed = best % vocab, torch.tensor([arc.frames for arc in arcs], device=best.device)
            frames, symbol = flat(consumed[best // vocab]), flat(labels.gather(1, label))
        spoken = flat(added.gather(1, label))
        sure = symbol if sures is None else flat(sures.gather(1, label))
        return Ways(worth.shape[1], flat(worth), flat(label), frames, chosen, symbol, sure, spoken)

    def _wants(self, symbols: Tensor, lengths: Tensor | None) -> bool:
        """Of one row; see Moves."""
        if not self._staying or not 0 < int(symbols.argmax()) < self.vocab_size:
            return False
        return lengths is None or int(lengths.argmax()) == (self._staying[0].duration or 0) - 2


def _column(arc: Arc, vocab_size: int) -> int:
    """The column of a blank among the symbols."""
    return 0 if arc.kind == "blank" else vocab_size + arc.symbol - 2


def flat(tensor: Tensor) -> list[Any]:
    """A tensor's values, one after the other; much faster than its own `tolist`."""
    values: list[Any] = tensor.reshape(-1).cpu().numpy().tolist()
    return values
