"""How a hypothesis may go on from a frame, as its topology has it, with the log-probability of each way.

- quiet: no label. Blank, big blanks, blank with a duration, the last label held.
- taking: a label that consumes frames: monotonic and CTC topologies, TDT with a duration above 0.
- staying: a label that consumes none: RNN-T, multi-blank, TDT with duration 0.

The network's answer is a tensor, what a search makes of it are decisions about single hypotheses: `MoveTable`
takes the few labels of each row that a beam can use, and gives them as lists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr_kernels import Topology
from asr_kernels.lattice.topology import Arc


class Ways(NamedTuple):
    """For each row the labels that are worth most, best first; lists of N rows, k each."""

    worth: list[list[float]]
    """Log-probability and what scorers add; minus infinity for what is no way."""
    label: list[list[int]]
    frames: list[list[int]]
    """What it consumes."""
    log_prob: list[list[float]]
    """Of the label, with its duration."""
    symbol: list[list[float]]
    """Log-probability of the label without that of a duration."""
    added: list[list[float]]
    """What scorers add."""


class Moves(NamedTuple):
    """The ways on of N rows."""

    quiet: list[list[float]]
    """(N, Q) log-probabilities."""
    taking: Ways | None
    staying: Ways | None
    wants: list[bool] | None
    """(N,) whether the most probable way is a label that stays, if somebody asked."""


class MoveTable:
    """The ways on in a topology over labels 0..V-1, of which 0 is blank; `most` labels of each row."""

    def __init__(self, topology: Topology, vocab_size: int, most: int) -> None:
        self.topology, self.vocab_size, self.most = topology, vocab_size, most
        blanks = [arc for arc in topology.arcs if arc.kind in ("blank", "big blank")]
        labels = [arc for arc in topology.arcs if arc.kind == "label"]
        # Blank consumes a frame at least, whatever duration is predicted.
        self._blanks = [arc for arc in blanks if arc.frames > 0]
        self._taking = [arc for arc in labels if arc.frames > 0]
        self._staying = [arc for arc in labels if arc.frames == 0]
        repeats = [1] if topology.repeats else []
        self.quiet_frames = [arc.frames for arc in self._blanks] + repeats
        """Frames that quiet moves consume; the last one holds on a label if the topology repeats."""

    def __call__(self, logits: Tensor, added: Tensor, held: Tensor | None, wants: bool) -> Moves:
        """Moves of rows with logits (N, V + extra).

        added (N, V): what scorers add, minus infinity for blank; held (N,): the label that may be held, 0 for
        none, where the topology repeats; wants: whether that is asked.
        """
        logits, durations = logits.float(), self.topology.durations
        symbols = logits[:, : logits.shape[1] - durations].log_softmax(dim=1)
        lengths = logits[:, logits.shape[1] - durations :].log_softmax(dim=1) if durations else None
        quiet = [
            self._with_duration(symbols[:, _column(arc, self.vocab_size)], arc, lengths)
            for arc in self._blanks
        ]
        labels = symbols[:, : self.vocab_size]
        if held is not None:
            repeated = labels.gather(1, held[:, None])
            quiet.append(repeated.masked_fill(held[:, None] == 0, -torch.inf)[:, 0])
            added = added.scatter(1, held[:, None], -torch.inf)
        return Moves(
            lists(torch.stack(quiet, dim=1) if len(quiet) > 1 else quiet[0][:, None]),
            self._ways(self._taking, labels, lengths, added),
            self._ways(self._staying, labels, lengths, added),
            lists(self._wants(symbols, lengths)) if wants else None,
        )

    def _with_duration(self, column: Tensor, arc: Arc, lengths: Tensor | None) -> Tensor:
        """Log-probabilities (N, ...) of a symbol with the duration of an arc."""
        if lengths is None or arc.duration is None:
            return column
        length = lengths[:, arc.duration - 2]
        return column + (length if column.dim() == 1 else length[:, None])

    def _ways(self, arcs: list[Arc], labels: Tensor, lengths: Tensor | None, added: Tensor) -> Ways | None:
        """The best labels by these arcs, of which each label has all."""
        if not arcs:
            return None
        vocab = self.vocab_size
        columns = [self._with_duration(labels, arc, lengths) for arc in arcs]
        log_prob = columns[0] if len(arcs) == 1 else torch.cat(columns, dim=1)
        worth = log_prob + (added if len(arcs) == 1 else added.repeat(1, len(arcs)))
        worth, best = worth.topk(min(self.most, worth.shape[1]), dim=1)
        chosen = log_prob.gather(1, best)
        label = best if len(arcs) == 1 else best % vocab
        frames = torch.full_like(best, arcs[0].frames)
        symbol = chosen
        if lengths is not None:
            symbol = labels.gather(1, label)
            frames = torch.tensor([arc.frames for arc in arcs], device=best.device)[best // vocab]
        columns = [worth, label, frames, chosen, symbol, added.gather(1, label)]
        return Ways(*map(lists, columns))

    def _wants(self, symbols: Tensor, lengths: Tensor | None) -> Tensor:
        """(N,) bool: see Moves."""
        best = symbols.argmax(dim=1)
        wants = (best > 0) & (best < self.vocab_size)
        if not self._staying:
            return torch.zeros_like(wants)
        if lengths is not None:
            wants &= lengths.argmax(dim=1) == (self._staying[0].duration or 0) - 2
        return wants


def _column(arc: Arc, vocab_size: int) -> int:
    """The column of a blank among the symbols."""
    return 0 if arc.kind == "blank" else vocab_size + arc.symbol - 2


def lists(tensor: Tensor) -> Any:
    """A tensor's values; much faster than its own `tolist`."""
    return tensor.cpu().numpy().tolist()
