"""LSTM encoder: subsampling, an optional lookahead convolution, a residual stack of LSTM layers.

Each layer computes x + dropout(norm(LSTM(x))), after Graves (2012) and the deep LSTM stacks of Sak et al.
(2014); the residual path and the layer norm let eight layers train from scratch without pre-training.
The lookahead (asr/layers/entrance.py) is the only future that the unidirectional encoder sees. The
bidirectional encoder sees everything and cannot stream.

Two more ways to train a deep stack are those of Zeyer et al. 2017, "A comprehensive study of deep
bidirectional LSTM RNNs for acoustic modeling in speech recognition": layer by layer, `layer_steps`, and in
pieces, `piece` (asr/layers/pieces.py). Departure: a layer that joins begins with a gain of 0 in its norm and
so leaves the network what it was, where theirs takes the place of the output layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.config import Config
from asr.encoders.base import Encoder, EncoderOutput
from asr.errors import ConfigError
from asr.layers.dropout import Dropout
from asr.layers.entrance import Entrance, EntranceState
from asr.layers.pieces import cut, together
from asr.layers.subsampling import SubsamplingConfig
from asr.lengths import reverse_frames


class LstmEncoderConfig(Config):
    """An LSTM encoder."""

    kind: Literal["lstm"] = "lstm"
    hidden: int = Field(256, ge=1)
    """Cells per layer and direction."""
    layers: int = Field(3, ge=1, le=8)
    bidirectional: bool = False
    """See the whole utterance in both directions; cannot stream."""
    lookahead: int = Field(0, ge=0, le=64)
    """Encoder frames of future context, through a convolution before the LSTM stack."""
    dropout: float = Field(0.1, ge=0, lt=1)
    subsampling: SubsamplingConfig = SubsamplingConfig()
    layer_steps: int = Field(0, ge=0)
    """Optimiser steps between a layer's joining the training and the next one's; 0 trains all at once."""
    piece: int = Field(0, ge=0)
    """Encoder frames of the pieces of an utterance that training hears, each alone; 0 leaves it whole."""
    piece_context: int = Field(0, ge=0)
    """Frames on either side that a piece hears besides."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.piece and not self.bidirectional:
            raise ValueError(
                "piece is for bidirectional encoders; what a unidirectional one carries on is its purpose: "
                "set piece to 0"
            )
        if self.piece_context and not self.piece:
            raise ValueError("piece_context needs pieces: set piece to the frames of one")
        if self.layer_steps and self.layers == 1:
            raise ValueError("layer_steps needs layers to add: set layers above 1, or layer_steps to 0")
        return self

    @model_validator(mode="after")
    def _one_kind_of_future(self) -> Self:
        if self.bidirectional and self.lookahead:
            raise ValueError(
                "lookahead is for streaming encoders; a bidirectional one sees all: set lookahead to 0"
            )
        return self


@dataclass(frozen=True)
class LstmEncoderState:
    """What a stream remembers."""

    entrance: EntranceState
    hidden: Tensor
    """(B, layers, hidden)."""
    cell: Tensor
    """(B, layers, hidden)."""


