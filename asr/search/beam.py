"""Beam search with a transducer, batched over streams and hypotheses, for every topology.

Hypotheses of equal labels are one: their probabilities are added. A hypothesis is ranked by
log p(labels | audio) plus what the scorers (asr.search.fusion) add. The order in which it goes through frames
and labels is a strategy (asr.search.strategies); with `max_symbols` 1 the time-synchronous one is the search
with at most one label per frame.

What one stream decides is plain Python (asr.search.frontier). Every stream goes at its own pace, and asks
about its hypotheses; one step answers all streams: it makes the rows of texts that are new (asr.search.arena)
and asks the joiner what each hypothesis may do on its frame (asr.search.moves).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr import state as states
from asr.errors import StreamingError
from asr.lms.base import Scorer
from asr.search.arena import NOTHING, Arena, Heard, Rows, Text, integers
from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.search.frontier import Frontier, Partial
from asr.search.fusion import Fusion, first_of, renewed, repeated
from asr.search.history import Tails, capacity, pack, unpack, unpack_some
from asr.search.hypothesis import Hypothesis, SearchOutput, Settled, Token, in_columns
from asr.search.internal_lm import without_internal
from asr.search.moves import Moves, MoveTable
from asr.search.row_maker import RowMaker
from asr.search.strategies import Limits, Steps, alignment_synchronous, time_synchronous
from asr.transducer import Transducer

WINDOW = 4
"""Frames that a text hears at once: on CPU about the fastest for letters, alone and in batches of 16."""


@dataclass(frozen=True)
class Beam:
    """Hypotheses of B streams, K each; those with a log-probability of minus infinity are not there."""

    log_prob: Tensor
    """(B, K) float64: log p(labels, alignments so far | audio)."""
    fused: Tensor
    """(B, K) float64: what the scorers added."""
    skip: Tensor
    """(B, K) int64 frames still consumed by the last symbol."""
    held: Tensor
    """(B, K) int64 label that may be held on (CTC topology), else blank."""

    @property
    def total(self) -> Tensor:
        """(B, K) what hypotheses are ranked by."""
        return self.log_prob + self.fused


@dataclass(frozen=True)
class BeamState:
    """What a stream remembers between chunks; every tensor is batch-first, (B, K, ...)."""

    beam: Beam
    rows: Rows
    tails: Tails
    frame: Tensor
    """(B,) int64 encoder frames searched so far."""


class _Walk(NamedTuple):
    """A stream that is searched."""

    frontier: Frontier
    steps: Steps
    begin: int
    """Where its frames begin among those of all streams."""
    end: int
    """How many they are."""

    def asks(self, window: int) -> Iterable[_Asked]:
        """Which texts have to hear what: those that have not heard their frame, or soon will not have."""
        spans: dict[tuple[int, int], tuple[Text, int, int]] = {}
        for each in self.frontier.active:
            key, at = (id(each.text), each.held), each.at
            _, first, last = spans.get(key, (None, at, at))
            spans[key] = each.text, min(first, at), max(last, at)
        for (_, held), (text, first, last) in spans.items():
            heard = text.heard.get(held)
            if heard is None or first < heard.first or heard.until < min(last + 2, self.end):
                until = min(max(last + 2, first + window), self.end)
                yield _Asked(text, held, self.begin, first, until)


class _Asked(NamedTuple):
    """A text that has to hear frames."""

    text: Text
    held: int
    begin: int
    """Where the frames of its stream begin among those of all."""
    first: int
    until: int


Synchronous = Literal["time", "alignment"]
WHOLE_ONLY = (
    "search.synchronous=alignment: expected whole recordings, found a stream; use search.synchronous=time"
)


class BeamSearch:
    """Beam search; see asr.search.hypothesis.Search, and asr.search.strategies for `synchronous`.

    By length of alignments recordings are searched whole: further frames raise StreamingError.
    """

    def __init__(
        self,
        model: Transducer,
        beam: int = 4,
        max_symbols: int = 8,
        margin: float = 10.0,
        scorer: Scorer | None = None,
        confidence: ConfidenceConfig = PLAIN,
        synchronous: Synchronous = "time",
        window: int = WINDOW,
    ) -> None:
        """`margin`: hypotheses this far (nats) below the best of their stream are given up.

        `confidence`: what the tokens' is. `window`: frames that a text hears at once; without an influence on
        what is found.
        """
        assert model.has_transducer
        assert beam >= 1
        assert max_symbols >= 1
        self.model, self.beam, self.max_symbols, self.margin = model, beam, max_symbols, margin
        self.scorer: Scorer = Fusion(model.vocab_size) if scorer is None else scorer
        self._internal_weight = 0.0
        if isinstance(self.scorer, Fusion):
            self.scorer, self._internal_weight = without_internal(self.scorer, model)
        self.synchronous, self.window = synchronous, window
        self.moves = MoveTable(model.topology, model.vocab_size, beam, confidence)
        self._limits = Limits(beam, margin, max_symbols, self.moves.quiet_frames, model.topology.repeats)
        self._capacity = capacity(max_symbols)

    @torch.inference_mode()
    def initial_state(self, batch: int, device: torch.device | None = None, scorer: Any = None) -> BeamState:
        """State of `batch` streams that have heard nothing: one empty hypothesis each.

        `scorer`: the scorers' state of every stream, (B, ...), where streams differ in it.
        """
        width, n = self.beam, batch * self.beam
        scorer = self.scorer.initial_state(n, device) if scorer is None else repeated(scorer, width)
        zeros = torch.zeros(batch, width, dtype=torch.int64, device=device)
        rows = self._row_maker().begin(scorer, n, device)
        log_prob = torch.full((batch, width), NOTHING, dtype=torch.float64, device=device)
        log_prob[:, 0] = 0
        tails = pack([[[]] * width for _ in range(batch)], self._capacity, device)
        beam = Beam(log_prob, torch.zeros_like(log_prob), zeros, zeros)
        return BeamState(beam, states.unflatten(rows, batch, self.beam), tails, zeros[:, 0].clone())

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: BeamState) -> SearchOutput:
        """Search the next encoder frames (B, T', E) of every stream."""
        frames = encoded.shape[1]
        if self.synchronous == "alignment" and bool((lengths > 0).logical_and(state.frame > 0).any()):
            raise StreamingError(WHOLE_ONLY)
        projected = self.model.joiner.encoder(encoded).flatten(0, 1)
        arena = Arena(states.flatten(state.rows), self._row_maker().extend)
        frontiers, ends = self._frontiers(state), lengths.tolist()
        strategy = alignment_synchronous if self.synchronous == "alignment" else time_synchronous
        walks = [
            _Walk(frontier, strategy(frontier, end, self._limits), b * frames, end)
            for b, (frontier, end) in enumerate(zip(frontiers, ends, strict=True))
        ]
        self._search(walks, projected, arena)
        for frontier in frontiers:
            frontier.share(force=False)
        new = self._state(frontiers, ends, arena, state.frame + lengths)
        return SearchOutput([each.tokens for each in frontiers], new, [each.truncated for each in frontiers])

    def flush(self, state: BeamState) -> list[list[Token]]:
        """What the best hypothesis has said beyond what was given out, if the stream ends here."""
        return [hypotheses[0].tokens for hypotheses in self.n_best(state)]

    @torch.inference_mode()
    def n_best(self, state: BeamState) -> list[list[Hypothesis]]:
        """For each stream its hypotheses if it ends here, best first, behind what was given out."""
        batch, width = state.beam.log_prob.shape
        end = self.scorer.end(states.flatten(state.rows).scorer).view(batch, width)
        fused = state.beam.fused + end
        columns = zip(unpack(state.tails), state.beam.log_prob.tolist(), fused.tolist(), strict=True)
        return [_merged(Hypothesis(*row) for row in zip(*each, strict=True)) for each in columns]

    def pending(self, state: BeamState) -> list[list[Token]]:
        """What the best hypothesis has said beyond what was given out, so far."""
        best = state.beam.total.argmax(dim=1, keepdim=True)
        return [tail for (tail,) in unpack_some(state.tails, best)]

    @torch.inference_mode()
    def settle(self, state: BeamState) -> Settled:
        """The best hypothesis of each stream, if it ends here, is left alone, and its tokens are final."""
        batch, width = state.beam.log_prob.shape
        end = self.scorer.end(states.flatten(state.rows).scorer).view(batch, width)
        best = (state.beam.total + end).argmax(dim=1)
        tokens = [tail for (tail,) in unpack_some(state.tails, best[:, None])]
        chosen = (torch.arange(batch, device=best.device) * width + best).repeat_interleave(width)

        def best_of(x: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, chosen).view(batch, width, *x.shape[2:])

        beam, rows = states.map_tensors(best_of, state.beam), states.map_tensors(best_of, state.rows)
        log_prob = beam.log_prob.clone()
        log_prob[:, 1:] = NOTHING
        tails = replace(state.tails, lengths=torch.zeros_like(state.tails.lengths))
        return Settled(tokens, BeamState(replace(beam, log_prob=log_prob), rows, tails, state.frame))

    @torch.inference_mode()
    def restart(self, state: BeamState, said: Sequence[Sequence[int]]) -> BeamState:
        """One hypothesis per stream that has said `said`; what its last symbol still consumes stays."""
        scorer = renewed(self.scorer, first_of(state.rows.scorer))
        fresh = self.initial_state(len(state.frame), state.frame.device, scorer)
        rows, maker = states.flatten(fresh.rows), self._row_maker()
        for column in in_columns(said, state.frame.device):
            there, label = (x.repeat_interleave(self.beam) for x in column)
            rows = states.where(there, maker.extend(rows, label), rows)
        best = state.beam.total.argmax(dim=1, keepdim=True)
        skip, held = (x.gather(1, best).expand_as(x).clone() for x in (state.beam.skip, state.beam.held))
        return replace(
            fresh,
            beam=replace(fresh.beam, skip=skip, held=held),
            rows=states.unflatten(rows, len(state.frame), self.beam),
            frame=state.frame,
        )

    def frames(self, state: BeamState) -> Tensor:
        """(B,) int64: frames searched so far."""
        return state.frame

    def _frontiers(self, state: BeamState) -> list[Frontier]:
        """The hypotheses of every stream, their rows one after the other."""
        beam, width = state.beam, self.beam
        columns = (state.frame, beam.log_prob, beam.fused, beam.skip, beam.held, state.rows.hash)
        streams = zip(unpack(state.tails), *(column.tolist() for column in columns), strict=True)
        found = []
        for b, (tails, first, *row) in enumerate(streams):
            texts: dict[int, Text] = {}
            partials = []
            for k, (log_prob, fused, skip, held, hash) in enumerate(zip(*row, strict=True)):
                if log_prob > NOTHING:
                    text = texts.setdefault(hash, Text(hash, fused, b * width + k))
                    partials.append(Partial(text, log_prob, skip, held, k, log_prob + fused))
            found.append(Frontier(partials, texts, tails, first))
        return found

    def _search(self, walks: Sequence[_Walk], projected: Tensor, arena: Arena) -> None:
        """Take all streams to the end, with frames (B*T', J)."""
        done, going_on = object(), walks
        while going_on := [walk for walk in going_on if next(walk.steps, done) is not done]:
            self._listen(going_on, projected, arena)
            if arena.full:
                arena.keep([text for walk in walks for text in walk.frontier.living()])
                for walk in walks:
                    walk.frontier.forget()

    def _listen(self, walks: Sequence[_Walk], projected: Tensor, arena: Arena) -> None:
        """Let the active hypotheses of all streams hear the frames that they are on, and some more."""
        asked = [each for walk in walks for each in walk.asks(self.window)]
        arena.make(each.text for each in asked)
        row, frame, held = list[int](), list[int](), list[int]()
        for text, label, begin, first, until in asked:
            count = until - first
            row += [text.row] * count
            frame += range(begin + first, begin + until)
            held += [label] * count
        moves, base = self._moves(row, frame, held, projected, arena.rows), 0
        for text, label, _, first, until in asked:
            text.heard[label] = Heard(moves, first, until, base - first)
            base += until - first

    def _moves(
        self, row: list[int], frame: list[int], held: list[int], projected: Tensor, rows: Rows
    ) -> Moves:
        """What the texts of rows may do on frames, holding labels."""
        row_, frame_, held_ = integers([row, frame, held], projected.device)
        heard, said = projected.index_select(0, frame_), rows.projected.index_select(0, row_)
        logits = self.model.joiner.combine(heard, said)
        added = rows.next.index_select(0, row_)
        return self.moves(logits, added, held_ if self._limits.holds else None)

    def _state(
        self, frontiers: Sequence[Frontier], ends: Sequence[int], arena: Arena, frame: Tensor
    ) -> BeamState:
        """What streams remember behind frames `ends` of the chunk."""
        width, device = self.beam, frame.device
        arena.make(text for frontier in frontiers for text in frontier.living())
        numbers, places, pointers, tails = [], [], [], []
        for frontier, end in zip(frontiers, ends, strict=True):
            beam = frontier.beam
            # Places that nobody has get some row.
            missing = width - len(beam)
            numbers.append([(each.log_prob, each.text.fused) for each in beam] + [(NOTHING, 0.0)] * missing)
            places.append([(max(each.at - end, 0), each.held) for each in beam] + [(0, 0)] * missing)
            pointers += [each.text.row for each in beam] + [beam[0].text.row] * missing
            tails.append(frontier.said() + [[]] * missing)
        shape = len(frontiers), width, 2
        log_prob, fused = torch.tensor(numbers, dtype=torch.float64, device=device).view(shape).unbind(2)
        skip, held = torch.tensor(places, dtype=torch.int64, device=device).view(shape).unbind(2)
        rows = states.unflatten(arena.select(pointers), len(frontiers), width)
        packed = pack(tails, self._capacity, device)
        return BeamState(Beam(log_prob, fused, skip, held), rows, packed, frame)

    def _row_maker(self) -> RowMaker:
        return RowMaker(self.model, self.scorer, self._internal_weight)


def _merged(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """Those that are there, best first; what is left to consume no longer tells equal labels apart."""
    found: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in sorted(hypotheses, key=lambda each: -each.score):
        labels = tuple(token.id for token in hypothesis.tokens)
        if hypothesis.log_prob > NOTHING:
            best = found.setdefault(labels, hypothesis)
            if best is not hypothesis:
                found[labels] = best._replace(
                    log_prob=float(np.logaddexp(best.log_prob, hypothesis.log_prob))
                )
    return sorted(found.values(), key=lambda each: -each.score)
