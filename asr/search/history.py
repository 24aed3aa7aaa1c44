"""What hypotheses have said, in bounded memory: nodes within a call, tails between calls.

Within a call every extension of a hypothesis is a node with a parent, so that forking costs one number (in
tensors here; the hypotheses of asr.search.frontier are linked themselves). At the end of the call, and at
every `EVERY`-th frame of a stream, the nodes are followed back to lists. What all hypotheses of a stream
share is then given out for good; the rest is their tails, which the state carries.

Hypotheses that never agree are made to: at every `EVERY`-th frame those go that differ from the best one in
what it said more than `WINDOW` labels ago, or are more than `2 * WINDOW` labels longer than what is shared.
That is decided by the place in the stream alone, so that any chunking gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr.search.hypothesis import Token

EVERY = 32
WINDOW = 64


@dataclass(frozen=True)
class Tails:
    """What each of K hypotheses of a stream has said since what is shared."""

    labels: Tensor
    """(B, K, L) int64."""
    frames: Tensor
    """(B, K, L, 2) int64: first frame, and first that is no longer part of the label."""
    log_probs: Tensor
    """(B, K, L, 2) float32: log-probability, and logarithm of the confidence."""
    lengths: Tensor
    """(B, K) int64."""


TokenLists = list[list[list[Token]]]
"""Tokens of every hypothesis of every stream."""


class Shared(NamedTuple):
    """What became final when hypotheses were compared."""

    tokens: list[list[Token]]
    """Of each stream."""
    alive: Tensor
    """(B, K) bool: hypotheses that may go on."""


def capacity(most_labels: int) -> int:
    """Labels that a tail has to hold with so many labels per frame."""
    return 2 * WINDOW + EVERY * most_labels


def pack(tails: TokenLists, size: int, device: torch.device | None = None) -> Tails:
    """Lists to tensors with room for `size` labels."""
    shape = len(tails), len(tails[0]) if tails else 0
    lengths = np.array([len(tail) for row in tails for tail in row], dtype=np.int64)
    tokens = [token for row in tails for tail in row for token in tail]
    # Where each token goes: through the tails one after the other, each of which has `size` places.
    begin = size * np.arange(len(lengths)) - lengths.cumsum() + lengths
    place = np.arange(len(tokens)) + np.repeat(begin, lengths)
    numbers = np.zeros((len(lengths) * size, 3), np.int64)
    log_probs = np.zeros((len(lengths) * size, 2), np.float32)
    if tokens:
        numbers[place] = [token[:3] for token in tokens]
        log_probs[place] = [(token.log_prob, token.log_sure) for token in tokens]
    columns = torch.from_numpy(numbers).view(*shape, size, 3).to(device)
    return Tails(
        columns[..., 0],
        columns[..., 1:],
        torch.from_numpy(log_probs).view(*shape, size, 2).to(device),
        torch.from_numpy(lengths).view(shape).to(device),
    )


def unpack(tails: Tails) -> TokenLists:
    """Tensors to lists."""
    batch, width = tails.lengths.shape
    every = torch.arange(width, device=tails.lengths.device).expand(batch, width)
    return unpack_some(tails, every)


def unpack_some(tails: Tails, chosen: Tensor) -> TokenLists:
    """Tensors to lists, of each stream's hypotheses `chosen` (B, N) int64 alone."""
    lengths = tails.lengths.gather(1, chosen)
    longest = int(lengths.max()) if lengths.numel() else 0
    stream = torch.arange(len(chosen), device=chosen.device)[:, None]
    labels, frames, log_probs = (
        column[stream, chosen, :longest].tolist() for column in (tails.labels, tails.frames, tails.log_probs)
    )

    def tail(b: int, k: int, n: int) -> list[Token]:
        columns = zip(labels[b][k][:n], frames[b][k][:n], log_probs[b][k][:n], strict=True)
        return [Token(label, begin, end, *log_probs) for label, (begin, end), log_probs in columns]

    return [[tail(b, k, n) for k, n in enumerate(row)] for b, row in enumerate(lengths.tolist())]


class Common(NamedTuple):
    """What became final when the hypotheses of a stream were compared."""

    tokens: list[Token]
    alive: list[bool]
    """Hypotheses that may go on."""