class LstmEncoder(Encoder):
    """See the module docstring; (B, T, input_dim) -> (B, ceil(T / subsampling), output_dim)."""

    def __init__(self, config: LstmEncoderConfig, input_dim: int, frame_shift_s: float) -> None:
        super().__init__()
        self.config, self.streaming = config, not config.bidirectional
        self.input_dim = input_dim
        self.subsampling = config.subsampling.factor
        self.frame_shift_s = frame_shift_s
        self.hidden = config.hidden
        self.output_dim = config.hidden * (2 if config.bidirectional else 1)
        width = self.output_dim
        self.entrance = Entrance(config.subsampling, input_dim, width, config.lookahead)
        self.lookahead_frames = self.entrance.lookahead_frames
        self.lstms = _lstms(width, config.hidden, config.layers)
        # Two one-way stacks rather than nn.LSTM's two-way one, which must be packed: padded and reversed by
        # gather they train 1.6 times faster on a CPU (24 utterances of up to 68 frames, one thread).
        self.reversed_lstms = _lstms(width, config.hidden, config.layers if config.bidirectional else 0)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers))
        self.depth = config.layers
        if config.layer_steps:
            for norm in self.norms[1:]:
                assert isinstance(norm, nn.LayerNorm)
                nn.init.zeros_(norm.weight)
        self.dropout = Dropout(config.dropout)

    @property
    def why_not_streaming(self) -> str:
        """See Encoder.why_not_streaming."""
        return "it is bidirectional and needs the whole utterance"

    def at_step(self, step: int | None, view: int = 0) -> Self:
        """See Encoder.at_step: of the layers, those that have joined."""
        if step is None or not self.config.layer_steps:
            return self
        mode = copy.copy(self)
        mode.depth = min(1 + step // self.config.layer_steps, self.config.layers)
        return mode

    def check_steps(self, steps: int) -> None:
        """See Encoder.check_steps: all layers have to join before the end."""
        last = (self.config.layers - 1) * self.config.layer_steps
        if last and last >= steps:
            raise ConfigError(
                f"with layer_steps {self.config.layer_steps} the last of {self.config.layers} layers joins "
                f"at step {last} and the training has {steps}: set network.encoder.layer_steps, "
                f"{steps // (2 * self.config.layers)} would do"
            )

    def encode(self, x: Tensor, x_lengths: Tensor, state: LstmEncoderState | None) -> EncoderOutput:
        """See Encoder.forward."""
        x, x_lengths, entrance = self.entrance(x, x_lengths, None if state is None else state.entrance)
        x = self.dropout(x)
        if state is None:
            return EncoderOutput(self._whole(x, x_lengths), x_lengths, None)
        hidden, cell = [], []
        for i, (lstm, norm) in enumerate(zip(self.lstms, self.norms, strict=True)):
            y, h, c = _chunk(lstm, x, x_lengths, state.hidden[:, i], state.cell[:, i])
            hidden.append(h)
            cell.append(c)
            x = x + self.dropout(norm(y))
        assert entrance is not None
        new = LstmEncoderState(entrance, torch.stack(hidden, 1), torch.stack(cell, 1))
        return EncoderOutput(x, x_lengths, new)

    def fresh_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> LstmEncoderState:
        """See Encoder.fresh_state."""
        zeros = torch.zeros(batch, len(self.lstms), self.hidden, device=device, dtype=dtype)
        return LstmEncoderState(self.entrance.initial_state(batch, device, dtype), zeros, zeros)

    def _whole(self, x: Tensor, x_lengths: Tensor) -> Tensor:
        """The layers over whole signals, which training may cut into pieces."""
        if not (self.training and self.config.piece):
            return self._stack(x, x_lengths)
        pieces = cut(x, x_lengths, self.config.piece, self.config.piece_context)
        return together(self._stack(pieces.frames, pieces.lengths), pieces.own, *x.shape[:2])

    def _stack(self, x: Tensor, x_lengths: Tensor) -> Tensor:
        for number, norm in enumerate(self.norms[: self.depth]):
            x = x + self.dropout(norm(self._layer(number, x, x_lengths)))
        return x

    def _layer(self, layer: int, x: Tensor, x_lengths: Tensor) -> Tensor:
        """One layer over whole signals; padding stands behind them, where it cannot reach back."""
        y: Tensor = self.lstms[layer](x)[0]
        if self.streaming:
            return y
        backwards: Tensor = self.reversed_lstms[layer](reverse_frames(x, x_lengths))[0]
        return torch.cat([y, reverse_frames(backwards, x_lengths)], dim=2)


def _lstms(width: int, hidden: int, layers: int) -> nn.ModuleList:
    return nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for _ in range(layers))


class _LayerOutput(NamedTuple):
    y: Tensor
    hidden: Tensor
    cell: Tensor


def _chunk(lstm: nn.Module, x: Tensor, x_lengths: Tensor, hidden: Tensor, cell: Tensor) -> _LayerOutput:
    """One layer over the next chunk; streams advance by their own x_lengths, which may be 0."""
    longest = int(x_lengths.max())
    if longest == 0:
        return _LayerOutput(x.new_zeros(x.shape), hidden, cell)
    start = (hidden[None].contiguous(), cell[None].contiguous())
    if bool((x_lengths == longest).all()):
        y, (h, c) = lstm(x[:, :longest], start)
    else:
        # A packed sequence cannot be empty: streams with nothing new run one frame whose effect is undone.
        packed = pack_padded_sequence(
            x[:, :longest], x_lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed_y, (h, c) = lstm(packed, start)
        y, _ = pad_packed_sequence(packed_y, batch_first=True)
        moved = (x_lengths > 0)[None, :, None]
        h, c = torch.where(moved, h, start[0]), torch.where(moved, c, start[1])
    y = functional.pad(y, (0, 0, 0, x.shape[1] - y.shape[1]))
    return _LayerOutput(y, h[0], c[0])
