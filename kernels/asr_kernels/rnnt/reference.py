"""The transducer loss as its papers write it: slow, obvious, differentiable by autograd.

An utterance of T frames and U labels y_1..y_U spans a lattice of nodes (t, u), 0 <= t < T, 0 <= u <= U:
"u labels are out and frame t is being read". From each node a blank leads to (t+1, u) with probability
b(t, u) and the next label to (t, u+1) with probability y(t, u). With alpha(t, u) the probability of
reaching a node (Graves 2012, "Sequence transduction with recurrent neural networks", eq. 16-18, frames
counted from 0 here)::

    alpha(0, 0) = 1
    alpha(t, u) = alpha(t-1, u) b(t-1, u) + alpha(t, u-1) y(t, u-1)
    P(y | x)    = alpha(T-1, U) b(T-1, U)
    loss        = -log P(y | x)

all in the log domain below. Two published departures, both off by default:

* delay penalty (Kang et al. 2023, "Delay-penalized transducer for low-latency streaming ASR"; k2):
  log y(t, u) += penalty ((T-1)/2 - t), which favours paths that emit early. It is part of the loss value.
* FastEmit (Yu et al. 2021, "FastEmit: low-latency streaming ASR with sequence-level emission
  regularization", eq. 9-11): the gradient that reaches log y(t, u) is multiplied by 1 + lambda. The value
  stays -log P(y | x), so that losses compare across lambda (warp-transducer and NeMo print it multiplied
  by 1 + lambda, with the same gradient).

Probability zero: an utterance without frames, or whose every path crosses a probability of zero (logits of
-inf), has infinite loss and zero gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Sequence[int],
    target_lengths: Sequence[int],
    blank: int,
    fastemit: float,
    delay_penalty: float,
) -> Tensor:
    """Loss (B,) of each utterance of logits (B, T, U+1, V), targets (B, U); float64 stays float64."""
    losses = [
        utterance_loss(logits[b, :T, : U + 1], targets[b, :U].tolist(), blank, fastemit, delay_penalty)
        for b, (T, U) in enumerate(zip(logit_lengths, target_lengths, strict=True))
    ]
    return torch.stack(losses)


def utterance_loss(
    logits: Tensor, targets: Sequence[int], blank: int, fastemit: float = 0.0, delay_penalty: float = 0.0
) -> Tensor:
    """Loss of one utterance, a scalar, from its logits (T, U+1, V) and its U targets."""
    T, U = logits.shape[0], len(targets)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = logits.to(dtype).log_softmax(dim=-1)

    def log_b(t: int, u: int) -> Tensor:
        return log_probs[t, u, blank]

    def log_y(t: int, u: int) -> Tensor:
        label = scale_gradient(log_probs[t, u, targets[u]], 1 + fastemit)
        return label + delay_penalty * ((T - 1) / 2 - t)

    log_alpha: dict[tuple[int, int], Tensor] = {}
    for t in range(T):
        for u in range(U + 1):
            arcs = [log_probs.new_zeros(())] if t == u == 0 else []
            if t > 0:
                arcs.append(log_alpha[t - 1, u] + log_b(t - 1, u))
            if u > 0:
                arcs.append(log_alpha[t, u - 1] + log_y(t, u - 1))
            log_alpha[t, u] = log_sum(arcs)
    if T == 0 or is_zero(log_alpha[T - 1, U] + log_b(T - 1, U)):
        return log_probs[:0].sum() + math.inf  # the empty sum keeps the loss differentiable, with gradient 0
    return -(log_alpha[T - 1, U] + log_b(T - 1, U))


def log_sum(log_terms: Sequence[Tensor]) -> Tensor:
    """log sum_i exp(log_terms[i]); terms of probability zero are left out, as they have no gradient."""
    terms = [term for term in log_terms if not is_zero(term)]
    return torch.logsumexp(torch.stack(terms), dim=0) if terms else torch.full_like(log_terms[0], -math.inf)


def is_zero(log_probability: Tensor) -> bool:
    """Whether it is the logarithm of zero; NaN is not."""
    return bool(log_probability == -math.inf)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The value of x, with `factor` times its gradient."""
    if factor == 1 or is_zero(x):
        return x
    return x + (factor - 1) * (x - x.detach())
