"""The sum over all paths of a lattice as a topology defines it: slow, obvious, differentiable by autograd.

A node (t, u) says that u labels are out and frame t comes next; where labels may be held it also says
whether the last symbol was a label ("held"). Every arc of the topology that leaves it leads on::

    alpha(0, 0) = 1
    alpha(t, u) = sum over arcs into (t, u), from (t', u'), of alpha(t', u') p(symbol | t', u')
    P(y | x)    = alpha(T, U)
    loss        = -log P(y | x)

in the log domain below. For RNN-T these are equations 16 to 18 of Graves 2012: blank leads to (t+1, u), the
next label to (t, u+1). With the criterion "max" the sum is a maximum, and P that of the best path (Viterbi).
Two published departures, both off by default:

* delay penalty (Kang et al. 2023, "Delay-penalized transducer for low-latency streaming ASR"; k2):
  the score of a label at frame t += penalty ((T-1)/2 - t), which favours paths that emit early. It is part of
  the loss value.
* FastEmit (Yu et al. 2021, "FastEmit: low-latency streaming ASR with sequence-level emission
  regularization", eq. 9-11): the gradient that reaches the score of a label is multiplied by 1 + lambda. The
  value stays -log P(y | x), so that losses compare across lambda (warp-transducer and NeMo print it
  multiplied by 1 + lambda, with the same gradient).

Probability zero: an utterance without frames, or whose every path crosses a probability of zero, has
infinite loss and zero gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.lattice.arcs import LOG_ZERO, Lattice, Rules
from asr_kernels.lattice.topology import LABEL, REPEAT, Arc


class Node(NamedTuple):
    """Where a path is."""

    t: int
    u: int
    held: bool = False
    """The last symbol was a label; always False where the topology does not ask."""


def lattice_loss(scores: Tensor, lattice: Lattice) -> Tensor:
    """Losses (B,) from the log-probabilities (B, T, U+1, K) of the topology's symbols, durations included."""
    scores = torch.where(scores <= LOG_ZERO, -math.inf, scores)
    losses = [
        utterance_loss(scores[b, :T, : U + 1], lattice.targets[b, :U].tolist(), lattice.rules, b)
        for b, (T, U) in enumerate(zip(lattice.frames, lattice.labels, strict=True))
    ]
    return torch.stack(losses)


def utterance_loss(scores: Tensor, targets: Sequence[int], rules: Rules, b: int = 0) -> Tensor:
    """Loss, a scalar, of one utterance from its scores (T, U+1, K); row b of a band, if there is one."""
    T, U = scores.shape[0], len(targets)
    held = (False, True) if rules.topology.repeats else (False,)
    log_alpha: dict[Node, Tensor] = {Node(0, 0): scores.new_zeros(())}
    incoming: dict[Node, list[Tensor]] = defaultdict(list)
    for node in (Node(t, u, h) for t in range(T + 1) for u in range(U + 1) for h in held):
        if incoming[node]:
            log_alpha[node] = add_up(incoming[node], rules)
        if node not in log_alpha or node.t == T:
            continue
        for arc in rules.topology.arcs:
            if allowed(arc, node, T, targets, rules, b):
                to = Node(
                    node.t + arc.frames,
                    node.u + arc.labels,
                    rules.topology.repeats and arc.kind in (LABEL, REPEAT),
                )
                incoming[to].append(log_alpha[node] + arc_score(arc, node, scores, rules))
    finals = [log_alpha[node] for h in held if (node := Node(T, U, h)) in log_alpha]
    total = add_up(finals, rules) if finals and T > 0 else scores.new_tensor(-math.inf)
    if is_zero(total):
        return scores[:0].sum() + math.inf  # the empty sum keeps the loss differentiable, with gradient 0
    return -total


def arc_score(arc: Arc, node: Node, scores: Tensor, rules: Rules) -> Tensor:
    """Log-probability of the arc's symbol, and of its duration if it has one."""
    t, u, _ = node
    score = scores[t, u, arc.symbol] - rules.topology.sigma
    if arc.duration is not None:
        score = score + scores[t, u, arc.duration]
    if arc.kind == LABEL:
        T = scores.shape[0]
        score = scale_gradient(score, 1 + rules.fastemit) + rules.delay_penalty * ((T - 1) / 2 - t)
    return score


def allowed(arc: Arc, node: Node, T: int, targets: Sequence[int], rules: Rules, b: int) -> bool:
    """Whether a path may take the arc from the node."""
    (t, u, held), U, band = node, len(targets), rules.band
    if t + arc.frames > T or u + arc.labels > U:
        return False
    if arc.kind == REPEAT and not held:
        return False
    if arc.kind == LABEL:
        if rules.topology.ends_with_blank and t + arc.frames == T:
            return False
        if held and targets[u] == targets[u - 1]:
            return False
        if band is not None:
            expected = int(band.frames[b, u])
            if expected < 0 or abs(t - expected) > band.width:
                return False
    if held and band is not None and band.end_frames is not None:
        end = int(band.end_frames[b, u - 1])
        return t < end + band.width if arc.kind == REPEAT else t >= end - band.width
    return True


def add_up(log_terms: Sequence[Tensor], rules: Rules) -> Tensor:
    """The sum, or the maximum, of the terms; those of probability zero, without gradient, are left out."""
    terms = [term for term in log_terms if not is_zero(term)]
    if not terms:
        return torch.full_like(log_terms[0], -math.inf)
    if rules.criterion == "sum":
        return torch.logsumexp(torch.stack(terms), dim=0)
    return torch.stack(terms).max(dim=0).values


def is_zero(log_probability: Tensor) -> bool:
    """Whether it is the logarithm of zero; NaN is not."""
    return bool(log_probability == -math.inf)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The value of x, with `factor` times its gradient."""
    if factor == 1 or is_zero(x):
        return x
    return x + (factor - 1) * (x - x.detach())
