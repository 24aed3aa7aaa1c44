"""Greedy transducer search, batched over streams, with explicit state, for every topology.

At every frame the best symbol is taken until one consumes the frame (Graves 2012, section 2.5, with a beam
of one): blank, and, as the topology has it, labels too, or symbols that consume several frames, which the
stream then skips. All streams of the batch go frame by frame together; a predictor step is taken only for
the streams that emitted. `max_symbols` bounds the labels per frame, so that the search always ends; frames
where the bound bites are counted and reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

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
    skip: Tensor
    """(B,) int64 frames still consumed by the last symbol."""
    held: Tensor
    """(B,) int64 the last frame's symbol if it may be held on (CTC topology), else blank."""


class _Choice(NamedTuple):
    """The best symbol of each stream."""

    label: Tensor  # (B,) its id; blank for every blank
    frames: Tensor  # (B,) how many it consumes
    log_prob: Tensor  # (B,)


class GreedySearch:
    """Greedy search with a transducer; see asr.search.hypothesis.Search."""

    def __init__(self, model: Transducer, max_symbols: int = 8) -> None:
        assert model.has_transducer
        assert max_symbols >= 1
        self.model, self.max_symbols = model, max_symbols
        topology = model.topology
        consumed = {arc.symbol: arc.frames for arc in topology.arcs}
        frames = torch.full((model.vocab_size + topology.extra_columns,), consumed[1])
        frames[model.blank] = consumed[0]
        for i in range(topology.big_blanks):
            frames[model.vocab_size + i] = consumed[2 + i]
        self._frames = frames
        """Frames that each symbol consumes, where they are not predicted."""
        self._durations = torch.tensor([arc.frames for arc in topology.arcs if arc.kind == "label"])
        """Frames of each duration, where they are."""

    @torch.inference_mode()
    def initial_state(self, batch: int, device: torch.device | None = None) -> GreedyState:
        """State of `batch` streams that have heard nothing."""
        model = self.model
        blanks = torch.full((batch, 1), model.blank, dtype=torch.int64, device=device)
        y, predictor = model.predictor(blanks, model.predictor.initial_state(batch, device))
        zeros = torch.zeros_like(blanks[:, 0])
        return GreedyState(predictor, model.joiner.predictor(y[:, 0]), zeros, zeros, blanks[:, 0])

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: GreedyState) -> SearchOutput:
        """Search the next encoder frames (B, T', E) of every stream."""
        model, batch = self.model, encoded.shape[0]
        frames = model.joiner.encoder(encoded)
        tokens: list[list[Token]] = [[] for _ in range(batch)]
        truncated = [0] * batch
        offsets = state.frame.tolist()
        predictor, projected, skip, held = state.predictor, state.projected, state.skip, state.held
        for t in range(int(lengths.max()) if batch else 0):
            present = t < lengths
            searching = present & (skip == 0)
            skip = torch.where(present, (skip - 1).clamp(min=0), skip)
            for symbol in range(self.max_symbols + 1):
                choice = self._choose(model.joiner.combine(frames[:, t], projected).float())
                emits = searching & (choice.label != model.blank)
                if model.topology.repeats:
                    repeated = emits & (choice.label == held)
                    held = torch.where(searching, choice.label, held)
                    emits = emits & ~repeated
                # What consumes no frame is bounded; the frame is given up where the bound bites.
                stays = searching & (choice.frames == 0)
                if symbol == self.max_symbols:
                    for stream in stays.nonzero()[:, 0].tolist():
                        truncated[stream] += 1
                    emits = emits & ~stays
                skip = torch.where(searching & ~stays, choice.frames - 1, skip)
                emitting = emits.nonzero()[:, 0]
                found = (x[emitting].tolist() for x in (choice.label, choice.log_prob, choice.frames))
                for stream, token, value, consumed in zip(emitting.tolist(), *found, strict=True):
                    frame = offsets[stream] + t
                    tokens[stream].append(Token(token, frame, frame + max(1, consumed), value))
                if len(emitting):
                    predictor, projected = self._extend(predictor, projected, choice.label, emits)
                searching = stays
                if symbol == self.max_symbols or not bool(stays.any()):
                    break
        new = GreedyState(predictor, projected, state.frame + lengths, skip, held)
        return SearchOutput(tokens, new, truncated)

    def _choose(self, logits: Tensor) -> _Choice:
        """The best symbol of each row of logits (B, V)."""
        topology, blank = self.model.topology, self.model.blank
        symbols = logits[:, : logits.shape[1] - topology.durations]
        best, label = symbols.max(dim=-1)
        log_prob = best - symbols.logsumexp(dim=-1)
        if topology.durations:
            frames = self._durations.to(label.device)[logits[:, -topology.durations :].argmax(dim=-1)]
            # Blank always consumes a frame.
            return _Choice(label, torch.where(label == blank, frames.clamp(min=1), frames), log_prob)
        frames = self._frames.to(label.device)[label]
        # Big blanks are blanks from here on.
        return _Choice(label.masked_fill(label >= self.model.vocab_size, blank), frames, log_prob)

    def flush(self, state: GreedyState) -> list[list[Token]]:
        """Nothing waits: labels are emitted on the frame that decides them."""
        return [[] for _ in range(state.frame.shape[0])]

    def pending(self, state: GreedyState) -> list[list[Token]]:
        """Nothing: what was emitted stays."""
        return self.flush(state)

    @torch.inference_mode()
    def restart(self, state: GreedyState, said: Sequence[Sequence[int]]) -> GreedyState:
        """The predictor has seen `said`; what the last symbol still consumes, or is held on by, stays."""
        fresh = self.initial_state(len(state.frame), state.frame.device)
        predictor, projected = fresh.predictor, fresh.projected
        for labels in zip_longest(*said):
            there = torch.tensor([label is not None for label in labels], device=state.frame.device)
            label = torch.tensor([label or self.model.blank for label in labels], device=state.frame.device)
            predictor, projected = self._extend(predictor, projected, label, there)
        return replace(state, predictor=predictor, projected=projected)

    def frames(self, state: GreedyState) -> Tensor:
        """(B,) int64: frames searched so far."""
        return state.frame

    def _extend(
        self, predictor: Any, projected: Tensor, label: Tensor, emitting: Tensor
    ) -> tuple[Any, Tensor]:
        """Predictor state and projection after `label` in the streams that emit; the others stay."""
        y, advanced = self.model.predictor(label[:, None], predictor)
        moved = states.where(emitting, advanced, predictor)
        return moved, torch.where(emitting[:, None], self.model.joiner.predictor(y[:, 0]), projected)
