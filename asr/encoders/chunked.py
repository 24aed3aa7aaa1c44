"""What encoders that attend share: chunks of frames, for streams of any raggedness; contexts to choose from.

Frames wait until a chunk of the context is complete and go through the layers together; each layer keeps what
later chunks need (asr/layers/attention.py, convolution.py). A whole utterance goes through the same layers at
once, with the mask of its context instead of the caches. The last chunk of a stream is as short as what is
left of it: nothing is padded, so nothing is heard that was not said.

One set of weights serves every context: training draws one of `contexts` for each batch, and `with_context`
gives the same network with another one. Pooling halves the frame rate inside the stack (Dai et al. 2020,
Funnel-Transformer): the mean of two frames, the last one alone where their number is odd.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr import state as states
from asr.encoders.base import Encoder, EncoderOutput, generator_for
from asr.encoders.latency import Latency, context_for, trained_latencies
from asr.encoders.stack import StackConfig, run
from asr.errors import ConfigError
from asr.layers.attention import Positions, positions
from asr.layers.context import ContextConfig
from asr.layers.dropout import Dropout
from asr.layers.entrance import Entrance, EntranceOutput
from asr.layers.residual import begin_small
from asr.layers.window import gather_from, joined
from asr.lengths import padding_mask

WHOLE_BYTES = 4 << 30
"""What masks or scores of a whole signal may take."""
_BOOL, _FLOAT = 1, 4  # bytes


class ChunkedEncoderConfig(StackConfig):
    """What all encoders that attend in chunks have."""

    contexts: tuple[ContextConfig, ...] = Field((ContextConfig(),), min_length=1)
    """Training draws one for each batch; the first is that of dev and of use, unless another is chosen."""
    context_warmup_steps: int = Field(500, ge=0)
    """Optimiser steps with the first context alone, in which it settles what is heard where."""
    lookahead: int = Field(0, ge=0, le=64)
    """Encoder frames of future context, through a convolution before the stack."""

    @model_validator(mode="after")
    def _chunks_fit(self) -> Self:
        if self.lookahead and any(context.chunk is None for context in self.contexts):
            raise ValueError(
                "lookahead is for chunks, and full context sees all: set lookahead to 0, or every chunk"
            )
        for context in self.contexts:
            check_context(context, self.pooling)
        return self


def check_context(context: ContextConfig, pooling: int) -> None:
    """Raise ValueError if chunks cannot be pooled."""
    if context.chunk is not None and context.chunk % pooling:
        raise ValueError(
            f"chunk {context.chunk} is not a multiple of {pooling}, by which the frames are pooled: "
            f"{pooling * -(-context.chunk // pooling)} would do"
        )


@dataclass(frozen=True)
class History:
    """What the layers remember of a stream."""

    heard: Tensor
    """(B,) int64: frames that the caches really hold."""
    layers: tuple[Any, ...]


@dataclass(frozen=True)
class ChunkedState:
    """What a stream remembers."""

    entrance: Any
    waiting: Tensor
    """(B, chunk - 1, dim): frames of a chunk that is not complete."""
    waiting_lengths: Tensor
    """(B,) int64."""
    history: History


class Seen(NamedTuple):
    """What a layer needs to know of its frames (B, T, dim)."""

    valid: Tensor
    """(B, T) bool: within the lengths."""
    mask: Tensor | None
    """(B or 1, T or 1, L + T) bool: which of the L cached frames and the T own ones a frame attends to."""
    where: Positions
    chunk: int | None
    """Frames of a chunk, where several are treated at once."""


class Layer(nn.Module, ABC):
    """A layer of a chunked encoder."""

    @abstractmethod
    def forward(self, x: Tensor, seen: Seen, state: Any) -> tuple[Tensor, Any]:
        """(B, T, dim) -> (B, T, dim), whole (`state` None) or the next chunk; and the new state."""

    @abstractmethod
    def initial_state(self, batch: int, history: int, device: torch.device | None, dtype: torch.dtype) -> Any:
        """State of `batch` streams that have heard nothing; `history` frames will be remembered."""


class _Passed(NamedTuple):
    """Frames behind the stack."""

    y: Tensor
    y_lengths: Tensor
    states: tuple[Any, ...]
    """Of the layers; Nones for whole signals."""


class ChunkedEncoder(Encoder):
    """See the module docstring; (B, T, input_dim) -> (B, ceil(T / subsampling), dim)."""

    def __init__(
        self,
        config: ChunkedEncoderConfig,
        input_dim: int,
        frame_shift_s: float,
        make_layer: Callable[[], Layer],
        entrance: Any = None,
    ) -> None:
        """`entrance`: a module with what Entrance has, in place of the one that the config describes."""
        super().__init__()
        self.config = config
        self.input_dim, self.output_dim, self.frame_shift_s = input_dim, config.dim, frame_shift_s
        self.entrance = entrance or Entrance(config.subsampling, input_dim, config.dim, config.lookahead)
        self.subsampling = self.entrance.factor * self.config.pooling
        self.lookahead_frames = self.entrance.lookahead_frames
        self.context = config.contexts[0]
        self.layers = nn.ModuleList(make_layer() for _ in range(config.layers))
        begin_small(self.layers)
        self.norm: nn.Module = nn.Identity()
        """Behind the last layer."""
        self.dropout = Dropout(config.dropout)

    @property
    def streaming(self) -> bool:  # type: ignore[override]
        """Whether chunks can be fed as they come, with the context as it is."""
        return self.context.streaming

    @property
    def why_not_streaming(self) -> str:
        """See Encoder.why_not_streaming."""
        if self.context.chunk is None:
            return "its context is the whole utterance"
        return "it remembers all that it has heard"

    @property
    def what_would_stream(self) -> str:
        """See Encoder.what_would_stream."""
        live = [latency for latency in self.latencies if latency.chunk_s is not None]
        if not live:
            return super().what_would_stream
        chunks = ", ".join(latency.name for latency in live)
        return f"choose one of its latencies, {chunks} ms (--latency {live[0].name})"

    @property
    def chunk_frames(self) -> int:
        """Feature frames that are heard before the first output of a chunk."""
        return self.entrance.factor * (self.context.chunk or 1)

    @property
    def flush_frames(self) -> int:
        """Zero frames that stand behind the end of every signal."""
        return self.entrance.factor - 1 + self.lookahead_frames

    @property
    def longest_stored_s(self) -> float:
        """See Encoder.longest_stored_s: what is stored of every two frames decides."""
        mask = 0 if self.context.chunk is None else 3 * _BOOL + _FLOAT
        scores = 4 * _FLOAT * self.config.heads if self.config.positions == "relative" else 0
        frames = math.sqrt(WHOLE_BYTES / max(1, mask + scores))
        return min(super().longest_stored_s, frames * self._frame_s)

    @property
    def latencies(self) -> tuple[Latency, ...]:
        """See Encoder.latencies: those that it was trained for, in order, the whole utterance last."""
        return trained_latencies(self.config.contexts, self._frame_s)

    def with_context(self, context: ContextConfig) -> Self:
        """The same network, its weights shared, that sees another context. Raises ConfigError."""
        try:
            check_context(context, self.config.pooling)
            if context.chunk is None and self.entrance.lookahead is not None:
                raise ValueError("this network has a lookahead, which is for chunks: choose a chunk")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        view = copy.copy(self)
        view.context = context
        return view

    def with_latency(self, latency: Latency) -> Self:
        """See Encoder.with_latency."""
        return self.with_context(
            context_for(latency, self.config.contexts, self._frame_s, self.config.pooling)
        )

    @property
    def _frame_s(self) -> float:
        """Seconds of a frame that enters the stack."""
        return self.entrance.factor * self.frame_shift_s

    def at_step(self, step: int | None, view: int = 0) -> Self:
        """See Encoder.at_step: with one of the contexts that it is trained for, drawn anew for each step and
        view.

        The draw depends on them alone: processes that train together all hear the same context.
        """
        contexts = self.config.contexts
        if len(contexts) == 1 or (step is not None and step < self.config.context_warmup_steps):
            return self
        generator = torch.default_generator if step is None else generator_for(step, view)
        return self.with_context(contexts[int(torch.randint(len(contexts), (), generator=generator))])

    @property
    def blocks(self) -> list[nn.Module]:
        """See Encoder.blocks."""
        return list(self.layers)

    def check_steps(self, steps: int) -> None:
        """See Encoder.check_steps: the warm-up has to leave time for the other contexts."""
        warmup, others = self.config.context_warmup_steps, len(self.config.contexts) - 1
        if others and warmup >= steps:
            raise ConfigError(
                f"context_warmup_steps is {warmup} and the training has {steps} steps: {others} contexts "
                f"would never be heard; set network.encoder.context_warmup_steps, {steps // 10} would do"
            )

    def encode(self, x: Tensor, x_lengths: Tensor, state: ChunkedState | None) -> EncoderOutput:
        """See Encoder.forward."""
        x, x_lengths, entrance = self.enter(x, x_lengths, state)
        x = self.dropout(x)
        if state is None:
            passed = self._whole(x, x_lengths)
            return EncoderOutput(passed.y, passed.y_lengths, None)
        assert entrance is not None
        frames, lengths = joined(state.waiting, state.waiting_lengths, x, x_lengths)
        y, y_lengths, history = self._complete_chunks(frames, lengths, state.history)
        used = lengths // self._chunk * self._chunk
        waiting = gather_from(frames, used, self._chunk - 1)
        new = ChunkedState(entrance, waiting, lengths - used, history)
        return EncoderOutput(y, y_lengths, new)

    def enter(self, x: Tensor, x_lengths: Tensor, state: ChunkedState | None) -> EntranceOutput:
        """Frames that enter the stack."""
        out: EntranceOutput = self.entrance(x, x_lengths, None if state is None else state.entrance)
        return out

    def flush(self, state: ChunkedState) -> EncoderOutput:
        """End the streams: what waited for lookahead, and the last chunk, as long as it is."""
        y, y_lengths, state = super().flush(state)
        rest = state.waiting_lengths
        if not bool(rest.any()):
            return EncoderOutput(y, y_lengths, state)
        last = self._step(state.waiting[:, : int(rest.max())], rest, state.history)
        return EncoderOutput(*joined(y, y_lengths, last.y, last.y_lengths), state)

    def fresh_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> ChunkedState:
        """See Encoder.fresh_state."""
        waiting = torch.zeros(batch, self._chunk - 1, self.output_dim, device=device, dtype=dtype)
        none = torch.zeros(batch, dtype=torch.int64, device=device)
        layers = tuple(
            layer.initial_state(batch, self.context.history // pooling, device, dtype)
            for layer, pooling in self._levels()
        )
        entrance = self.entrance.initial_state(batch, device, dtype)
        return ChunkedState(entrance, waiting, none, History(none, layers))

    @property
    def _chunk(self) -> int:
        """Frames of a chunk of a stream."""
        assert self.context.chunk is not None
        return self.context.chunk

    def _levels(self) -> Iterator[tuple[Layer, int]]:
        """Every layer, and by how much the frames before it are pooled."""
        pooling = 1
        for number, layer in enumerate(self.layers):
            pooling *= 1 + (number in self.config.pool_after)
            assert isinstance(layer, Layer)
            yield layer, pooling

    def _whole(self, x: Tensor, lengths: Tensor) -> _Passed:
        """Whole signals, with the mask of the context."""

        def seen(x: Tensor, lengths: Tensor, pooling: int) -> Seen:
            valid, here = padding_mask(lengths, x.shape[1]), self.context.pooled(pooling)
            mask = valid[:, None]
            if here.chunk is not None:
                mask = mask & here.mask(x.shape[1], x.device)
            return Seen(valid, _needed(mask), self._positions(0, x), here.chunk)

        return self._through(x, lengths, seen, (None,) * len(self.layers))

    def _step(self, x: Tensor, lengths: Tensor, history: History) -> _Step:
        """One chunk (B, T, dim) of every stream, of which `lengths` are there."""

        def seen(x: Tensor, lengths: Tensor, pooling: int) -> Seen:
            valid, cached = padding_mask(lengths, x.shape[1]), self.context.history // pooling
            place = torch.arange(cached, device=x.device)[None]
            real = place >= cached - history.heard[:, None] // pooling
            mask = torch.cat((real, valid), dim=1)[:, None]
            return Seen(valid, _needed(mask), self._positions(cached, x), None)

        passed = self._through(x, lengths, seen, history.layers)
        heard = (history.heard + lengths).clamp(max=self.context.history)
        return _Step(passed.y, passed.y_lengths, History(heard, passed.states))

    def _complete_chunks(self, frames: Tensor, lengths: Tensor, history: History) -> _Step:
        """All chunks that are complete, one after the other."""
        complete, chunk = lengths // self._chunk, self._chunk
        size = chunk // self.config.pooling
        y = frames.new_zeros(len(frames), int(complete.max()) * size, self.output_dim)
        for number in range(int(complete.max())):
            part = frames[:, number * chunk : (number + 1) * chunk]
            place = slice(number * size, (number + 1) * size)
            ready = (complete > number).nonzero().squeeze(-1)
            if len(ready) == len(frames):
                y[:, place], _, history = self._step(part, torch.full_like(ready, chunk), history)
            else:
                step = self._step(part[ready], torch.full_like(ready, chunk), states.select(history, ready))
                y[ready, place] = step.y
                history = states.put(history, ready, step.history)
        return _Step(y, complete * size, history)

    def _through(
        self,
        x: Tensor,
        lengths: Tensor,
        seen: Callable[[Tensor, Tensor, int], Seen],
        layers: tuple[Any, ...],
    ) -> _Passed:
        """All layers; `seen` makes what they need to know, for every frame rate once."""
        new, before = [], 0
        for (layer, pooling), state in zip(self._levels(), layers, strict=True):
            if pooling != before:
                if before:
                    x, lengths = _pooled(x, lengths)
                what, before = seen(x, lengths, pooling), pooling
            x, state = run(layer, x, what, state, again=self.config.checkpointing)
            new.append(state)
        x = self.norm(x)
        if len(self.layers) in self.config.pool_after:
            x, lengths = _pooled(x, lengths)
        return _Passed(x, lengths, tuple(new))

    def _positions(self, cached: int, x: Tensor) -> Positions:
        return positions(self.config.positions, self.config.dim, self.config.heads, cached, x.shape[1], x)


class _Step(NamedTuple):
    """What a chunk brought."""

    y: Tensor
    y_lengths: Tensor
    history: History


def _needed(mask: Tensor) -> Tensor | None:
    """The mask, or None if it hides nothing. A frame that nothing is left for (padding) sees everything."""
    if bool(mask.all()):
        return None
    return mask | ~mask.any(dim=-1, keepdim=True)


def _pooled(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ceil(T / 2), dim): means of two frames, of one at an odd end."""
    valid = padding_mask(lengths, x.shape[1])[..., None]
    odd = x.shape[1] % 2
    pairs = functional.pad(x.masked_fill(~valid, 0.0), (0, 0, 0, odd)).view(len(x), -1, 2, x.shape[2])
    count = functional.pad(valid, (0, 0, 0, odd)).view(len(x), -1, 2, 1).sum(dim=2)
    return pairs.sum(dim=2) / count.clamp(min=1), (lengths + 1) // 2
