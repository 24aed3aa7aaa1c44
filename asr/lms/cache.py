"""The neural cache: what was said lately is likely to be said again.

    p_cache(l)  proportional to  sum over remembered i of [l_i = l] exp(sharpness * h . h_i)
    p(l) = (1 - weight) p_model(l) + weight p_cache(l)

h is what the model's output layer reads, h_i what it read when l_i came next; the last `size` pairs are
remembered. Nothing is trained. Source: Grave, Joulin and Usunier 2017, "Improving neural language models with
a continuous cache". Departure: of h . h_i the largest is taken off first, which changes nothing but overflow.

It pays for models of words and pieces of words; single letters recur whatever the subject is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.lms.neural import BOUNDARY, NeuralLm, NeuralState, next_scores


class CacheConfig(Config):
    """What is remembered, and how much it counts."""

    size: int = Field(500, ge=1, le=100_000)
    """Labels remembered; the state takes 4 * dim + 8 bytes for each."""
    weight: float = Field(0.1, gt=0, lt=1)
    sharpness: float = Field(0.3, ge=0)
    """0 counts all that is remembered alike, whatever came before it."""


@dataclass(frozen=True)
class CacheState:
    """What a hypothesis remembers."""

    scores: Tensor
    """(N, V) as NeuralState."""
    ends: Tensor
    """(N,)."""
    model: NeuralState
    keys: Tensor
    """(N, size, dim): h before each label, the latest last."""
    labels: Tensor
    """(N, size) int64."""
    filled: Tensor
    """(N,) int64: how many of them are real."""


class NeuralCache:
    """A neural language model with a cache: an `asr.lms.base.Scorer`."""

    def __init__(self, model: NeuralLm, config: CacheConfig) -> None:
        self.model, self.config, self.vocab_size = model, config, model.vocab_size

    def initial_state(self, batch: int, device: torch.device | None = None) -> CacheState:
        """See Scorer: nothing is remembered."""
        model = self.model.initial_state(batch, device)
        keys = model.h.new_zeros(batch, self.config.size, model.h.shape[1])
        labels = torch.zeros(batch, self.config.size, dtype=torch.int64, device=keys.device)
        return CacheState(model.scores, model.ends, model, keys, labels, torch.zeros_like(labels[:, 0]))

    def score(self, state: CacheState) -> Tensor:
        """See Scorer."""
        return state.scores

    def advance(self, state: CacheState, labels: Tensor) -> CacheState:
        """See Scorer."""
        return self._remember(state, labels, self.model.advance(state.model, labels))

    def end(self, state: CacheState) -> Tensor:
        """See Scorer."""
        return state.ends

    def next_sentence(self, state: CacheState) -> CacheState:
        """The start of another sentence, of which the cache knows the ones before; the model does not."""
        rows = len(state.filled)
        return self._remember(state, torch.full_like(state.filled, BOUNDARY), self.model.initial_state(rows))

    @torch.no_grad()
    def _remember(self, state: CacheState, labels: Tensor, model: NeuralState) -> CacheState:
        keys = torch.cat((state.keys[:, 1:], state.model.h[:, None]), dim=1)
        said = torch.cat((state.labels[:, 1:], labels[:, None]), dim=1)
        filled = (state.filled + 1).clamp(max=self.config.size)
        mixed = self._mixed(model, keys, said, filled)
        return CacheState(*next_scores(mixed), model, keys, said, filled)

    def _mixed(self, model: NeuralState, keys: Tensor, said: Tensor, filled: Tensor) -> Tensor:
        """(N, V) log-probabilities of both together, that of the end in column 0; something is remembered."""
        places = torch.arange(self.config.size, device=keys.device)
        real = places >= self.config.size - filled[:, None]
        likeness = self.config.sharpness * torch.einsum("nsd,nd->ns", keys, model.h).float()
        share = likeness.masked_fill(~real, -torch.inf).softmax(dim=1)
        cached = torch.zeros_like(model.scores).scatter_add(1, said, share)
        own = model.scores.clone()
        own[:, BOUNDARY] = model.ends
        weight = self.config.weight
        return ((1 - weight) * own.exp() + weight * cached).log()
