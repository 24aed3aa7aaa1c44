"""Transformer encoder with a band of attention in every layer, after the Transformer Transducer.

    x = x + MHSA(x), frame i attending to the frames i - left .. i + right        x = x + FFN(x)

Zhang et al. 2020, "Transformer Transducer: a streamable speech recognition model with Transformer encoders
and RNN-T loss". The lookahead adds up over the layers, `right` frames each; it is the same for every frame,
where a chunk keeps its first frame waiting longest. Departures: positions by rotation unless asked otherwise,
SiLU for ReLU, and pooling inside the stack, by the mean of two frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.encoders.base import Encoder, EncoderOutput
from asr.encoders.stack import StackConfig, run
from asr.layers.attention import SelfAttention, positions
from asr.layers.dropout import Dropout
from asr.layers.entrance import Entrance, EntranceState
from asr.layers.feedforward import FeedForward
from asr.layers.residual import begin_small
from asr.layers.window import WindowState, initial_window_state, slide


class TransformerEncoderConfig(StackConfig):
    """A Transformer with limited context per layer."""

    kind: Literal["transformer"] = "transformer"
    left: int = Field(32, ge=0)
    """Frames before its own that a frame attends to, in every layer."""
    right: int = Field(0, ge=0)
    """Frames behind its own; the lookahead is their sum over the layers."""


@dataclass(frozen=True)
class BandState:
    """What a layer remembers of a stream."""

    window: WindowState
    """Inputs, queries, keys and values of the last left + right frames."""
    given: Tensor
    """(B,) int64: frames answered so far, as far as it matters: up to `left`."""


@dataclass(frozen=True)
class TransformerState:
    """What a stream remembers."""

    entrance: EntranceState
    layers: tuple[BandState, ...]
    pools: tuple[WindowState, ...]


class BandOutput(NamedTuple):
    """Frames behind a layer."""

    y: Tensor
    y_lengths: Tensor
    state: BandState | None


class TransformerEncoder(Encoder):
    """See the module docstring; (B, T, input_dim) -> (B, ceil(T / subsampling), dim)."""

    streaming = True

    def __init__(self, config: TransformerEncoderConfig, input_dim: int, frame_shift_s: float) -> None:
        super().__init__()
        self.config = config
        self.input_dim, self.output_dim, self.frame_shift_s = input_dim, config.dim, frame_shift_s
        rates = [
            2 ** sum(number > after for after in config.pool_after) for number in range(1, config.layers + 1)
        ]
        self.entrance = Entrance(config.subsampling, input_dim, config.dim)
        self.subsampling = self.entrance.factor * config.pooling
        self.lookahead_frames = self.entrance.factor * config.right * sum(rates)
        self.layers = nn.ModuleList(BandLayer(config) for _ in range(config.layers))
        begin_small(self.layers)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    @property
    def blocks(self) -> list[nn.Module]:
        """See Encoder.blocks."""
        return list(self.layers)

    def encode(self, x: Tensor, x_lengths: Tensor, state: TransformerState | None) -> EncoderOutput:
        """See Encoder.forward."""
        x, x_lengths, entrance = self.entrance(x, x_lengths, None if state is None else state.entrance)
        x = self.dropout(x)
        new, pools = list[BandState](), list[WindowState]()
        for number, layer in enumerate(self.layers):
            x, x_lengths = self._pool(number, x, x_lengths, state, pools)
            before_layer = None if state is None else state.layers[number]
            x, x_lengths, after = run(layer, x, x_lengths, before_layer, again=self.config.checkpointing)
            if after is not None:
                new.append(after)
        x, x_lengths = self._pool(len(self.layers), self.norm(x), x_lengths, state, pools)
        if state is None:
            return EncoderOutput(x[:, : int(x_lengths.max())], x_lengths, None)
        assert entrance is not None
        return EncoderOutput(x, x_lengths, TransformerState(entrance, tuple(new), tuple(pools)))

    def _pool(
        self,
        number: int,
        x: Tensor,
        x_lengths: Tensor,
        state: TransformerState | None,
        pools: list[WindowState],
    ) -> tuple[Tensor, Tensor]:
        """What layer `number` gave, pooled if that is to be; the state of it joins `pools`."""
        if number not in self.config.pool_after:
            return x, x_lengths
        before = None if state is None else state.pools[len(pools)]
        windows = slide(x, x_lengths, before, size=2, stride=2, left=0)
        pairs = windows.frames[:, : windows.frames.shape[1] // 2 * 2]
        if windows.state is not None:
            pools.append(windows.state)
        return pairs.view(len(x), -1, 2, x.shape[2]).mean(dim=2), windows.counts

    def fresh_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> TransformerState:
        """See Encoder.fresh_state."""
        bands = (layer for layer in self.layers if isinstance(layer, BandLayer))
        layers = tuple(layer.initial_state(batch, device, dtype) for layer in bands)
        pools = tuple(
            initial_window_state(batch, 2, self.output_dim, 0, device, dtype) for _ in self.config.pool_after
        )
        return TransformerState(self.entrance.initial_state(batch, device, dtype), layers, pools)


class BandLayer(nn.Module):
    """A layer of the encoder: frames come `right` frames later than they went in."""

    def __init__(self, config: TransformerEncoderConfig) -> None:
        super().__init__()
        self.left, self.right, self.positions = config.left, config.right, config.positions
        self.attention = SelfAttention(config.dim, config.heads, config.positions, config.dropout)
        self.feed_forward = FeedForward(config.dim, config.expansion, config.dropout)

    def forward(self, x: Tensor, x_lengths: Tensor, state: BandState | None) -> BandOutput:
        """Whole signals (B, T, dim) with `state` None, else the next chunk of every stream."""
        if state is None:
            mask = self._band(x.shape[1], x.shape[1], x.device)[None]
            where = positions(self.positions, x.shape[2], self.attention.heads, 0, x.shape[1], x)
            y = self._finish(x, self.attention(x, mask, where).y)
            return BandOutput(y, (x_lengths - self.right).clamp(min=0), None)
        dim, size = x.shape[2], self.left + 1 + self.right
        frames = torch.cat((x, *(part.flatten(2) for part in self.attention.project(x))), dim=2)
        windows = slide(frames, x_lengths, state.window, size=size, stride=1, left=self.left)
        assert windows.state is not None
        counts, new = windows.counts, int(windows.counts.max())
        given = (state.given + counts).clamp(max=self.left)
        if new == 0:
            return BandOutput(x[:, :0], counts, BandState(windows.state, given))
        aligned = windows.frames[:, : self.left + new + self.right]
        x, *parts = aligned.chunk(4, dim=2)
        q, k, v = (part.reshape(*part.shape[:2], self.attention.heads, -1) for part in parts)
        behind = aligned.shape[1] - self.left  # queries, of which the last `right` ones have not heard enough
        mask = self._band(behind, aligned.shape[1], x.device)
        real = torch.arange(aligned.shape[1], device=x.device) >= self.left - state.given[:, None]
        where = positions(self.positions, dim, self.attention.heads, self.left, behind, x)
        y = self.attention.attend(q[:, self.left :], k, v, mask & real[:, None], where)
        y = self._finish(x[:, self.left :], y)
        return BandOutput(y, counts, BandState(windows.state, given))

    def initial_state(self, batch: int, device: torch.device | None, dtype: torch.dtype) -> BandState:
        """State of `batch` streams that have heard nothing."""
        size, width = self.left + 1 + self.right, 4 * self.attention.out.in_features
        window = initial_window_state(batch, size, width, self.left, device, dtype)
        return BandState(window, torch.zeros(batch, dtype=torch.int64, device=device))

    def _band(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """(queries, keys) bool; the last query stands beside the last key."""
        place = torch.arange(keys - queries, keys, device=device)[:, None]
        ahead = torch.arange(keys, device=device)[None] - place
        return (ahead >= -self.left) & (ahead <= self.right)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + y
        y = self.feed_forward(x)
        return x + y
