"""The encoder of Whisper, made to stream: its weights are a good beginning for a recogniser of speech.

    x = GELU(conv(GELU(conv(features))) of stride 2) + sinusoids
    x = x + MHSA(x)      x = x + FFN(x)                             (pre-norm, GELU; `layers` of them)
    y = LayerNorm(x)

Radford et al. 2022, "Robust speech recognition via large-scale weak supervision", section 2.2. In full
context this is Whisper's encoder, weight for weight (asr/encoders/whisper_weights.py reads them). Departures:
attention in chunks with a limited history, as in every encoder here that attends (asr/encoders/chunked.py);
positions begin anew after 30 seconds (asr/layers/sinusoids.py), which training rehearses: some utterances
begin in the middle (`anywhere`); a signal ends where it ends, where Whisper hears silence up to 30 seconds;
the frames can be pooled behind the last layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.base import generator_for
from asr.encoders.chunked import ChunkedEncoder, ChunkedEncoderConfig, ChunkedState, Layer, Seen
from asr.layers.attention import AttentionState, PositionKind, SelfAttention
from asr.layers.convolution import StreamingConvolution
from asr.layers.entrance import EntranceOutput
from asr.layers.feedforward import FeedForward
from asr.layers.sinusoids import PERIOD, sinusoids
from asr.layers.subsampling import SubsamplingConfig
from asr.layers.window import WindowState


class WhisperEncoderConfig(ChunkedEncoderConfig):
    """Whisper's encoder; the defaults are those of its size `tiny`."""

    OWN: ClassVar = ("subsampling", "lookahead", "positions")
    """What is as it is."""

    kind: Literal["whisper"] = "whisper"
    dim: int = Field(384, ge=4)
    heads: int = Field(6, ge=1)
    layers: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Whisper was trained without: a few of its channels carry much, and it does not stand to lose them."""
    positions: PositionKind = "none"
    subsampling: SubsamplingConfig = SubsamplingConfig(factor=2)
    anywhere: float = Field(0.2, ge=0, le=1)
    """Share of the utterances in training that begin at a random position, as if they went on."""

    @model_validator(mode="after")
    def _as_it_is(self) -> Self:
        for name in self.OWN:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"a Whisper encoder has {name} of its own: leave {name} out")
        return self


@dataclass(frozen=True)
class WhisperEntranceState:
    """What a stream remembers."""

    first: WindowState
    second: WindowState
    position: Tensor
    """(B,) int64: of the next frame, below PERIOD."""


class WhisperEntrance(nn.Module):
    """(B, T, input_dim) -> (B, T', dim), half as many frames, with positions."""

    factor = 2
    lookahead_frames = 1
    """The second convolution ends one frame behind its block, and the first one hears one more."""
    lookahead = None

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.first = StreamingConvolution(input_dim, dim, 3, left=1)
        self.second = StreamingConvolution(dim, dim, 3, stride=2, left=1)

    def forward(
        self, x: Tensor, x_lengths: Tensor, state: WhisperEntranceState | None, begin: Tensor | None = None
    ) -> EntranceOutput:
        """Whole signals with `state` None, the first frame at `begin` (B,) or 0, else the next chunk."""
        first = self.first(x, x_lengths, None if state is None else state.first)
        # The first convolution has zeros before the signal and so has the second, as padding would give it.
        second = self.second(
            functional.gelu(first.y), first.y_lengths, None if state is None else state.second
        )
        y, y_lengths = functional.gelu(second.y), second.y_lengths
        if state is not None:
            begin = state.position
        place = torch.arange(y.shape[1], device=y.device)[None]
        if begin is not None:
            place = place + begin[:, None]
        y = y + sinusoids(place, y.shape[2]).to(y.dtype)
        new = None
        if state is not None:
            position = (state.position + y_lengths) % PERIOD
            new = WhisperEntranceState(first.state, second.state, position)
        return EntranceOutput(y, y_lengths, new)

    def initial_state(
        self, batch: int, device: torch.device | None, dtype: torch.dtype
    ) -> WhisperEntranceState:
        """State of `batch` streams that have heard nothing."""
        return WhisperEntranceState(
            self.first.initial_state(batch, device, dtype),
            self.second.initial_state(batch, device, dtype),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )


class WhisperEncoder(ChunkedEncoder):
    """See the module docstring."""

    entrance: WhisperEntrance

    def __init__(self, config: WhisperEncoderConfig, input_dim: int, frame_shift_s: float) -> None:
        entrance = WhisperEntrance(input_dim, config.dim)
        super().__init__(config, input_dim, frame_shift_s, lambda: WhisperLayer(config), entrance)
        self.norm = nn.LayerNorm(config.dim)
        self.period_s = PERIOD * entrance.factor * frame_shift_s
        self.anywhere: torch.Generator | None = None
        """Draws where utterances begin; without it, at 0."""

    def at_step(self, step: int | None, view: int = 0) -> Self:
        """See Encoder.at_step; and some utterances begin anywhere."""
        mode = copy.copy(super().at_step(step, view))
        step = int(torch.randint(1 << 40, ())) if step is None else step
        mode.anywhere = generator_for(step, view, 1)  # another than the one that drew the context
        return mode

    def enter(self, x: Tensor, x_lengths: Tensor, state: ChunkedState | None) -> EntranceOutput:
        """See ChunkedEncoder.enter."""
        if state is not None or self.anywhere is None:
            return super().enter(x, x_lengths, state)
        assert isinstance(self.config, WhisperEncoderConfig)
        begin = torch.randint(PERIOD, (len(x),), generator=self.anywhere)
        begin[torch.rand(len(x), generator=self.anywhere) >= self.config.anywhere] = 0
        out: EntranceOutput = self.entrance(x, x_lengths, None, begin.to(x.device))
        return out


class WhisperLayer(Layer):
    """A Transformer layer; its state is that of its attention."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.dim, config.heads, config.positions, config.dropout)
        self.feed_forward = FeedForward(config.dim, config.expansion, config.dropout, "gelu")

    def forward(
        self, x: Tensor, seen: Seen, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState | None]:
        """See Layer.forward."""
        y, state = self.attention(x, seen.mask, seen.where, state)
        x = x + y
        return x + self.feed_forward(x), state

    def initial_state(
        self, batch: int, history: int, device: torch.device | None, dtype: torch.dtype
    ) -> AttentionState:
        """See Layer.initial_state."""
        return self.attention.initial_state(batch, history, device, dtype)
