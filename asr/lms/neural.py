"""What the neural language models share: the output layer, the loss, and the Scorer contract.

    h_u = body(<s>, l_1 .. l_u)        log p(l_{u+1} | l_1 .. l_u) = log softmax(W h_u + b)

Label 0, the blank of a recogniser, is never said and stands for the boundary of a sentence: as input <s>, as
output </s>. So the models have the recogniser's own ids, and one row is enough for both ends.

A body is a network from labels to vectors with explicit state (asr.lms.recurrent, asr.lms.transformer). With
tied weights W is the embedding of the labels (Press and Wolf 2017, Inan et al. 2017).

Regularisation (Merity et al. 2017, "Revisiting activation regularization for language RNNs"), in each
position:  AR alpha * mean_d dropped(h_u)^2,  TAR beta * mean_d (h_{u+1} - h_u)^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.lengths import padding_mask

BOUNDARY = 0
"""The label of the start and of the end of a sentence."""


class Extended(NamedTuple):
    """What a body answers."""

    h: Tensor
    """(B, U, dim), one vector after each label."""
    state: Any


class LmLosses(NamedTuple):
    """Of each sentence."""

    nats: Tensor
    """(B,) float32: -log p of its labels and of its end."""
    penalty: Tensor
    """(B,) float32: AR and TAR, summed over the positions."""


@dataclass(frozen=True)
class NeuralState:
    """What a hypothesis remembers, and what may come next."""

    scores: Tensor
    """(N, V) float32 log-probability of every label if it came next; 0 for blank."""
    ends: Tensor
    """(N,) float32 log-probability of the end."""
    h: Tensor
    """(N, dim): what the output layer has read."""
    body: Any


class NeuralLm(nn.Module, ABC):
    """Base of all neural language models: an `asr.lms.base.Scorer`, in evaluation mode."""

    vocab_size: int
    dim: int
    """Of h."""
    ar: float = 0.0
    tar: float = 0.0

    def __init__(self, vocab_size: int, dim: int, tied: bool) -> None:
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.output = None if tied else nn.Parameter(torch.empty(vocab_size, dim).uniform_(-0.1, 0.1))

    @abstractmethod
    def extend(self, labels: Tensor, state: Any) -> Extended:
        """Go on from `state` with labels (B, U) int64; a sentence begins with BOUNDARY."""

    @abstractmethod
    def nothing(self, batch: int) -> Any:
        """State of the body before the first label."""

    @abstractmethod
    def logits(self, h: Tensor) -> Tensor:
        """(..., dim) -> (..., V)."""

    def dropped(self, h: Tensor) -> Tensor:
        """h (B, U, dim) behind the dropout before the output layer."""
        return h

    def whole(self, labels: Tensor) -> Tensor:
        """(B, U) labels -> (B, U + 1, V) float32 log-probabilities: before the first label and after each.

        Column 0 is that of the end. What stands beyond a row's length does not matter for what is before it.
        """
        inputs = functional.pad(labels, (1, 0), value=BOUNDARY)
        h = self.dropped(self.extend(inputs, self.nothing(len(labels))).h)
        return self.logits(h).float().log_softmax(dim=-1)

    def losses(self, labels: Tensor, lengths: Tensor) -> LmLosses:
        """What is minimised, of sentences (B, U) int64, padded with 0, and lengths (B,)."""
        targets = functional.pad(labels, (0, 1), value=BOUNDARY)
        inputs = functional.pad(labels, (1, 0), value=BOUNDARY)
        real = padding_mask(lengths + 1, targets.shape[1])
        raw = self.extend(inputs, self.nothing(len(labels))).h
        h = self.dropped(raw)
        logits = self.logits(h).float()
        nats = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        nats = nats.masked_fill(~real, 0).sum(dim=1)
        penalty = torch.zeros_like(nats)
        if self.ar:
            penalty = penalty + self.ar * _masked_sum(h.float().square().mean(dim=2), real)
        if self.tar:
            change = (raw[:, 1:] - raw[:, :-1]).float().square().mean(dim=2)
            penalty = penalty + self.tar * _masked_sum(change, real[:, 1:])
        return LmLosses(nats, penalty)

    @torch.no_grad()
    def initial_state(self, batch: int, device: torch.device | None = None) -> NeuralState:
        """See Scorer; the state is where the model is, whatever `device` says."""
        return self._after(
            torch.zeros(batch, dtype=torch.int64, device=self.bias.device), self.nothing(batch)
        )

    def score(self, state: NeuralState) -> Tensor:
        """See Scorer."""
        return state.scores

    @torch.no_grad()
    def advance(self, state: NeuralState, labels: Tensor) -> NeuralState:
        """See Scorer; BOUNDARY as label begins a sentence without forgetting what was before it."""
        return self._after(labels, state.body)

    def end(self, state: NeuralState) -> Tensor:
        """See Scorer."""
        return state.ends

    def _after(self, labels: Tensor, body: Any) -> NeuralState:
        h, new = self.extend(labels[:, None], body)
        return NeuralState(*next_scores(self.logits(h[:, 0])), h[:, 0], new)


class NextScores(NamedTuple):
    """As the Scorer contract has them."""

    scores: Tensor
    ends: Tensor


def next_scores(logits: Tensor) -> NextScores:
    """Scores of logits (N, V), normalised or not, whose column 0 is the end's."""
    log_probs = logits.float().log_softmax(dim=-1)
    ends = log_probs[:, BOUNDARY].clone()
    log_probs[:, BOUNDARY] = 0
    return NextScores(log_probs, ends)


def _masked_sum(x: Tensor, real: Tensor) -> Tensor:
    return x.masked_fill(~real, 0).sum(dim=1)
