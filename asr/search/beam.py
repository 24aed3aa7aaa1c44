"""Beam search with a transducer: time-synchronous, batched over streams and hypotheses, for every topology.

On every frame the K hypotheses of a stream are extended in rounds: whoever consumes the frame (blank) waits
for the next one; the best extensions by a label that does not are the hypotheses of the next round, until
none of them can come among the K best that wait, or the bound on labels per frame is reached (Graves 2012,
section 2.5; time-synchronous decoding in Saon et al. 2020). Hypotheses of equal labels are one: their
probabilities are added. With `max_symbols` 1 it is the search with at most one label per frame.

A hypothesis is ranked by log p(labels | audio) plus what the scorers (asr.search.fusion) add. Within a frame
rows live in an arena and are pointed to; they are gathered once, when the frame is over (asr.search.arena).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr import state as states
from asr.lms.base import Scorer
from asr.search.arena import HASH_BASE, NOTHING, Active, Arena, Rows, Waiting, best
from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.search.fusion import Fusion, first_of, renewed, repeated
from asr.search.history import EVERY, Histories, Tails, capacity, pack, unpack
from asr.search.hypothesis import Hypothesis, SearchOutput, Settled, Token, in_columns
from asr.search.moves import Moves, MoveTable
from asr.transducer import Transducer


@dataclass(frozen=True)
class Beam:
    """Hypotheses of B streams, K each; those with a log-probability of minus infinity are not there."""

    log_prob: Tensor
    """(B, K) float32: log p(labels, alignments so far | audio)."""
    fused: Tensor
    """(B, K) float32: what the scorers added."""
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


class BeamSearch:
    """Time-synchronous beam search; see asr.search.hypothesis.Search."""

    def __init__(
        self,
        model: Transducer,
        beam: int = 4,
        max_symbols: int = 8,
        margin: float = 10.0,
        scorer: Scorer | None = None,
        confidence: ConfidenceConfig = PLAIN,
    ) -> None:
        """`margin`: hypotheses this far (nats) below the best of their stream are given up.

        `confidence`: what the tokens' is.
        """
        assert model.has_transducer
        assert beam >= 1
        assert max_symbols >= 1
        self.model, self.beam, self.max_symbols, self.margin = model, beam, max_symbols, margin
        self.scorer = scorer if scorer is not None else Fusion(model.vocab_size)
        self.moves = MoveTable(model.topology, model.vocab_size, confidence)
        self._capacity = capacity(max_symbols)

    @torch.inference_mode()
    def initial_state(self, batch: int, device: torch.device | None = None, scorer: Any = None) -> BeamState:
        """State of `batch` streams that have heard nothing: one empty hypothesis each.

        `scorer`: the scorers' state of every stream, (B, ...), where streams differ in it.
        """
        model, width = self.model, self.beam
        n = batch * width
        blanks = torch.full((n, 1), model.blank, dtype=torch.int64, device=device)
        y, predictor = model.predictor(blanks, model.predictor.initial_state(n, device))
        scorer = self.scorer.initial_state(n, device) if scorer is None else repeated(scorer, width)
        zeros = torch.zeros(batch, width, dtype=torch.int64, device=device)
        rows = Rows(
            predictor,
            model.joiner.predictor(y[:, 0]),
            scorer,
            self.scorer.score(scorer),
            zeros.flatten(),
        )
        log_prob = torch.full((batch, width), NOTHING, device=device)
        log_prob[:, 0] = 0
        tails = pack([[[]] * width for _ in range(batch)], self._capacity, device)
        beam = Beam(log_prob, torch.zeros_like(log_prob), zeros, zeros)
        return BeamState(beam, states.unflatten(rows, batch, self.beam), tails, zeros[:, 0].clone())

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: BeamState) -> SearchOutput:
        """Search the next encoder frames (B, T', E) of every stream."""
        batch, device = encoded.shape[0], encoded.device
        projected = self.model.joiner.encoder(encoded)
        beam, rows, frame = state.beam, states.flatten(state.rows), state.frame
        tokens: list[list[Token]] = [[] for _ in range(batch)]
        truncated = torch.zeros(batch, dtype=torch.int64, device=device)
        histories = Histories(unpack(state.tails))
        nodes = histories.roots(batch, self.beam, device)
        begin, ends = state.frame.tolist(), lengths.tolist()
        for t in range(max(ends, default=0)):
            present = t < lengths
            beam, rows, nodes, stopped = self._frame(
                projected[:, t], present, frame, beam, rows, nodes, histories
            )
            truncated += stopped
            frame = frame + present
            force = [t < end and (first + t + 1) % EVERY == 0 for first, end in zip(begin, ends, strict=True)]
            if any(force):
                beam, nodes = self._share(beam, nodes, histories, force, tokens)
        beam, nodes = self._share(beam, nodes, histories, [False] * batch, tokens)
        tails = pack(histories.tails, self._capacity, device)
        new = BeamState(beam, states.unflatten(rows, batch, self.beam), tails, frame)
        return SearchOutput(tokens, new, truncated.tolist())

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
        best = state.beam.total.argmax(dim=1).tolist()
        return [row[k] for row, k in zip(unpack(state.tails), best, strict=True)]

    @torch.inference_mode()
    def settle(self, state: BeamState) -> Settled:
        """The best hypothesis of each stream, if it ends here, is left alone, and its tokens are final."""
        batch, width = state.beam.log_prob.shape
        end = self.scorer.end(states.flatten(state.rows).scorer).view(batch, width)
        best = (state.beam.total + end).argmax(dim=1)
        tokens = [row[k] for row, k in zip(unpack(state.tails), best.tolist(), strict=True)]
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
        rows = states.flatten(fresh.rows)
        for column in in_columns(said, state.frame.device):
            there, label = (x.repeat_interleave(self.beam) for x in column)
            rows = states.where(there, self._say(rows, label), rows)
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

    def _frame(
        self,
        frame: Tensor,
        present: Tensor,
        number: Tensor,
        beam: Beam,
        rows: Rows,
        nodes: Tensor,
        histories: Histories,
    ) -> tuple[Beam, Rows, Tensor, Tensor]:
        """The beam after a frame (B, J), which only the streams `present` have; and who was stopped (B,)."""
        arena = Arena(rows, nodes)
        pointers = torch.arange(nodes.numel(), device=nodes.device).view_as(nodes)
        searching = present[:, None] & (beam.skip == 0)
        waiting = Waiting(
            beam.log_prob.masked_fill(searching, NOTHING),
            beam.fused,
            rows.hash.view_as(nodes),
            torch.where(present[:, None], (beam.skip - 1).clamp(min=0), beam.skip),
            beam.held,
            pointers,
            torch.zeros_like(searching),
        )
        log_prob = beam.log_prob.masked_fill(~searching, NOTHING)
        active = Active(log_prob, beam.fused, beam.held, rows, pointers, nodes)
        for said in range(self.max_symbols + 1):
            logits = self.model.joiner.combine(frame[:, None], active.rows.projected.view(*nodes.shape, -1))
            moves = self.moves(logits, active.held)
            last = said == self.max_symbols
            others = [self._quiet(active, moves, stopped=last)]
            if moves.taking.shape[-1]:
                others.append(self._take(active, moves, number, arena, histories))
            waiting = best([waiting, *others], self.beam, self.margin)
            if last or not self.moves.stays:
                break
            stay = self._stay(active, moves, waiting, number, arena, histories)
            if stay is None:
                break
            active = stay
        rows, nodes = arena.gather(waiting.pointers)
        stopped = (waiting.stopped[:, 0] & present).to(torch.int64)
        return Beam(waiting.log_prob, waiting.fused, waiting.skip, waiting.held), rows, nodes, stopped

    def _quiet(self, active: Active, moves: Moves, stopped: bool) -> Waiting:
        """Who consumes the frame without a label."""
        frames = self.moves.quiet_frames.to(active.held.device)
        log_prob = (active.log_prob[..., None] + moves.quiet).flatten(1)
        batch, width, ways = moves.quiet.shape

        def each(x: Tensor) -> Tensor:
            return x[..., None].expand(batch, width, ways).flatten(1)

        held = torch.zeros(batch, width, ways, dtype=torch.int64, device=frames.device)
        if self.model.topology.repeats:
            held[..., -1] = active.held
        return Waiting(
            log_prob,
            each(active.fused),
            each(active.rows.hash.view_as(active.held)),
            (frames - 1).expand(batch, width, ways).flatten(1),
            held.flatten(1),
            each(active.pointers),
            each(moves.wants & stopped),
        )

    def _take(
        self, active: Active, moves: Moves, number: Tensor, arena: Arena, histories: Histories
    ) -> Waiting:
        """Who consumes the frame with a label: the K best."""
        _, _, vocab, ways = moves.taking.shape
        added = active.rows.next.view(*active.held.shape, vocab)
        gain = (active.fused[..., None] + added)[..., None]
        log_prob = active.log_prob[..., None, None] + moves.taking
        total, best = (log_prob + gain).flatten(1).topk(self.beam, dim=1)
        source, label, way = best // (vocab * ways), best // ways % vocab, best % ways
        frames = self.moves.taking_frames.to(best.device)[way]
        # A label that a scorer forbids has a probability all the same.
        chosen = log_prob.flatten(1).gather(1, best).masked_fill(total == NOTHING, NOTHING)
        extended = self._extend(active, moves, source, label, chosen, number, frames, arena, histories)
        held = label if self.model.topology.repeats else torch.zeros_like(label)
        never = torch.zeros_like(label, dtype=torch.bool)
        hashes = extended.rows.hash.view_as(label)
        return Waiting(chosen, extended.fused, hashes, frames - 1, held, extended.pointers, never)

    def _stay(
        self,
        active: Active,
        moves: Moves,
        waiting: Waiting,
        number: Tensor,
        arena: Arena,
        histories: Histories,
    ) -> Active | None:
        """The K best that stay on the frame with a label; None if none of them can come among the best."""
        assert moves.staying is not None
        vocab = moves.staying.shape[-1]
        log_prob = (active.log_prob[..., None] + moves.staying).flatten(1)
        gain = (active.fused[..., None] + active.rows.next.view(*active.held.shape, vocab)).flatten(1)
        total, best = (log_prob + gain).topk(self.beam, dim=1)
        # It still has to pay for a blank: what is no better now than the last that waits will not be.
        least = torch.maximum(waiting.total[:, -1:], waiting.total[:, :1] - self.margin)
        chosen = log_prob.gather(1, best).masked_fill(total <= least, NOTHING)
        if not bool((chosen > NOTHING).any()):
            return None
        source, label = best // vocab, best % vocab
        frames = torch.zeros_like(label)
        return self._extend(active, moves, source, label, chosen, number, frames, arena, histories)

    def _extend(
        self,
        active: Active,
        moves: Moves,
        source: Tensor,
        label: Tensor,
        log_prob: Tensor,
        number: Tensor,
        frames: Tensor,
        arena: Arena,
        histories: Histories,
    ) -> Active:
        """Hypotheses `source` (B, K) of those active, each with one more label (B, K)."""
        # Places that nobody fills get some label: blank is none.
        label = label.clamp(min=1)
        added = active.rows.next.view(*source.shape, -1).flatten(1)
        vocab = added.shape[1] // source.shape[1]
        fused = active.fused.gather(1, source) + added.gather(1, source * vocab + label)
        fused = fused.masked_fill(log_prob == NOTHING, 0)
        spoken = moves.symbols.flatten(1).gather(1, source * vocab + label)
        sure = moves.confidences.flatten(1).gather(1, source * vocab + label)
        parents = active.nodes.gather(1, source)
        first = number[:, None].expand_as(label)
        nodes = histories.extend(parents, label, first, first + frames.clamp(min=1), spoken, sure)
        offsets = self.beam * torch.arange(len(source), device=source.device)[:, None]
        rows = self._say(states.select(active.rows, (offsets + source).flatten()), label.flatten())
        pointers = arena.add(rows, nodes)
        return Active(log_prob, fused, torch.zeros_like(label), rows, pointers, nodes)

    def _say(self, rows: Rows, label: Tensor) -> Rows:
        """The rows after a label (N,)."""
        y, predictor = self.model.predictor(label[:, None], rows.predictor)
        scorer = self.scorer.advance(rows.scorer, label)
        projected = self.model.joiner.predictor(y[:, 0])
        return Rows(predictor, projected, scorer, self.scorer.score(scorer), rows.hash * HASH_BASE + label)

    def _share(
        self,
        beam: Beam,
        nodes: Tensor,
        histories: Histories,
        force: Sequence[bool],
        tokens: list[list[Token]],
    ) -> tuple[Beam, Tensor]:
        """Give out what hypotheses share, onto `tokens`; the beam of those that may go on, their nodes."""
        histories.follow(nodes, beam.log_prob > NOTHING)
        shared = histories.share(beam.total, force)
        for given, new in zip(tokens, shared.tokens, strict=True):
            given += new
        beam = replace(beam, log_prob=beam.log_prob.masked_fill(~shared.alive, NOTHING))
        return beam, histories.roots(nodes.shape[0], self.beam, nodes.device)


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
