"""The contract of every encoder: `forward(x, x_lengths, state)`; offline is one large chunk.

Feature frames go in, encoder frames come out, `subsampling` times fewer. With `state` None, x is the whole
signal and every frame of it is answered: ceil(T / subsampling) outputs. With a state, x is the next chunk
of each stream, of any size, a different one for each stream if need be; outputs come as soon as their
lookahead has been heard, and `flush` ends the streams. In any chunking the outputs are the same, to 1e-4.

Output frame i stands for the feature frames i s .. i s + s - 1 (s = subsampling); `last_needed(i)` is the
last one that it may depend on. The whole is padded with `flush_frames` zero frames (zero is the mean after
normalisation), and flushing feeds the very same frames, which is why the two agree.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.latency import Latency, whole_frames
from asr.errors import ConfigError, StreamingError
from asr.lengths import padding_mask
from asr.state import batch_size

LONGEST_WHOLE_S = 1800.0
"""A signal that is encoded at once, where its length alone decides."""


class EncoderOutput(NamedTuple):
    """What an encoder answers."""

    y: Tensor
    """(B, T', output_dim); frames beyond y_lengths are undefined."""
    y_lengths: Tensor
    """(B,) int64."""
    state: Any
    """State for the next chunk; None if none was passed in."""


def generator_for(*seeds: int) -> torch.Generator:
    """Draws the modes of training: seeded by step and view, it is the same in all processes."""
    # A generator takes 32 bits of a seed, and looks at no more.
    return torch.Generator().manual_seed(int(np.random.default_rng(seeds).integers(1 << 32)))


class Encoder(nn.Module, ABC):
    """Base of all encoders; subclasses set the attributes and implement `encode` and `initial_state`."""

    streaming: bool
    """Whether chunks can be fed as they come."""
    output_dim: int
    subsampling: int
    """Feature frames per encoder frame."""
    lookahead_frames: int
    """Feature frames that an output needs beyond its own block."""
    frame_shift_s: float
    """Seconds per feature frame."""
    period_s: float = math.inf
    """Seconds after which its positions begin anew; in a longer signal that is heard whole they mislead."""
    step_outputs: int = 1
    """Outputs that a live stream waits for at once; of a causal encoder any number gives the same ones."""

    @property
    def why_not_streaming(self) -> str:
        """What keeps an encoder whose `streaming` is False from it."""
        return "it sees the whole utterance"

    @property
    def what_would_stream(self) -> str:
        """What to do where this cannot stream."""
        return "give it whole recordings, or windows (--window 30), or train a streaming configuration"

    @property
    def chunk_frames(self) -> int:
        """Feature frames of a live stream's step."""
        return self.subsampling * self.step_outputs

    @property
    def flush_frames(self) -> int:
        """Zero frames that stand behind the end of every signal."""
        return self.subsampling - 1 + self.lookahead_frames

    def last_needed(self, output: int) -> int:
        """The last feature frame that an output frame may depend on."""
        return (
            (output * self.subsampling // self.chunk_frames + 1) * self.chunk_frames
            - 1
            + self.lookahead_frames
        )

    @property
    def frame_rate(self) -> float:
        """Encoder frames per second."""
        return 1.0 / (self.frame_shift_s * self.subsampling)

    @property
    def latencies(self) -> tuple[Latency, ...]:
        """What `with_latency` can choose between; empty if it has no choice."""
        return ()

    @property
    def longest_stored_s(self) -> float:
        """Seconds of a signal that fit into a few GiB when encoded at once."""
        return LONGEST_WHOLE_S

    @property
    def longest_whole_s(self) -> float:
        """Seconds of a signal that can be encoded at once: what fits, and what its positions are good for."""
        return min(self.longest_stored_s, math.inf if self.streaming else self.period_s)

    @property
    def lookahead_s(self) -> float:
        """Seconds that an output needs beyond its own block of frames."""
        return self.lookahead_frames * self.frame_shift_s

    @property
    def algorithmic_latency_s(self) -> float:
        """Seconds from the start of an output's block until all frames that it needs have begun, at worst.

        Infinite if the encoder waits for the end of the utterance.
        """
        if not self.streaming:
            return math.inf
        return (self.chunk_frames - 1 + self.lookahead_frames) * self.frame_shift_s

    def forward(self, x: Tensor, x_lengths: Tensor, state: Any = None) -> EncoderOutput:
        """Encode whole signals (`state` None) or the next chunk of every stream.

        x: (B, T, D) float; x_lengths: (B,) int64 valid frames, which may be 0 in a stream.
        Raises StreamingError if a state is passed to an encoder that cannot stream.
        """
        # Whatever stands behind a shorter utterance in the batch must not differ from its flush.
        x = x.masked_fill(~padding_mask(x_lengths, x.shape[1])[:, :, None], 0.0)
        if state is None:
            x = functional.pad(x, (0, 0, 0, self.flush_frames))
            x_lengths = x_lengths + self.flush_frames
        else:
            self.require_streaming()
        return self.encode(x, x_lengths, state)

    def flush(self, state: Any) -> EncoderOutput:
        """End the streams: the outputs that were waiting for lookahead."""
        reference = next(self.parameters())
        batch = self.batch_of(state)
        x = reference.new_zeros(batch, self.flush_frames, self.input_dim)
        lengths = torch.full((batch,), self.flush_frames, dtype=torch.int64, device=reference.device)
        return self.forward(x, lengths, state)

    def with_latency(self, latency: Latency) -> Encoder:
        """The same network, its weights shared, that answers then. Raises ConfigError if it cannot.

        A causal encoder hears so much at once as a live stream, which costs less; what it says stays the
        same.
        """
        self.require_streaming()
        if latency.chunk_s is None or latency.left_s is not None:
            raise ConfigError(
                "this encoder remembers what it was trained to and needs no more than it hears: choose "
                "how much it hears at once, e.g. --latency 160, or leave --latency out"
            )
        view = copy.copy(self)
        view.step_outputs = whole_frames(latency.chunk_s, self.subsampling * self.frame_shift_s)
        return view

    def at_step(self, step: int | None, view: int = 0) -> Encoder:
        """What the next batch of training goes through: the same network, maybe in another of its modes.

        `step` is the optimiser step, for what warms up; None is after that. Of an utterance in several
        views (asr.losses.consistency), each may go through a mode of its own.
        """
        return self

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers whose parameters only their own `forward` uses: training may keep each apart (sharding)."""
        return []

    def check_steps(self, steps: int) -> None:
        """Raise ConfigError if a training of so many optimiser steps would leave out some of its modes."""

    def require_streaming(self) -> None:
        """Raise StreamingError with the reason if this encoder cannot stream."""
        if not self.streaming:
            raise StreamingError(
                f"this encoder cannot stream: {self.why_not_streaming}; {self.what_would_stream}"
            )

    input_dim: int

    @abstractmethod
    def encode(self, x: Tensor, x_lengths: Tensor, state: Any) -> EncoderOutput:
        """The encoder itself; padding and checks are done."""

    @abstractmethod
    def fresh_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Any:
        """What `initial_state` gives; the encoder can stream."""

    def initial_state(
        self, batch: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """State of `batch` streams that have heard nothing, where and of the dtype that the weights are.

        Raises StreamingError if the encoder cannot stream.
        """
        self.require_streaming()
        weights = next(self.parameters())
        return self.fresh_state(batch, device or weights.device, dtype or weights.dtype)

    @staticmethod
    def batch_of(state: Any) -> int:
        """Number of streams in `state`."""
        return batch_size(state)
