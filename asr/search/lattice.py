"""Lattice search by k2, an optional backend behind the interface of every other search.

A stream's frames are kept until it ends (or is settled), and then decoded whole: a live stream gets its words
at its end, and memory grows with its length. The words are those of the most probable *path* of the lattice,
where asr.search.beam adds up the paths of equal labels. A transducer says at most one label per frame. No
scorer takes part. A segment begins with an empty history, whatever was said before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.errors import ConfigError
from asr.lengths import padding_mask
from asr.predictors.stateless import StatelessPredictor
from asr.search.hypothesis import Hypothesis, SearchOutput, Settled, Token
from asr.search.k2_lattices import (
    Path,
    Pruning,
    best_paths,
    ctc_lattice,
    library,
    sampled_paths,
    transducer_lattice,
)
from asr.transducer import Transducer

PATHS_PER_HYPOTHESIS = 8
"""Paths that are drawn for each hypothesis of an n-best list: many of them say the same."""


@dataclass(frozen=True)
class LatticeState:
    """What streams have heard since they were last decided."""

    encoded: Tensor
    """(B, T, E) frames."""
    lengths: Tensor
    """(B,) int64"""
    frame: Tensor
    """(B,) int64 encoder frames searched so far, those included."""


class LatticeSearch:
    """k2's search of a stateless transducer or of a CTC head; see asr.search.hypothesis.Search."""

    def __init__(self, model: Transducer, ctc: bool, beam: int = 4, margin: float = 10.0) -> None:
        """`beam`: histories kept per frame (a transducer's); `margin`: how far below the best, in nats.

        Raises ConfigError if k2 is not installed, or for a network that it has no search for.
        """
        assert beam >= 1
        if not ctc:
            _check_transducer(model)
        library()
        self.model, self.ctc, self.pruning = model, ctc, Pruning(beam, margin)

    def initial_state(self, batch: int, device: torch.device | None = None) -> LatticeState:
        """State of `batch` streams that have heard nothing."""
        none = torch.zeros(batch, dtype=torch.int64, device=device)
        return LatticeState(torch.zeros(batch, 0, self.model.encoder.output_dim, device=device), none, none)

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: LatticeState) -> SearchOutput:
        """Keep the next encoder frames (B, T', E) of every stream; nothing is decided yet."""
        batch = len(lengths)
        total = state.lengths + lengths
        frames = encoded.new_zeros(batch, int(total.max()) if batch else 0, encoded.shape[2])
        for b, (kept, new) in enumerate(zip(state.lengths.tolist(), lengths.tolist(), strict=True)):
            frames[b, :kept] = state.encoded[b, :kept]
            frames[b, kept : kept + new] = encoded[b, :new]
        return SearchOutput(
            [[] for _ in range(batch)], LatticeState(frames, total, state.frame + lengths), [0] * batch
        )

    def flush(self, state: LatticeState) -> list[list[Token]]:
        """The labels of each stream's best path, if it ends here."""
        return [rows[0].tokens for rows in self._decoded(state, 1)]

    def n_best(self, state: LatticeState) -> list[list[Hypothesis]]:
        """For each stream up to `beam` hypotheses, best first, of the best path and of paths that are drawn.

        A hypothesis has the log-probability of its best path among them.
        """
        return self._decoded(state, self.pruning.beam)

    def pending(self, state: LatticeState) -> list[list[Token]]:
        """Nothing is thought before the end."""
        return [[] for _ in state.lengths]

    def settle(self, state: LatticeState) -> Settled:
        """Decode what was heard; the streams go on without a history."""
        return Settled(self.flush(state), self.restart(state, ()))

    def restart(self, state: LatticeState, said: Sequence[Sequence[int]]) -> LatticeState:
        """What was heard is forgotten, the frames are counted on. k2's search begins without a history."""
        nothing = self.initial_state(len(state.frame), state.frame.device)
        return LatticeState(nothing.encoded, nothing.lengths, state.frame)

    def frames(self, state: LatticeState) -> Tensor:
        """(B,) int64: frames heard so far."""
        return state.frame

    @torch.inference_mode()
    def _decoded(self, state: LatticeState, count: int) -> list[list[Hypothesis]]:
        found = [[Hypothesis([], 0.0, 0.0)] for _ in state.lengths]
        # k2 wants the longest first, and frames in each.
        order = state.lengths.argsort(descending=True, stable=True)
        order = order[state.lengths[order] > 0]
        if len(order) == 0:
            return found
        lengths = state.lengths[order]
        encoded = state.encoded[order, : int(lengths.max())]
        encoded = encoded.masked_fill(~padding_mask(lengths, encoded.shape[1])[:, :, None], 0.0)
        lattice = (ctc_lattice if self.ctc else transducer_lattice)(
            self.model, encoded, lengths, self.pruning
        )
        best = best_paths(lattice, len(order))
        drawn = sampled_paths(lattice, count * PATHS_PER_HYPOTHESIS) if count > 1 else [[] for _ in best]
        begin = (state.frame - state.lengths).tolist()
        for b, path, others in zip(order.tolist(), best, drawn, strict=True):
            if path is not None:
                found[b] = _distinct([path, *others], begin[b])[:count]
        return found


def _check_transducer(model: Transducer) -> None:
    kind = model.config.predictor.kind if model.config.predictor is not None else "none"
    if not isinstance(model.predictor, StatelessPredictor):
        raise ConfigError(
            "search.method=lattice: k2 knows the last few labels of a hypothesis only, expected a stateless "
            f"predictor, found {kind}; use search.method=beam"
        )
    topology = model.config.loss.transducer.topology.name
    if topology not in ("rnnt", "monotonic"):
        raise ConfigError(
            "search.method=lattice: in k2 every symbol of a transducer takes one frame, expected topology "
            f"rnnt or monotonic, found {topology}; use search.method=beam"
        )


def _distinct(paths: Sequence[Path], begin: int) -> list[Hypothesis]:
    """Best first; of paths that say the same the best one."""
    found: dict[tuple[int, ...], Hypothesis] = {}
    for path in sorted(paths, key=lambda each: -sum(each.log_probs)):
        said = tuple(label for label in path.emitted if label > 0)
        if said not in found:
            found[said] = Hypothesis(_tokens(path, begin), sum(path.log_probs), 0.0)
    return list(found.values())


def _tokens(path: Path, begin: int) -> list[Token]:
    """A token lasts as long as its label is held, and has the log-probability of its most certain frame."""
    found, frames = list[Token](), zip(path.symbols, path.emitted, path.log_probs, strict=True)
    held = False
    for frame, (symbol, emitted, log_prob) in enumerate(frames, begin):
        if emitted > 0:
            found.append(Token(emitted, frame, frame + 1, log_prob))
        elif symbol > 0 and held:
            last = found[-1]
            found[-1] = last._replace(end_frame=frame + 1, log_prob=max(last.log_prob, log_prob))
        held = symbol > 0
    return found
