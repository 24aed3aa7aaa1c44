"""CTC prefix beam search, batched over streams and hypotheses, with any scorers.

A hypothesis is a string of labels, a prefix; its probability is the sum over the paths that collapse to it,
kept apart by whether they end in blank or in the last label (Graves et al. 2006; Hannun et al. 2014)::

    b(t, y)      = (b(t-1, y) + l(t-1, y)) p(blank)
    l(t, y)      = l(t-1, y) p(y's last) + extend(t, y without its last, y's last)
    extend(y, c) = (b(t-1, y) if c is y's last label, else b(t-1, y) + l(t-1, y)) p(c)

A prefix is ranked by log(b + l) plus what the scorers (asr.search.fusion) add. Sums are exact but for
prefixes that leave the beam, labels that are not among the `candidates` of a frame, and halves that are
nothing beside their prefix (asr.search.prefixes).

Beside the sums runs the most probable path of each half (Viterbi), which has the times: a token begins with
the first frame of its run, lasts as long as it, and has the log-probability of the run's most certain frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asr import state as states
from asr.lms.base import Scorer
from asr.search.arena import NOTHING
from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.search.fusion import Fusion, first_of, renewed, repeated
from asr.search.history import EVERY, Histories, Tails, capacity, pack, unpack
from asr.search.hypothesis import Hypothesis, SearchOutput, Settled, Token, in_columns
from asr.search.prefixes import Frame, Prefixes, Step, best_of, equal_parents, extend, joined, merge, stay
from asr.transducer import Transducer

NEVER = -1
"""The hash of no prefix."""


@dataclass(frozen=True)
class ScorerRows:
    """What scorers remember: one row per hypothesis."""

    scorer: Any
    next: Tensor
    """(N, V) what they add to each label if it comes next."""


@dataclass(frozen=True)
class CtcBeamState:
    """What a stream remembers between chunks; every tensor is batch-first."""

    prefixes: Prefixes
    rows: ScorerRows
    """(B, K, ...)"""
    tails: Tails
    """(B, 2 K, ...): of the best paths that end in blank, then of those that end in the label, whose open run
    is not in it."""
    frame: Tensor
    """(B,) int64 encoder frames searched so far."""


class CtcBeamSearch:
    """Prefix beam search of the CTC head; see asr.search.hypothesis.Search."""

    def __init__(
        self,
        model: Transducer,
        beam: int = 4,
        candidates: int = 32,
        margin: float = 10.0,
        scorer: Scorer | None = None,
        confidence: ConfidenceConfig = PLAIN,
    ) -> None:
        """`candidates`: the most probable labels of a frame, which may extend a prefix by one.

        `margin`: prefixes this far (nats) below the best of their stream are given up. `confidence`: what
        the tokens' is.
        """
        assert model.ctc is not None
        assert beam >= 1
        assert candidates >= 1
        self.model, self.beam, self.margin, self.confidence = model, beam, margin, confidence
        self.candidates = min(candidates, model.vocab_size - 1)
        self.scorer = scorer if scorer is not None else Fusion(model.vocab_size)
        self._capacity = capacity(1)

    @torch.inference_mode()
    def initial_state(
        self, batch: int, device: torch.device | None = None, scorer: Any = None
    ) -> CtcBeamState:
        """State of `batch` streams that have heard nothing: one empty prefix each.

        `scorer`: the scorers' state of every stream, (B, ...), where streams differ in it.
        """
        width = self.beam
        alike = scorer is None
        scorer = self.scorer.initial_state(batch * width, device) if alike else repeated(scorer, width)
        rows = ScorerRows(scorer, self.scorer.score(scorer))
        zeros = torch.zeros(batch, width, dtype=torch.int64, device=device)
        nothing = torch.full((batch, width), NOTHING, dtype=torch.float64, device=device)
        blank = nothing.clone()
        blank[:, 0] = 0
        prefixes = Prefixes(
            blank,
            nothing,
            blank,
            nothing,
            torch.zeros_like(blank),
            zeros,
            zeros,
            torch.full_like(zeros, NEVER),
            zeros,
            torch.zeros_like(blank, dtype=torch.float32),
            torch.zeros_like(blank, dtype=torch.float32),
        )
        tails = pack([[[]] * (2 * width) for _ in range(batch)], self._capacity, device)
        return CtcBeamState(prefixes, states.unflatten(rows, batch, self.beam), tails, zeros[:, 0].clone())

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, lengths: Tensor, state: CtcBeamState) -> SearchOutput:
        """Search the next encoder frames (B, T', E) of every stream."""
        assert self.model.ctc is not None
        batch, device = encoded.shape[0], encoded.device
        log_probs = self.model.ctc(encoded).float().log_softmax(dim=-1).double()
        confidences = self.confidence.log_confidences(log_probs)
        labels = log_probs.index_fill(-1, torch.tensor([self.model.blank], device=device), NOTHING)
        candidates = labels.topk(self.candidates, dim=-1).indices
        prefixes, rows, number = state.prefixes, states.flatten(state.rows), state.frame
        tokens: list[list[Token]] = [[] for _ in range(batch)]
        histories = Histories(unpack(state.tails))
        nodes = histories.roots(batch, 2 * self.beam, device)
        begin, ends = state.frame.tolist(), lengths.tolist()
        for t in range(max(ends, default=0)):
            present = t < lengths
            frame = Frame(log_probs[:, t], confidences[:, t], candidates[:, t], number)
            step, any_left = best_of(
                self._step(prefixes, rows, nodes, frame, histories), self.beam, self.margin
            )
            # A frame that leaves nobody is passed over.
            moves_on = present & any_left
            if not bool(moves_on.all()):
                step = states.where(moves_on, step, self._same(prefixes, nodes))
            prefixes, nodes = step.prefixes, torch.cat((step.blank_node, step.label_node), dim=1)
            rows = self._said(rows, step)
            number = number + present
            force = [t < end and (first + t + 1) % EVERY == 0 for first, end in zip(begin, ends, strict=True)]
            if any(force):
                prefixes, nodes = self._share(prefixes, nodes, histories, force, tokens)
        prefixes, _ = self._share(prefixes, nodes, histories, [False] * batch, tokens)
        tails = pack(histories.tails, self._capacity, device)
        new = CtcBeamState(prefixes, states.unflatten(rows, batch, self.beam), tails, number)
        return SearchOutput(tokens, new, [0] * batch)

    def flush(self, state: CtcBeamState) -> list[list[Token]]:
        """What the best prefix has said beyond what was given out, if the stream ends here."""
        return [hypotheses[0].tokens for hypotheses in self.n_best(state)]

    @torch.inference_mode()
    def n_best(self, state: CtcBeamState) -> list[list[Hypothesis]]:
        """For each stream its hypotheses if it ends here, best first, behind what was given out."""
        prefixes = state.prefixes
        end = self.scorer.end(states.flatten(state.rows).scorer).view_as(prefixes.fused)
        log_probs, fused = prefixes.log_prob.tolist(), (prefixes.fused + end).tolist()
        found = []
        for row in zip(self._waiting(state), log_probs, fused, strict=True):
            hypotheses = [Hypothesis(*each) for each in zip(*row, strict=True)]
            there = [each for each in hypotheses if each.log_prob > NOTHING]
            found.append(sorted(there, key=lambda each: -each.score))
        return found

    def pending(self, state: CtcBeamState) -> list[list[Token]]:
        """What the best prefix has said beyond what was given out, so far."""
        best = state.prefixes.total.argmax(dim=1).tolist()
        return [row[k] for row, k in zip(self._waiting(state), best, strict=True)]

    @torch.inference_mode()
    def settle(self, state: CtcBeamState) -> Settled:
        """The best path of each stream, if it ends here, is left alone; its runs that ended are final."""
        end = self.scorer.end(states.flatten(state.rows).scorer).view_as(state.prefixes.fused)
        best = (state.prefixes.total + end).argmax(dim=1)
        kept, others = self._alone(state.prefixes, best)
        kept = kept.without(others | kept.open, others | ~kept.open)
        halves = best + self.beam * state.prefixes.open.gather(1, best[:, None])[:, 0]
        tokens = [row[k] for row, k in zip(unpack(state.tails), halves.tolist(), strict=True)]
        rows = states.map_tensors(lambda x: x[torch.arange(len(best)), best], state.rows)
        rows = states.map_tensors(lambda x: x[:, None].expand(-1, self.beam, *x.shape[1:]).clone(), rows)
        tails = replace(state.tails, lengths=torch.zeros_like(state.tails.lengths))
        return Settled(tokens, CtcBeamState(kept, rows, tails, state.frame))

    @torch.inference_mode()
    def restart(self, state: CtcBeamState, said: Sequence[Sequence[int]]) -> CtcBeamState:
        """One prefix per stream: the best one, which goes on to wait with what was not given out.

        The scorers have seen `said` and what waits.
        """
        batch, width = state.prefixes.last.shape
        device = state.frame.device
        scorer = renewed(self.scorer, first_of(state.rows.scorer))
        fresh = self.initial_state(batch, device, scorer)
        waiting = self.pending(state)
        seen = [[*before, *(token.id for token in rest)] for before, rest in zip(said, waiting, strict=True)]
        rows = states.flatten(fresh.rows)
        for column in in_columns(seen, device):
            there, label = (x.repeat_interleave(width) for x in column)
            rows = states.where(there, self._say(rows, label), rows)
        best = state.prefixes.total.argmax(dim=1)
        kept, others = self._alone(state.prefixes, best)
        tails = states.map_tensors(
            lambda x: x[torch.arange(batch, device=device)[:, None], self._halves(best)], state.tails
        )
        kept = replace(kept.without(others, others), fused=torch.zeros_like(kept.fused))
        return CtcBeamState(kept, states.unflatten(rows, batch, self.beam), tails, state.frame)

    def frames(self, state: CtcBeamState) -> Tensor:
        """(B,) int64: frames searched so far."""
        return state.frame

    def _alone(self, prefixes: Prefixes, best: Tensor) -> tuple[Prefixes, Tensor]:
        """The prefix `best` (B,) of each stream in every place, and the places (K,) to be emptied."""
        kept = states.map_tensors(lambda x: x.gather(1, best[:, None]).expand_as(x).clone(), prefixes)
        return kept, torch.arange(self.beam, device=best.device) > 0

    def _halves(self, prefix: Tensor) -> Tensor:
        """(B, 2 K) the tails of prefixes (B,): of all that end in blank, of all that end in the label."""
        return torch.stack((prefix, prefix + self.beam), dim=1).repeat_interleave(self.beam, dim=1)

    def _step(
        self, prefixes: Prefixes, rows: ScorerRows, nodes: Tensor, frame: Frame, histories: Histories
    ) -> Step:
        """All prefixes that the frame leads to: the K that are there, then K times C that are longer."""
        blank_node, label_node = nodes.chunk(2, dim=1)
        number = frame.number[:, None].expand_as(prefixes.last)
        closed = histories.extend(
            label_node, prefixes.last, prefixes.start, number, prefixes.certain, prefixes.sure
        )
        any_node = torch.where(prefixes.open, closed, blank_node)
        equal, added = equal_parents(prefixes), rows.next.view(*prefixes.last.shape, -1)
        stayed = stay(prefixes, any_node, label_node, frame)
        merged = merge(stayed, prefixes, equal, any_node, blank_node, frame)
        longer = extend(prefixes, added, equal, any_node, blank_node, frame)
        return Step(
            joined(merged.prefixes, longer.prefixes),
            *(torch.cat(pair, dim=1) for pair in zip(merged[1:], longer[1:], strict=True)),
        )

    def _same(self, prefixes: Prefixes, nodes: Tensor) -> Step:
        """As if there had been no frame."""
        source = torch.arange(self.beam, device=nodes.device).expand_as(prefixes.last)
        return Step(prefixes, source, torch.zeros_like(source, dtype=torch.bool), *nodes.chunk(2, dim=1))

    def _said(self, rows: ScorerRows, step: Step) -> ScorerRows:
        """The scorers' rows of the prefixes that were chosen."""
        batch, width = step.source.shape
        offsets = width * torch.arange(batch, device=step.source.device)[:, None]
        source, extends = (offsets + step.source).flatten(), step.extends.flatten()
        if not bool((extends | (source != torch.arange(batch * width, device=source.device))).any()):
            return rows
        rows = states.select(rows, source)
        new = extends.nonzero()[:, 0]
        if len(new) == 0:
            return rows
        said = self._say(states.select(rows, new), step.prefixes.last.flatten()[new].clamp(min=1))
        return states.put(rows, new, said)

    def _say(self, rows: ScorerRows, label: Tensor) -> ScorerRows:
        scorer = self.scorer.advance(rows.scorer, label)
        return ScorerRows(scorer, self.scorer.score(scorer))

    def _share(
        self,
        prefixes: Prefixes,
        nodes: Tensor,
        histories: Histories,
        force: Sequence[bool],
        tokens: list[list[Token]],
    ) -> tuple[Prefixes, Tensor]:
        """Give out what the best paths share, onto `tokens`; the prefixes that may go on, their nodes."""
        total = prefixes.total
        halves = torch.cat((prefixes.best_blank, prefixes.best_label), dim=1)
        # The half that is not the best path of its prefix comes after it; nothing else is asked of the order.
        second = torch.cat((prefixes.open, ~prefixes.open), dim=1)
        scores = torch.cat((total, total), dim=1) - second.double()
        histories.follow(nodes, halves > NOTHING)
        shared = histories.share(scores.masked_fill(halves == NOTHING, NOTHING), force)
        for given, new in zip(tokens, shared.tokens, strict=True):
            given += new
        prefixes = prefixes.without(*(~shared.alive).chunk(2, dim=1))
        return prefixes, histories.roots(len(nodes), 2 * self.beam, nodes.device)

    def _waiting(self, state: CtcBeamState) -> list[list[list[Token]]]:
        """What each prefix has said beyond what was given out, on its best path, its open run included."""
        prefixes, tails = state.prefixes, unpack(state.tails)
        columns = (prefixes.open, prefixes.last, prefixes.start, prefixes.certain, prefixes.sure)
        found = []
        for halves, end, *row in zip(
            tails, state.frame.tolist(), *(x.tolist() for x in columns), strict=True
        ):
            runs = zip(halves[: self.beam], halves[self.beam :], *row, strict=True)
            found.append(
                [
                    [*label, Token(last, start, end, *certain)] if is_open else blank
                    for blank, label, is_open, last, start, *certain in runs
                ]
            )
        return found
