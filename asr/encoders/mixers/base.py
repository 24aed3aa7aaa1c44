"""The contract of every mixer: (B, T, dim) -> (B, T, dim), causal, with explicit state.

A whole signal is one long piece. Fed in pieces of any size, a different one for each stream of a batch, with
the returned state, a mixer gives the same; so an encoder made of mixers streams without further code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr.config import Config
from asr.layers.residual import Branch


class MixerOutput(NamedTuple):
    """What a mixer answers."""

    y: Tensor
    """(B, T, dim); frames beyond the lengths are anything finite."""
    state: Any


class Mixer(Branch, ABC):
    """Base of all mixers; `out` is their last layer."""

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor | None, state: Any) -> MixerOutput:
        """The next piece of every stream, behind `state`.

        x: (B, T, dim), normalised; T may be 0. lengths: (B,) int64 frames that are there; beyond them x is
        finite and leaves the state alone. None: all of T.
        """

    @abstractmethod
    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Any:
        """State of `batch` streams that have heard nothing: a batch-first tensor, or a tuple of them.

        `dtype` is that of the weights; what is summed up over many frames may be wider.
        """


class MixerConfig(Config):
    """Settings of a mixer; each file names its own as CONFIG."""

    kind: str
    """The name of the file."""

    def build(self, dim: int) -> Mixer:
        """The mixer for frames of width `dim`. Raises ValueError if they do not go together."""
        raise NotImplementedError
