"""In which order a beam search goes through the lattice of frames and labels.

Time-synchronous (Graves 2012; Saon et al. 2020, algorithm 1): on every frame the K hypotheses of a stream are
extended in rounds. Who consumes the frame waits for the others; the best extensions by a label that does not
are the hypotheses of the next round, until none of them can come among the K best that wait, or the bound on
labels per frame is reached.

Alignment-length-synchronous (Saon, Tüske and Audhkhasi 2020, "Alignment-length synchronous decoding for RNN
transducer", algorithm 2): in step i are hypotheses whose alignments are i symbols long, of whatever frame and
number of labels; the K best of all their extensions make step i + 1. Who comes to the end of the recording
waits, and the search is over when none of those on the way can come among the K best that wait. There are no
rounds, and never more than K hypotheses to ask the network about. Departures: labels per frame are bounded in
place of labels in all (Saon's U_max), where paths of equal labels meet by the count of the likelier one; and
every topology will do, so that hypotheses of one step are equal only if they are on the same frame, too.

A strategy is a generator: it yields what it has to know about its active hypotheses, and is sent the answer.
So streams need not keep step: what all of them wait for is computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

from asr.search.arena import NOTHING
from asr.search.frontier import Frontier, Meeting, Partial, extensions, meet, ranked
from asr.search.history import EVERY
from asr.search.moves import Moves


class Limits(NamedTuple):
    """What hypotheses are given up by, and what the topology allows."""

    width: int
    margin: float
    max_symbols: int
    quiet_frames: list[int]
    holds: bool
    """Whether labels may be held on."""


class Answer(NamedTuple):
    """What the active hypotheses of a stream may do."""

    moves: Moves
    base: int
    """The row of `moves` that belongs to the first of them."""


Question = bool
"""Whether it matters if hypotheses want a label that stays."""
Steps = Generator[Question, Answer, None]
Strategy = Callable[[Frontier, int, Limits], Steps]


def time_synchronous(frontier: Frontier, end: int, limits: Limits) -> Steps:
    """Frames 0 .. end of the chunk."""
    for frame in range(end):
        frontier.meeting, frontier.active = {}, []
        for partial in frontier.beam:
            partial.stopped, partial.count = 0, 0
            if partial.at > frame:
                meet(frontier.meeting, partial)
            else:
                frontier.active.append(partial)
        frontier.beam = []
        while frontier.active:
            said = frontier.active[0].count
            yield from _round(frontier, said == limits.max_symbols, limits)
        frontier.beam, frontier.meeting = ranked(frontier.meeting, limits.width, limits.margin), {}
        frontier.truncated += frontier.beam[0].stopped
        if (frontier.first + frame + 1) % EVERY == 0:
            frontier.share(force=True)


def _round(frontier: Frontier, last: bool, limits: Limits) -> Steps:
    """The active hypotheses hear the frame; active are then those with one more label on it."""
    moves, base = yield last
    active, taken = frontier.active, list[Partial]()
    for row, partial in enumerate(active, base):
        _be_quiet(frontier, partial, moves, row, limits)
    if moves.taking is not None:
        for each in extensions(active, moves.taking, base, limits.width):
            taken.append(frontier.extended(each, moves.taking, limits.holds))
    for partial in taken:
        meet(frontier.meeting, partial)
    frontier.active = []
    if moves.staying is not None and not last:
        # It still has to pay for a blank: what is no better now than the last that waits will not be.
        least = _least(frontier.meeting, limits)
        for each in extensions(active, moves.staying, base, limits.width, least):
            frontier.active.append(frontier.extended(each, moves.staying, holds=False))


def alignment_synchronous(frontier: Frontier, end: int, limits: Limits) -> Steps:
    """All frames of a recording, `end` of them; what waits beyond them is the beam."""
    waiting: Meeting = {}
    frontier.active, frontier.beam = (frontier.beam, []) if end else ([], frontier.beam)
    while frontier.active:
        moves, base = yield any(each.count == limits.max_symbols for each in frontier.active)
        frontier.meeting = {}
        for row, partial in enumerate(frontier.active, base):
            _be_quiet(frontier, partial, moves, row, limits)
        for partial in _said(frontier, moves, base, limits):
            meet(frontier.meeting, partial)
        for partial in frontier.meeting.values():
            if partial.at >= end:
                meet(waiting, partial)
        # Those that wait are living, too.
        frontier.beam = ranked(waiting, limits.width, limits.margin)
        least, step = _least(waiting, limits), frontier.meeting.values()
        going_on = [each for each in step if each.at < end and each.score > least]
        frontier.active, frontier.meeting = ranked(going_on, limits.width, limits.margin), {}
    frontier.truncated += frontier.beam[0].stopped
    frontier.share(force=True)


def _said(frontier: Frontier, moves: Moves, base: int, limits: Limits) -> list[Partial]:
    """The best of the active hypotheses with one more label, K of each kind."""
    found = []
    for ways, stays in ((moves.taking, False), (moves.staying, True)):
        if ways is None:
            continue
        for each in extensions(frontier.active, ways, base, limits.width):
            if not stays or each.partial.count < limits.max_symbols:
                found.append(frontier.extended(each, ways, holds=limits.holds and not stays))
    return found


def _be_quiet(frontier: Frontier, partial: Partial, moves: Moves, row: int, limits: Limits) -> None:
    """All ways without a label."""
    bound = partial.count == limits.max_symbols
    stopped = partial.stopped + (bound and moves.wants is not None and moves.wants[row])
    quiet = moves.quiet[row]
    if limits.holds:
        frontier.quiet(partial, quiet[-1], partial.at + 1, partial.held)
        quiet = quiet[:-1]
    for log_prob, frames in zip(quiet, limits.quiet_frames, strict=False):
        frontier.quiet(partial, log_prob, partial.at + frames, 0, stopped)


def _least(meeting: Meeting, limits: Limits) -> float:
    """What a hypothesis has to be better than to come among those that wait."""
    scores = sorted((each.score for each in meeting.values()), reverse=True)
    if not scores:
        return NOTHING
    least = scores[0] - limits.margin
    return max(least, scores[limits.width - 1]) if len(scores) >= limits.width else least
