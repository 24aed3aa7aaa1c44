"""The hypotheses of one stream while a beam search hears a chunk, in plain Python.

A beam is a handful of numbers, and what is done with each depends on the others: operations on tensors of a
few elements cost far more than the arithmetic. Only what the network and the scorers compute is batched, over
all streams (asr.search.beam). Sums of probabilities are in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, NamedTuple

from asr.search.arena import NOTHING, Text, longer
from asr.search.history import share
from asr.search.hypothesis import Token
from asr.search.moves import Moves, Ways


class Said(NamedTuple):
    """What a hypothesis has said in this chunk."""

    before: Said | int
    """Or, if that is nothing, the number of its tail."""
    token: Token


@dataclass(slots=True, eq=False)
class Partial:
    """A hypothesis: a text, with the paths of it that have come equally far, added up."""

    text: Text
    log_prob: float
    """log p(labels, alignments so far | audio)."""
    at: int
    """The frame of the chunk that it hears next."""
    held: int
    """The label that may be held on (CTC topology), else blank."""
    said: Said | int
    """On the most probable of the paths, as they came together."""
    score: float
    """What it is ranked by: log_prob and what the scorers added."""
    count: int = 0
    """Labels since it came to the frame."""
    stopped: int = 0
    """Frames where the bound kept it from a further label."""

    moves: Moves | None = None
    """What it may do on its frame,"""
    row: int = 0
    """as which row."""


class Extension(NamedTuple):
    """A hypothesis and a label that it may say."""

    score: float
    partial: Partial
    ways: Ways
    place: int
    """The one among them."""


Meeting = dict[tuple[int, int, int], Partial]
"""Hypotheses by what they have said, where they are and what they hold: equal ones are one."""


@dataclass(slots=True, eq=False)
class Frontier:
    """The hypotheses of a stream."""

    beam: list[Partial]
    texts: dict[int, Text]
    tails: list[list[Token]]
    """What those of the beginning have said that was not given out."""
    first: int
    """Frames of the stream before the chunk."""
    tokens: list[Token] = field(default_factory=list)
    """Given out."""
    truncated: int = 0
    active: list[Partial] = field(default_factory=list)
    """Those that wait for an answer of the network."""
    meeting: Meeting = field(default_factory=dict)
    """Those that wait for the others."""

    def living(self) -> list[Text]:
        """The texts that somebody may need."""
        return [each.text for each in (*self.beam, *self.active, *self.meeting.values())]

    def forget(self) -> None:
        """Forget all texts but the living."""
        self.texts = {text.hash: text for text in self.living()}

    def hears(self) -> bool:
        """Whether active hypotheses have heard the frames that they are on; then their moves are there."""
        for each in self.active:
            heard, at = each.text.heard.get(each.held), each.at
            if heard is None or not heard.first <= at < heard.until:
                return False
            each.moves, each.row = heard.moves, heard.base + at
        return True

    def extended(self, extension: Extension, holds: bool) -> Partial:
        """A hypothesis says a label."""
        _, partial, ways, place = extension
        label, frames = ways.label[place], ways.frames[place]
        text = self._extend(partial.text, label, ways.added[place])
        log_prob = partial.log_prob + ways.log_prob[place]
        heard = self.first + partial.at
        token = Token(label, heard, heard + max(frames, 1), ways.symbol[place], ways.sure[place])
        count = 0 if frames else partial.count + 1
        held, score = label if holds else 0, log_prob + text.fused
        at, said = partial.at + frames, Said(partial.said, token)
        return Partial(text, log_prob, at, held, said, score, count, partial.stopped)

    def _extend(self, text: Text, label: int, added: float) -> Text:
        hash = longer(text.hash, label)
        found = self.texts.get(hash)
        if found is None:
            found = self.texts[hash] = Text(hash, text.fused + added, -1, text, label)
        return found

    def said(self) -> list[list[Token]]:
        """What the hypotheses of the beam have said that was not given out."""
        return [_followed(each.said, self.tails) for each in self.beam]

    def share(self, force: bool) -> None:
        """Give out what hypotheses share; `force`: they are made to (asr.search.history)."""
        tails = self.said()
        if not tails:
            return
        shared = share(tails, [each.score for each in self.beam], force)
        self.tokens += shared.tokens
        self.tails = [tail[len(shared.tokens) :] for tail in tails]
        for tail, each in enumerate(self.beam):
            each.said = tail
        self.beam = [each for each, alive in zip(self.beam, shared.alive, strict=True) if alive]


def meet(meeting: Meeting, partial: Partial) -> Partial:
    """Let it come to others: equal ones become one, their probabilities added."""
    key = (partial.text.hash, partial.at, partial.held)
    other = meeting.get(key)
    if other is None:
        meeting[key] = partial
        return partial
    high, low = other.log_prob, partial.log_prob
    if low > high:
        high, low = low, high
        other.said, other.stopped, other.count = partial.said, partial.stopped, partial.count
    other.log_prob = high + math.log1p(math.exp(low - high))
    other.score = other.log_prob + other.text.fused
    return other


def ranked(partials: Sequence[Partial] | Meeting, width: int, margin: float) -> list[Partial]:
    """The `width` best, best first, none of them `margin` below the best."""
    each = partials.values() if isinstance(partials, dict) else partials
    best = sorted(each, key=_score, reverse=True)[:width]
    if best and best[-1].score < best[0].score - margin:
        least = best[0].score - margin
        return [partial for partial in best if partial.score >= least]
    return best


_score = attrgetter("score")


def extensions(
    active: Sequence[Partial],
    kind: Literal["taking", "staying"],
    width: int,
    above: float = NOTHING,
) -> list[Extension]:
    """The `width` best labels that hypotheses may say, above a score."""
    found = []
    for partial in active:
        ways: Ways | None = getattr(partial.moves, kind)
        if ways is None:
            return []
        score, row = partial.score, partial.row
        floor = above - score
        worths = ways.worth
        for place in range(row * ways.most, (row + 1) * ways.most):
            worth = worths[place]
            if worth <= floor:
                break
            found.append(Extension(score + worth, partial, ways, place))
    found.sort(key=_score, reverse=True)
    return found[:width]


def _followed(said: Said | int, tails: list[list[Token]]) -> list[Token]:
    tokens = []
    while not isinstance(said, int):
        said, token = said
        tokens.append(token)
    return tails[said] + tokens[::-1]
