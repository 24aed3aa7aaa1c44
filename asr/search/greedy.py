"""Greedy transducer search, batched over streams, with explicit state, for every topology.

At every frame the best symbol is taken until one consumes the frame (Graves 2012, section 2.5, with a beam
of one): blank, and, as the topology has it, labels too, or symbols that consume several frames, which the
stream then skips. `max_symbols` bounds the labels per frame, so that the search always ends; frames where the
bound bites are counted and reported.

How the batch goes through its frames, from label to label, is told in asr.search.label_loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.search.hypothesis import SearchOutput, Settled, Token, in_columns
from asr.search.label_graph import LabelGraphs
from asr.search.label_loop import Emissions, LabelLoop, Streams
from asr.transducer import Transducer

WINDOW = 6
"""Frames that a stream looks ahead: on CPU about the fastest for joiners of 30 to 2000 symbols."""


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


class GreedySearch:
    """Greedy search with a transducer; see asr.search.hypothesis.Search.

    `window`: frames that a stream looks ahead. `graphs`: record the steps in CUDA graphs, on a GPU outside
    autocast. Neither has an influence on what is found, nor has `confidence`, what the tokens' is.
    """

    def __init__(
        self,
        model: Transducer,
        max_symbols: int = 8,
        window: int = WINDOW,
        *,
        graphs: bool = True,
        confidence: ConfidenceConfig = PLAIN,
    ) -> None:
        assert model.has_transducer
        assert max_symbols >= 1
        assert window >= 1
        self.model, self.max_symbols = model, max_symbols
        self.loop = LabelLoop(model, max_symbols, window, confidence)
        self.graphs = LabelGraphs(self.loop) if graphs else None

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
        if not bool(lengths.any()):
            return SearchOutput([[] for _ in lengths], state, [0] * len(lengths))
        none = torch.zeros_like(state.frame)
        streams = Streams(state.predictor, state.projected, state.skip, none, state.held, none)
        if self.graphs is not None and encoded.is_cuda and not torch.is_autocast_enabled("cuda"):
            found = self.graphs.run(self.model.joiner.encoder(encoded), lengths, streams)
        else:
            found = self.loop.run(self.loop.packed(encoded, lengths), streams)
        streams, emissions = found
        new = GreedyState(
            streams.predictor,
            streams.projected,
            state.frame + lengths,
            (streams.position - lengths).clamp(min=0),
            streams.held,
        )
        return SearchOutput(_tokens(emissions, state.frame), new, streams.truncated.tolist())

    def flush(self, state: GreedyState) -> list[list[Token]]:
        """Nothing waits: labels are emitted on the frame that decides them."""
        return [[] for _ in range(state.frame.shape[0])]

    def pending(self, state: GreedyState) -> list[list[Token]]:
        """Nothing: what was emitted stays."""
        return self.flush(state)

    def settle(self, state: GreedyState) -> Settled:
        """Nothing is undecided."""
        return Settled(self.pending(state), state)

    @torch.inference_mode()
    def restart(self, state: GreedyState, said: Sequence[Sequence[int]]) -> GreedyState:
        """The predictor has seen `said`; what the last symbol still consumes, or is held on by, stays."""
        fresh = self.initial_state(len(state.frame), state.frame.device)
        predictor, projected = fresh.predictor, fresh.projected
        for there, label in in_columns(said, state.frame.device):
            predictor, projected = self.loop.extend(predictor, projected, label, there)
        return replace(state, predictor=predictor, projected=projected)

    def frames(self, state: GreedyState) -> Tensor:
        """(B,) int64: frames searched so far."""
        return state.frame


def _tokens(found: Emissions, before: Tensor) -> list[list[Token]]:
    """What was put out, with its frames counted from the start of the streams, `before` (B,) this chunk."""
    start = found.position + before[:, None]
    end = start + (1 if found.consumed is None else found.consumed.clamp(min=1))
    where = found.emits.flatten().nonzero()[:, 0]
    columns = [found.label, start, end, found.log_prob]
    columns += [] if found.log_confidence is None else [found.log_confidence]
    tokens = map(Token, *(x.flatten()[where].tolist() for x in columns))
    return [list(islice(tokens, count)) for count in found.emits.sum(dim=1).tolist()]
