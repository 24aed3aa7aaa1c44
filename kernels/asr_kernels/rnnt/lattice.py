"""Forward-backward over a batch of transducer lattices, in numpy and float64, one anti-diagonal at a time.

All nodes (t, u) with t + u = n depend only on those with t + u = n-1, so a step treats a whole
anti-diagonal of every utterance. The arrays are skewed, [t + u, ..., u], which makes an anti-diagonal one
contiguous row. beta is alpha of the lattice turned around (t -> T-1-t, u -> U-u), so both run in the same
loop, as a batch of 2 B. The symbols are those of reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Stands for log 0: finite, so that no step computes inf - inf, and far beyond any real log-probability.
LOG_ZERO = -1e30


class Arcs(NamedTuple):
    """One value for each arc that leaves a node: a log-probability or an occupation."""

    blank: Array  # (B, T, U+1)
    label: Array  # (B, T, U+1); u = U has no label arc


def forward(arcs: Arcs, frames: Sequence[int], labels: Sequence[int]) -> Array:
    """Losses (B,) from the log-probabilities of the arcs."""
    return _log_alpha(_without_padding(arcs, frames, labels), frames, labels, turned=False)[0]


def forward_backward(arcs: Arcs, frames: Sequence[int], labels: Sequence[int]) -> tuple[Array, Arcs]:
    """Losses (B,) and the occupation of every arc, zero in the padding and where the loss is infinite."""
    arcs = _without_padding(arcs, frames, labels)
    losses, log_alpha = _log_alpha(arcs, frames, labels, turned=True)
    B, T, width = arcs.blank.shape
    log_beta = np.full((B, T + 1, width + 1), LOG_ZERO)
    for b, (T_b, U_b) in enumerate(zip(frames, labels, strict=True)):
        log_beta[b, :T_b, : U_b + 1] = log_alpha[B + b, :T_b, : U_b + 1][::-1, ::-1]
        log_beta[b, T_b, U_b] = 0.0
    with np.errstate(all="ignore"):
        # alpha / P; an infinite loss makes it 0, a NaN leaves NaN
        share = log_alpha[:B] + np.where(losses == np.inf, -np.inf, losses)[:, None, None]
        blank = share + arcs.blank + log_beta[:, 1:, :-1]
        label = share + arcs.label + log_beta[:, :-1, 1:]
        return losses, Arcs(np.exp(blank, out=blank), np.exp(label, out=label))


def _without_padding(arcs: Arcs, frames: Sequence[int], labels: Sequence[int]) -> Arcs:
    """The arcs with log 0 for those that do not exist or have probability zero."""
    _, T, width = arcs.blank.shape
    t, u = np.arange(T)[None, :, None], np.arange(width)[None, None, :]
    T_b, U_b = np.array(frames)[:, None, None], np.array(labels)[:, None, None]
    blank = np.where((t < T_b) & (u <= U_b), np.maximum(arcs.blank, LOG_ZERO), LOG_ZERO)
    label = np.where((t < T_b) & (u < U_b), np.maximum(arcs.label, LOG_ZERO), LOG_ZERO)
    return Arcs(blank, label)


def _log_alpha(arcs: Arcs, frames: Sequence[int], labels: Sequence[int], turned: bool) -> tuple[Array, Array]:
    """Losses (B,) and log alpha (B, T, U+1), a view; with `turned`, B more rows hold the turned lattices."""
    B, T, width = arcs.blank.shape
    rows, diagonals = 2 * B if turned else B, T + width - 1
    skewed_arcs = np.full((diagonals, 2, rows, width), LOG_ZERO)
    # One more column, always log 0, stands before u = 0 so that "u-1" is a view shifted by one.
    skewed = np.full((diagonals, rows, width + 1), LOG_ZERO)
    log_alpha = _unskewed(skewed[:, :, 1:], T)
    # An arc is kept at the node it leads to: label arcs first, then blank arcs.
    label_into, blank_into = _unskewed(skewed_arcs[:, 0], T), _unskewed(skewed_arcs[:, 1], T)
    label_into[:B, :, 1:] = arcs.label[:, :, :-1]
    blank_into[:B, 1:] = arcs.blank[:, :-1]
    skewed[:1, :B, 1] = 0.0
    for b, (T_b, U_b) in enumerate(zip(frames, labels, strict=True)):
        if turned and T_b > 0:
            label_into[B + b, :T_b, 1 : U_b + 1] = arcs.label[b, :T_b, :U_b][::-1, ::-1]
            blank_into[B + b, 1:T_b, : U_b + 1] = arcs.blank[b, : T_b - 1, : U_b + 1][::-1, ::-1]
            skewed[0, B + b, 1] = arcs.blank[b, T_b - 1, U_b]
    _recur(skewed, skewed_arcs, max(map(sum, zip(frames, labels, strict=True)), default=0))
    losses = np.full(B, np.inf)
    for b, (T_b, U_b) in enumerate(zip(frames, labels, strict=True)):
        if T_b > 0:
            log_prob = log_alpha[b, T_b - 1, U_b] + arcs.blank[b, T_b - 1, U_b]
            losses[b] = np.inf if log_prob < LOG_ZERO / 2 else -log_prob
    return losses, log_alpha


def _recur(skewed: Array, arcs: Array, steps: int) -> None:
    """alpha(n, u) = alpha(n-1, u-1) y + alpha(n-1, u) b, in the log domain, for n = 1 .. steps-1."""
    row, batch, column = skewed.strides
    sources = as_strided(skewed, arcs.shape, (row, column, batch, column), writeable=False)
    terms = np.empty(arcs.shape[1:])
    low, high = np.empty_like(terms[0]), np.empty_like(terms[0])
    with np.errstate(all="ignore"):
        for source, arc, target in zip(sources, arcs[1:steps], skewed[1:steps, :, 1:], strict=False):
            np.add(source, arc, out=terms)
            np.maximum(terms[0], terms[1], out=high)
            np.minimum(terms[0], terms[1], out=low)
            # log(e^high + e^low); several times faster than np.logaddexp, which is not vectorised
            np.subtract(low, high, out=low)
            np.exp(low, out=low)
            np.log1p(low, out=low)
            np.add(high, low, out=target)


def _unskewed(skewed: Array, T: int) -> Array:
    """View (rows, T, U+1) of skewed (T+U, rows, U+1): [row, t, u] is [t + u, row, u] there."""
    diagonal, row, column = skewed.strides
    return as_strided(skewed, (skewed.shape[1], T, skewed.shape[2]), (row, diagonal, diagonal + column))
