"""Recurrent encoder: a residual stack around any sequence mixer, of constant memory over hours of audio.

    x = x + mixer(norm(x))      x = x + convolution(x), if there is one      x = x + FFN(x)      y = norm(x)

The blocks of modern recurrent networks (De et al. 2024, "Griffin"; Peng et al. 2023, "RWKV"), with the mixer
open: `mixer.kind` names a file of mixers/. All of them are causal, so what is heard of the future is the
lookahead in front of the stack (asr/layers/entrance.py) alone. Bidirectional, each layer has a second mixer
that hears the signal from its end, and cannot stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asr.config import Config
from asr.encoders.base import Encoder, EncoderOutput
from asr.encoders.mixers import AnyMixer
from asr.encoders.mixers.base import Mixer
from asr.encoders.mixers.min_lstm import MinLstmConfig
from asr.encoders.stack import run
from asr.layers.convolution import CausalConvolution
from asr.layers.dropout import Dropout
from asr.layers.entrance import Entrance, EntranceState
from asr.layers.feedforward import FeedForward
from asr.layers.residual import begin_small
from asr.layers.subsampling import SubsamplingConfig
from asr.lengths import reverse_frames


class RecurrentEncoderConfig(Config):
    """A stack of recurrent layers."""

    kind: Literal["recurrent"] = "recurrent"
    mixer: AnyMixer = MinLstmConfig()
    """What carries the past; `kind` names it."""
    others: tuple[AnyMixer, ...] = ()
    """Further mixers: the layers take `mixer` and these in turn (mixers/README.md: Griffin)."""
    dim: int = Field(256, ge=2)
    """Width of the frames."""
    layers: int = Field(6, ge=1)
    expansion: int = Field(4, ge=0)
    """Width of the feed-forward modules, in multiples of `dim`; 0 leaves them out."""
    kernel: int = Field(0, ge=0, le=64)
    """Frames, its own the last, that the convolution of a layer hears; 0 leaves it out."""
    lookahead: int = Field(0, ge=0, le=64)
    """Encoder frames of future context, through a convolution before the stack."""
    bidirectional: bool = False
    """Hear the whole utterance in both directions; cannot stream."""
    dropout: float = Field(0.1, ge=0, lt=1)
    checkpointing: bool = False
    """Keep only the layers' inputs in training and compute the rest again: less memory, a third more time."""
    subsampling: SubsamplingConfig = SubsamplingConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.bidirectional and self.lookahead:
            raise ValueError(
                "lookahead is for streaming encoders; a bidirectional one sees all: set lookahead to 0"
            )
        if len(self.others) >= self.layers:
            raise ValueError(
                f"expected a layer for each of {1 + len(self.others)} mixers, found {self.layers}: set layers"
            )
        with torch.device("meta"):  # where a mixer is only its shapes
            for mixer in (self.mixer, *self.others):
                mixer.build(self.dim)
        return self


@dataclass(frozen=True)
class LayerState:
    """What a layer remembers of a stream."""

    mixer: Any
    convolution: Tensor | None


@dataclass(frozen=True)
class RecurrentState:
    """What a stream remembers."""

    entrance: EntranceState
    layers: tuple[LayerState, ...]


class RecurrentEncoder(Encoder):
    """See the module docstring; (B, T, input_dim) -> (B, ceil(T / subsampling), dim)."""

    def __init__(self, config: RecurrentEncoderConfig, input_dim: int, frame_shift_s: float) -> None:
        super().__init__()
        self.config, self.streaming = config, not config.bidirectional
        self.input_dim, self.output_dim, self.frame_shift_s = input_dim, config.dim, frame_shift_s
        self.entrance = Entrance(config.subsampling, input_dim, config.dim, config.lookahead)
        self.subsampling, self.lookahead_frames = self.entrance.factor, self.entrance.lookahead_frames
        self.layers = nn.ModuleList(RecurrentLayer(config, n) for n in range(config.layers))
        begin_small(self.layers)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    @property
    def why_not_streaming(self) -> str:
        """See Encoder.why_not_streaming."""
        return "it is bidirectional and needs the whole utterance"

    @property
    def blocks(self) -> list[nn.Module]:
        """See Encoder.blocks."""
        return list(self.layers)

    def encode(self, x: Tensor, x_lengths: Tensor, state: RecurrentState | None) -> EncoderOutput:
        """See Encoder.forward."""
        x, x_lengths, entrance = self.entrance(x, x_lengths, None if state is None else state.entrance)
        x = self.dropout(x)
        lengths: Tensor | None = x_lengths
        if state is not None and bool((x_lengths == x.shape[1]).all()):
            lengths = None  # nothing to be careful of: asked here once, and not in every op of every layer
        new = []
        for number, layer in enumerate(self.layers):
            before = None if state is None else state.layers[number]
            x, after = run(layer, x, lengths, before, again=self.config.checkpointing)
            new.append(after)
        y = self.norm(x)
        if state is None:
            return EncoderOutput(y, x_lengths, None)
        assert entrance is not None
        return EncoderOutput(y, x_lengths, RecurrentState(entrance, tuple(new)))

    def fresh_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> RecurrentState:
        """See Encoder.fresh_state."""
        layers = (layer for layer in self.layers if isinstance(layer, RecurrentLayer))
        states = tuple(layer.initial_state(batch, device, dtype) for layer in layers)
        return RecurrentState(self.entrance.initial_state(batch, device, dtype), states)


class RecurrentLayer(nn.Module):
    """See the module docstring."""

    def __init__(self, config: RecurrentEncoderConfig, number: int) -> None:
        super().__init__()
        mixers = (config.mixer, *config.others)
        mixer = mixers[number % len(mixers)]
        self.norm = nn.LayerNorm(config.dim)
        self.mixer = mixer.build(config.dim)
        self.back = mixer.build(config.dim) if config.bidirectional else None
        self.convolution = CausalConvolution(config.dim, config.kernel) if config.kernel else None
        self.feed_forward = (
            FeedForward(config.dim, config.expansion, config.dropout) if config.expansion else None
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, lengths: Tensor | None, state: LayerState | None
    ) -> tuple[Tensor, LayerState | None]:
        """Whole signals (B, T, dim) with `state` None, else the next piece of every stream.

        lengths: (B,) frames that are there; None, of a piece, all.
        """
        before = self.initial_state(len(x), x.device, self.norm.weight.dtype) if state is None else state
        # Behind the end of a whole signal nothing is asked for, and what is heard there cannot reach back.
        there = None if state is None else lengths
        heard = self.norm(x)
        y, mixer = self.mixer(heard, there, before.mixer)
        if self.back is not None:
            assert lengths is not None
            y = y + self._backwards(self.back, heard, lengths)
        x = x + self.dropout(y)
        convolution = None
        if self.convolution is not None:
            y, convolution = self.convolution(x, there, before.convolution)
            x = x + self.dropout(y)
        if self.feed_forward is not None:
            x = x + self.feed_forward(x)
        return x, None if state is None else LayerState(mixer, convolution)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """State of `batch` streams that have heard nothing."""
        convolution = None
        if self.convolution is not None:
            convolution = self.convolution.initial_state(batch, device, dtype)
        return LayerState(self.mixer.initial_state(batch, device, dtype), convolution)

    def _backwards(self, mixer: Mixer, heard: Tensor, lengths: Tensor) -> Tensor:
        """What the second mixer says of signals that begin at their ends."""
        state = mixer.initial_state(len(heard), heard.device, self.norm.weight.dtype)
        y: Tensor = mixer(reverse_frames(heard, lengths), None, state).y
        return reverse_frames(y, lengths)