def share(tails: Sequence[list[Token]], scores: Sequence[float], force: bool) -> Common:
    """What the hypotheses of a stream, one at least, have in common; `force`: they are made to agree.

    scores: minus infinity for hypotheses that are not there.
    """
    there = [score > -math.inf for score in scores]
    if force:
        there = _agreeing(tails, there, max(range(len(scores)), key=scores.__getitem__))
    return Common(_common_beginning([tail for tail, it in zip(tails, there, strict=True) if it]), there)


class Histories:
    """The hypotheses of a call: begun with tails, extended by nodes, followed back to tails."""

    def __init__(self, tails: TokenLists) -> None:
        self.tails = tails
        self._columns: list[tuple[Tensor, ...]] = []

    def roots(self, batch: int, width: int, device: torch.device) -> Tensor:
        """(B, K) the nodes of hypotheses as the tails have them: -1 for the first, -2 for the second, ..."""
        return (-1 - torch.arange(width, device=device)).expand(batch, width)

    def extend(
        self, parents: Tensor, labels: Tensor, frames: Tensor, ends: Tensor, log_probs: Tensor, sure: Tensor
    ) -> Tensor:
        """Nodes (B, K) of hypotheses with nodes `parents`, each with one more label; all arguments (B, K).

        sure: logarithm of the confidence in the label.
        """
        batch, width = parents.shape
        begin = sum(column[0].shape[1] for column in self._columns)
        self._columns.append((parents, labels, frames, ends, log_probs, sure))
        return torch.arange(begin, begin + width, device=parents.device).expand(batch, width)

    def follow(self, nodes: Tensor, alive: Tensor) -> None:
        """Make the tails those of `nodes` (B, K), nothing for hypotheses that are not alive; forget nodes."""
        columns = [torch.cat(column, dim=1).tolist() for column in zip(*self._columns, strict=True)]
        table = [list(zip(*(column[b] for column in columns), strict=True)) for b in range(len(nodes))]
        rows = zip(nodes.tolist(), alive.tolist(), strict=True)
        self.tails = [
            [
                self._path(b, node, table[b] if table else []) if there else []
                for node, there in zip(*row, strict=True)
            ]
            for b, row in enumerate(rows)
        ]
        self._columns = []

    def _path(self, stream: int, node: int, table: Sequence[tuple[Any, ...]]) -> list[Token]:
        said = []
        while node >= 0:
            node, *token = table[node]
            said.append(Token(*token))
        return [*self.tails[stream][-1 - node], *reversed(said)]

    def share(self, scores: Tensor, force: Sequence[bool]) -> Shared:
        """Give out what the hypotheses of each stream share; where `force` is True they are made to share.

        scores (B, K): minus infinity for hypotheses that are not there.
        """
        tokens, alive = [], []
        for b, row in enumerate(scores.tolist()):
            tails = self.tails[b]
            common = share(tails, row, force[b])
            tokens.append(common.tokens)
            alive.append(common.alive)
            said = len(common.tokens)
            self.tails[b] = [tail[said:] if it else [] for tail, it in zip(tails, common.alive, strict=True)]
        return Shared(tokens, torch.tensor(alive, dtype=torch.bool, device=scores.device).view(scores.shape))


def _agreeing(tails: Sequence[list[Token]], there: Sequence[bool], best: int) -> list[bool]:
    """Which hypotheses stay when they are made to agree with the best about what is long past."""
    settled = tails[best][: max(0, len(tails[best]) - WINDOW)]
    keep = [it and tail[: len(settled)] == settled for tail, it in zip(tails, there, strict=True)]
    shared = len(_common_beginning([tail for tail, it in zip(tails, keep, strict=True) if it]))
    longest = shared + 2 * WINDOW
    return [it and (k == best or len(tails[k]) <= longest) for k, it in enumerate(keep)]


def _common_beginning(tails: Sequence[list[Token]]) -> list[Token]:
    """What all lists, one at least, begin with."""
    first, *others = tails
    same = 0
    while same < len(first) and all(same < len(tail) and tail[same] == first[same] for tail in others):
        same += 1
    return first[:same]
