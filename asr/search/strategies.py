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

A strategy is a generator: it stops where active hypotheses have not heard the frames that they are on, and
goes on when they have. So streams need not keep step: what all of them wait for is computed together.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from asr.search.arena import NOTHING
from asr.search.frontier import Frontier, Meeting, Partial, extensions, meet, ranked
from asr.search.history import EVERY
from asr.search.moves import HOLDS


class Limits(NamedTuple):
    """What hypotheses are given up by, and what the topology allows."""

    width: int
    margin: float
    max_symbols: int
    quiet_frames: list[int]
    """Frames that moves without a label consume, or HOLDS."""
    holds: bool
    """Whether labels may be held on."""


Steps = Generator[None, None, None]


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
            while not frontier.hears():
                yield
            _round(frontier, limits)
        frontier.beam, frontier.meeting = ranked(frontier.meeting, limits.width, limits.margin), {}
        frontier.truncated += frontier.beam[0].stopped
        if (frontier.first + frame + 1) % EVERY == 0:
            frontier.share(force=True)
            frontier.forget()
            for partial in frontier.beam:
                partial.text.heard.clear()


def _round(frontier: Frontier, limits: Limits) -> None:
    """The active hypotheses hear the frame; active are then those with one more label on it."""
    active = frontier.active
    for partial in active:
        _be_quiet(frontier, partial, limits)
    for each in extensions(active, "taking", limits.width):
        meet(frontier.meeting, frontier.extended(each, limits.holds))
    frontier.active = []
    if active[0].count < limits.max_symbols:
        # It still has to pay for a blank: what is no better now than the last that waits will not be.
        least = _least(frontier.meeting, limits)
        staying = extensions(active, "staying", limits.width, least)
        frontier.active = [frontier.extended(each, holds=False) for each in staying]


def alignment_synchronous(frontier: Frontier, end: int, limits: Limits) -> Steps:
    """All frames of a recording, `end` of them; what waits beyond them is the beam."""
    frontier.active, frontier.beam = (frontier.beam, []) if end else ([], frontier.beam)
    while frontier.active:
        while not frontier.hears():
            yield
        _lengthen(frontier, limits)
        waiting: Meeting = {}
        for partial in (*frontier.beam, *frontier.meeting.values()):
            if partial.at >= end:
                meet(waiting, partial)
        frontier.beam = ranked(waiting, limits.width, limits.margin)
        least, step = _least(waiting, limits), frontier.meeting.values()
        going_on = [each for each in step if each.at < end and each.score > least]
        frontier.active, frontier.meeting = ranked(going_on, limits.width, limits.margin), {}
    frontier.truncated += frontier.beam[0].stopped
    frontier.share(force=True)


def _lengthen(frontier: Frontier, limits: Limits) -> None:
    """All alignments that are a symbol longer meet."""
    frontier.meeting = {}
    for partial in frontier.active:
        _be_quiet(frontier, partial, limits)
    for each in extensions(frontier.active, "taking", limits.width):
        meet(frontier.meeting, frontier.extended(each, limits.holds))
    unbound = [each for each in frontier.active if each.count < limits.max_symbols]
    for each in extensions(unbound, "staying", limits.width):
        meet(frontier.meeting, frontier.extended(each, holds=False))


def _be_quiet(frontier: Frontier, partial: Partial, limits: Limits) -> None:
    """All ways without a label."""
    moves, text, at, stopped = partial.moves, partial.text, partial.at, partial.stopped
    assert moves is not None
    if partial.count == limits.max_symbols:
        stopped += moves.wants(partial.row)
    place = partial.row * len(limits.quiet_frames)
    for frames in limits.quiet_frames:
        log_prob = partial.log_prob + moves.quiet[place]
        place += 1
        held = 0
        if frames == HOLDS:
            frames, held = 1, partial.held
        if log_prob > NOTHING:
            score = log_prob + text.fused
            meet(
                frontier.meeting, Partial(text, log_prob, at + frames, held, partial.said, score, 0, stopped)
            )


def _least(meeting: Meeting, limits: Limits) -> float:
    """What a hypothesis has to be better than to come among those that wait."""
    scores = sorted((each.score for each in meeting.values()), reverse=True)
    if not scores:
        return NOTHING
    least = scores[0] - limits.margin
    return max(least, scores[limits.width - 1]) if len(scores) >= limits.width else least
