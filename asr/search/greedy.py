"""Greedy transducer search, batched over streams, with explicit state.

At every frame the best label is emitted until blank is the best (Graves 2012, section 2.5, with a beam of
one). All streams of the batch go frame by frame together; a predictor step is taken only for the streams
that emitted. `max_symbols` bounds the labels per frame, so that the search always ends; frames where the
bound bites are counted and reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asr import state as states
from asr.search.hypothesis import SearchOutput, Token
from asr.transducer import Transducer


@dataclass(frozen=True)
class GreedyState:
    """What a stream remembers between chunks."""

    predictor: Any
    """Predictor state after the labels so far."""
    projected: Tensor
    """(B, J) predictor output after the last label, projected for the joiner."""
    frame: Tensor
    """(B,) int64 encoder frames searched so far."""


class GreedySearch:
    """Greedy search with a transducer; see asr.search.hypothesis.Search."""

    def __init__(self, model: Transducer, max_symbols: int = 8) -> None:
        assert model.has_transducer
        assert max_symbols >= 1
        self.model, self.max_symbols = model, max_symbols

    @torch.inference_mode()
    def initial_state(self, batch: int, device: torch.device | None = None) -> GreedyState:
        """State of `batch` streams that have heard nothing."""
        model = self.model
        blanks = torch.full((batch, 1), model.blank, dtype=torch.int64, device=device)
        y, predictor = model.predictor(blanks, model.predictor.initial_state(batch, device))
        return GreedyState(predictor, model.joiner.predictor(y[:, 0]), torch.zeros_like(blanks[:, 0]))

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: GreedyState) -> SearchOutput:
        """Search the next encoder frames (B, T', E) of every stream."""
        model, batch = self.model, encoded.shape[0]
        frames = model.joiner.encoder(encoded)
        tokens: list[list[Token]] = [[] for _ in range(batch)]
        truncated = [0] * batch
        offsets = state.frame.tolist()
        predictor, projected = state.predictor, state.projected
        for t in range(int(lengths.max()) if batch else 0):
            searching = t < lengths
            for symbol in range(self.max_symbols + 1):
                logits = model.joiner.combine(frames[:, t], projected).float()
                best, label = logits.max(dim=-1)
                searching = searching & (label != model.blank)
                emitting = searching.nonzero()[:, 0]
                if not len(emitting):
                    break
                if symbol == self.max_symbols:
                    for stream in emitting.tolist():
                        truncated[stream] += 1
                    break
                log_prob = (best - logits.logsumexp(dim=-1))[emitting]
                found = zip(emitting.tolist(), label[emitting].tolist(), log_prob.tolist(), strict=True)
                for stream, token, value in found:
                    frame = offsets[stream] + t
                    tokens[stream].append(Token(token, frame, frame + 1, value))
                predictor, projected = self._extend(predictor, projected, label, searching)
        new = GreedyState(predictor, projected, state.frame + lengths)
        return SearchOutput(tokens, new, truncated)

    def flush(self, state: GreedyState) -> list[list[Token]]:
        """Nothing waits: labels are emitted on the frame that decides them."""
        return [[] for _ in range(state.frame.shape[0])]

    def _extend(
        self, predictor: Any, projected: Tensor, label: Tensor, emitting: Tensor
    ) -> tuple[Any, Tensor]:
        """Predictor state and projection after `label` in the streams that emit; the others stay."""
        y, advanced = self.model.predictor(label[:, None], predictor)
        moved = states.where(emitting, advanced, predictor)
        return moved, torch.where(emitting[:, None], self.model.joiner.predictor(y[:, 0]), projected)
