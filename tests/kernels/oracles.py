"""The losses and alignments by enumeration: every path is written down, scored and added up.

A path is a tuple of steps. A step stands at node (t, u) - it is read at frame t when u labels are out - and
its log-probability is the sum of the columns it reads there, less sigma. One generator per topology, each
from its own paper; they share nothing but these words, and nothing with the library:

* rnnt: Graves 2012. Blank takes a frame, a label takes none; blank is last.
* monotonic: Tripathi et al. 2019, "Monotonic RNN-T"; Sak et al. 2017, RNA. Every symbol takes a frame.
* ctc: Graves et al. 2006, on the nodes of the transducer. A frame is blank, or the next label unless the
  last frame was the same label, or the last frame's label again.
* tdt: Xu et al. 2023, "Token-and-duration transducer". A symbol and, from a softmax of its own, how many
  frames it takes; blank takes at least one, is last, and ends exactly at frame T.
* multi-blank: Xu et al. 2022. rnnt with additional blanks, which take several frames.

Scores are float64 tensors, so that autograd gives the gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Rules(NamedTuple):
    """A topology, as this file names it. The last len(durations) columns of the logits are its own."""

    name: str
    durations: tuple[int, ...] = ()
    sigma: float = 0.0


class Step(NamedTuple):
    t: int
    u: int
    columns: tuple[int, ...]
    emits: bool  # a new label
    holds: int  # the label it emits or repeats lasts until this frame; -1 for blanks


Path = tuple[Step, ...]


class Best(NamedTuple):
    """Best path: frame of each label, first frame after it, score (-inf, frames -1, if there is none)."""

    frames: list[int]
    end_frames: list[int]
    score: float


def log_probs_of(logits: Tensor, rules: Rules) -> Tensor:
    """Log-probabilities of the columns: one softmax, or for tdt one over symbols and one over durations."""
    if rules.name != "tdt":
        return logits.log_softmax(-1)
    V = logits.shape[-1] - len(rules.durations)
    return torch.cat((logits[..., :V].log_softmax(-1), logits[..., V:].log_softmax(-1)), dim=-1)


@cache
def paths_of(rules: Rules, T: int, y: tuple[int, ...], blank: int, V: int) -> list[Path]:
    """Every path of T frames and labels y; V columns are symbols, those of the durations follow."""
    if T == 0:
        return []
    if rules.name == "rnnt":
        return list(_rnnt(T, y, blank, 0, 0))
    if rules.name == "monotonic":
        return list(_monotonic(T, y, blank, 0, 0))
    if rules.name == "ctc":
        return list(_ctc(T, y, blank, 0, 0, False))
    durations = [(V + i, d) for i, d in enumerate(rules.durations)]
    if rules.name == "tdt":
        return list(_tdt(T, y, blank, durations, 0, 0))
    assert rules.name == "multi_blank"
    return list(_multi_blank(T, y, [(blank, 1), *durations], 0, 0))


def _rnnt(T: int, y: tuple[int, ...], blank: int, t: int, u: int) -> Iterator[Path]:
    if t == T:
        if u == len(y):
            yield ()
        return
    for rest in _rnnt(T, y, blank, t + 1, u):
        yield (Step(t, u, (blank,), False, -1), *rest)
    if u < len(y):
        for rest in _rnnt(T, y, blank, t, u + 1):
            yield (Step(t, u, (y[u],), True, t + 1), *rest)


def _monotonic(T: int, y: tuple[int, ...], blank: int, t: int, u: int) -> Iterator[Path]:
    if t == T:
        if u == len(y):
            yield ()
        return
    for rest in _monotonic(T, y, blank, t + 1, u):
        yield (Step(t, u, (blank,), False, -1), *rest)
    if u < len(y):
        for rest in _monotonic(T, y, blank, t + 1, u + 1):
            yield (Step(t, u, (y[u],), True, t + 1), *rest)


def _ctc(T: int, y: tuple[int, ...], blank: int, t: int, u: int, after_label: bool) -> Iterator[Path]:
    if t == T:
        if u == len(y):
            yield ()
        return
    for rest in _ctc(T, y, blank, t + 1, u, False):
        yield (Step(t, u, (blank,), False, -1), *rest)
    if u < len(y) and not (after_label and y[u] == y[u - 1]):
        for rest in _ctc(T, y, blank, t + 1, u + 1, True):
            yield (Step(t, u, (y[u],), True, t + 1), *rest)
    if after_label:
        for rest in _ctc(T, y, blank, t + 1, u, True):
            yield (Step(t, u, (y[u - 1],), False, t + 1), *rest)


def _tdt(
    T: int, y: tuple[int, ...], blank: int, durations: list[tuple[int, int]], t: int, u: int
) -> Iterator[Path]:
    for column, d in durations:
        if d > 0 and t + d == T and u == len(y):
            yield (Step(t, u, (blank, column), False, -1),)
        if d > 0 and t + d < T:
            for rest in _tdt(T, y, blank, durations, t + d, u):
                yield (Step(t, u, (blank, column), False, -1), *rest)
        if u < len(y) and t + d < T:
            for rest in _tdt(T, y, blank, durations, t + d, u + 1):
                yield (Step(t, u, (y[u], column), True, t + max(d, 1)), *rest)


def _multi_blank(T: int, y: tuple[int, ...], blanks: list[tuple[int, int]], t: int, u: int) -> Iterator[Path]:
    if t == T:
        if u == len(y):
            yield ()
        return
    for column, d in blanks:
        if t + d <= T:
            for rest in _multi_blank(T, y, blanks, t + d, u):
                yield (Step(t, u, (column,), False, -1), *rest)
    if u < len(y):
        for rest in _multi_blank(T, y, blanks, t, u + 1):
            yield (Step(t, u, (y[u],), True, t + 1), *rest)


def emissions(path: Path) -> list[int]:
    """Frame on which each label comes out."""
    return [step.t for step in path if step.emits]


def ends(path: Path) -> list[int]:
    """First frame after each label, its repetitions included."""
    found: list[int] = []
    for step in path:
        if step.emits:
            found.append(step.holds)
        elif step.holds >= 0:
            found[-1] = step.holds
    return found


def scores_of(
    log_probs: Tensor, paths: Sequence[Path], sigma: float, fastemit: float, delay_penalty: float
) -> Tensor:
    """Log-probability (N,) of each path under log_probs (T, U+1, V')."""
    T, width, columns = log_probs.shape
    plain = log_probs.reshape(-1)
    favoured = plain.clone()
    if fastemit and favoured.requires_grad:
        favoured.register_hook(lambda grad: grad * (1 + fastemit))
    flat = torch.cat((plain, favoured, plain.new_zeros(1)))
    reads, constants = [], []
    for path in paths:
        reads.append(
            [
                (step.t * width + step.u) * columns + column + (plain.numel() if step.emits else 0)
                for step in path
                for column in step.columns
            ]
        )
        delays = math.fsum((T - 1) / 2 - t for t in emissions(path))
        constants.append(delay_penalty * delays - sigma * len(path))
    longest = max(map(len, reads))
    index = torch.tensor([row + [len(flat) - 1] * (longest - len(row)) for row in reads], dtype=torch.int64)
    return flat[index].sum(-1) + torch.tensor(constants, dtype=log_probs.dtype)


def loss_from_log_probs(
    log_probs: Tensor,
    y: Sequence[int],
    blank: int,
    rules: Rules,
    *,
    criterion: str = "sum",
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    allowed: Callable[[Path], bool] = lambda path: True,
) -> Tensor:
    """Loss of one utterance, a scalar, from log-probabilities (T, U+1, V')."""
    V = log_probs.shape[-1] - len(rules.durations)
    paths = [p for p in paths_of(rules, log_probs.shape[0], tuple(y), blank, V) if allowed(p)]
    if paths:
        scores = scores_of(log_probs, paths, rules.sigma, fastemit, delay_penalty)
        possible = scores[scores != -math.inf]
        if len(possible) > 0:
            return -(possible.max() if criterion == "max" else possible.logsumexp(0))
    return log_probs[:0].sum() + math.inf


def loss(logits: Tensor, y: Sequence[int], blank: int, rules: Rules, **options: object) -> Tensor:
    """Loss of one utterance, a scalar, from its logits (T, U+1, V'); options of loss_from_log_probs."""
    return loss_from_log_probs(log_probs_of(logits, rules), y, blank, rules, **options)


def best(logits: Tensor, y: Sequence[int], blank: int, rules: Rules, *, delay_penalty: float = 0.0) -> Best:
    """Best path of one utterance."""
    paths = paths_of(rules, logits.shape[0], tuple(y), blank, logits.shape[-1] - len(rules.durations))
    if paths:
        log_probs = log_probs_of(logits.detach(), rules)
        scores = scores_of(log_probs, paths, rules.sigma, 0.0, delay_penalty)
        score, index = scores.max(0)
        if score > -math.inf:
            return Best(emissions(paths[int(index)]), ends(paths[int(index)]), float(score))
    return Best([-1] * len(y), [-1] * len(y), -math.inf)


def banded(
    frames: Sequence[int], band: int, end_frames: Sequence[int] | None = None
) -> Callable[[Path], bool]:
    """Paths that emit (and end) every label within +-band frames of where it is given; none for frame -1."""

    def near(found: Sequence[int], given: Sequence[int]) -> bool:
        return all(abs(t - frame) <= band and frame >= 0 for t, frame in zip(found, given, strict=True))

    return lambda path: near(emissions(path), frames) and (end_frames is None or near(ends(path), end_frames))


def pruned(ranges: Sequence[Sequence[int]]) -> Callable[[Path], bool]:
    """Paths that read only nodes (t, u) with u in ranges[t]."""
    return lambda path: all(step.u in ranges[step.t] for step in path)


def spread_over_lattice(logits: Tensor, ranges: Tensor, width: int) -> Tensor:
    """Logits (T, U+1, V') of pruned logits (T, S, V'), zero where nothing was kept."""
    full = logits.new_zeros(logits.shape[0], width, logits.shape[2])
    return full.scatter(1, ranges[..., None].expand_as(logits), logits)


# -- CTC over frames alone ---------------------------------------------------------------------------------


class Ctc(NamedTuple):
    loss: Tensor
    best_loss: Tensor
    best: Best


def ctc(logits: Tensor, y: Sequence[int], blank: int) -> Ctc:
    """Sum and best of all V^T symbol strings (logits (T, V)) that collapse to y: the definition of CTC."""
    T, V = logits.shape
    log_probs = logits.log_softmax(-1)
    strings = [s for s in itertools.product(range(V), repeat=T) if collapse(s, blank)[0] == list(y)]
    if T == 0 or not strings:
        infinite = logits[:0].sum() + math.inf
        return Ctc(infinite, infinite, Best([-1] * len(y), [-1] * len(y), -math.inf))
    scores = log_probs[torch.arange(T), torch.tensor(strings)].sum(-1)
    score, index = scores.max(0)
    _, frames, end_frames = collapse(strings[int(index)], blank)
    return Ctc(-scores.logsumexp(0), -score, Best(frames, end_frames, float(score.detach())))


def collapse(string: Sequence[int], blank: int) -> tuple[list[int], list[int], list[int]]:
    """Labels of a string of symbols, one per frame; the frame each begins and the first frame after it."""
    labels, frames, end_frames = [], [], []
    t = 0
    for symbol, run in itertools.groupby(string):
        length = len(list(run))
        if symbol != blank:
            labels.append(symbol)
            frames.append(t)
            end_frames.append(t + length)
        t += length
    return labels, frames, end_frames


# -- Pruning -----------------------------------------------------------------------------------------------


def legal_bounds(T: int, U: int, S: int, highest: int) -> Iterator[tuple[int, ...]]:
    """First columns of every legal pruning of T frames: from 0, up by 0..S-1 a frame, at last holding U."""

    def walk(bounds: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(bounds) == T:
            if bounds[-1] <= U < bounds[-1] + S:
                yield bounds
            return
        for rise in range(S):
            if bounds[-1] + rise <= highest:
                yield from walk((*bounds, bounds[-1] + rise))

    return walk((0,))
