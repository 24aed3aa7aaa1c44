"""Greedy CTC search: the best label of every frame, repetitions merged, blanks removed.

A run of equal labels is one token that lasts as long as the run (Graves et al. 2006, best path decoding);
its log-probability is that of its most certain frame. A run is only known to have ended when another label
follows, so a token comes one frame after its end, or at the flush.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.search.hypothesis import SearchOutput, Settled, Token
from asr.transducer import Transducer


@dataclass(frozen=True)
class CtcState:
    """The run that is open at the end of what was searched."""

    label: Tensor
    """(B,) int64, blank if no run is open."""
    start: Tensor
    """(B,) int64 first frame of the run."""
    log_prob: Tensor
    """(B,) float32, of the run's most certain frame."""
    log_confidence: Tensor
    """(B,) float32 logarithm of the confidence there."""
    frame: Tensor
    """(B,) int64 frames searched so far."""


class CtcGreedySearch:
    """Best path decoding of the CTC head; see asr.search.hypothesis.Search."""

    def __init__(self, model: Transducer, confidence: ConfidenceConfig = PLAIN) -> None:
        assert model.ctc is not None
        self.model, self.confidence = model, confidence

    def initial_state(self, batch: int, device: torch.device | None = None) -> CtcState:
        """State of `batch` streams that have heard nothing."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        blanks = torch.full_like(zeros, self.model.blank)
        nothing = torch.zeros(batch, device=device)
        return CtcState(blanks, zeros, nothing, nothing, zeros)

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: CtcState) -> SearchOutput:
        """Search the next encoder frames (B, T', E) of every stream."""
        assert self.model.ctc is not None
        symbols = self.model.ctc(encoded).float().log_softmax(dim=-1)
        log_probs, labels = symbols.max(dim=-1)
        sure = self.confidence.log_confidences(symbols).gather(-1, labels[..., None])[..., 0]
        tokens: list[list[Token]] = []
        open_runs: list[Token] = []
        for stream, run in enumerate(self._runs(state)):
            length, found = int(lengths[stream]), []
            columns = (x[stream, :length].tolist() for x in (labels, log_probs, sure))
            for label, *certain in zip(*columns, strict=True):
                if label == run.id:
                    most = max((run.log_prob, run.log_sure), tuple(certain))
                    run = Token(label, run.frame, run.end_frame + 1, *most)
                    continue
                if run.id != self.model.blank:
                    found.append(run)
                run = Token(label, run.end_frame, run.end_frame + 1, *certain)
            tokens.append(found)
            open_runs.append(run)
        device = labels.device
        new = CtcState(
            torch.tensor([run.id for run in open_runs], dtype=torch.int64, device=device),
            torch.tensor([run.frame for run in open_runs], dtype=torch.int64, device=device),
            torch.tensor([run.log_prob for run in open_runs], device=device),
            torch.tensor([run.log_sure for run in open_runs], device=device),
            state.frame + lengths,
        )
        return SearchOutput(tokens, new, [0] * len(tokens))

    def flush(self, state: CtcState) -> list[list[Token]]:
        """The run that the end of the stream closes."""
        return [[run] if run.id != self.model.blank else [] for run in self._runs(state)]

    def pending(self, state: CtcState) -> list[list[Token]]:
        """Nothing is shown before it has ended."""
        return [[] for _ in state.label]

    def settle(self, state: CtcState) -> Settled:
        """Nothing is undecided."""
        return Settled(self.pending(state), state)

    def restart(self, state: CtcState, said: Sequence[Sequence[int]]) -> CtcState:
        """What was said has no effect; an open run stays open."""
        return state

    def frames(self, state: CtcState) -> Tensor:
        """(B,) int64: frames searched so far."""
        return state.frame

    def _runs(self, state: CtcState) -> list[Token]:
        columns = (state.label, state.start, state.frame, state.log_prob, state.log_confidence)
        return [Token(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
