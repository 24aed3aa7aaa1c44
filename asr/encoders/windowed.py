"""Recordings of any length through an encoder that hears whole signals: in windows that overlap.

    window k hears frames k S - M/2 .. k S + S + M/2 and answers k S .. k S + S          S = N - M

for windows of N frames of which neighbours share M. What is near an edge of a window is left to its
neighbour, so that every frame is answered once, with M/2 frames heard on either side at least; the two ends
of the signal are ends of windows too. Answers are put together again before anything is searched: a search
goes over one stream of frames, with its hypotheses, and there are no texts to be merged.

If an output depends on at most M/2 frames on either side, the outputs are those of the whole signal. What
has an unlimited context (attention, recurrence backwards) hears less than it would: an approximation.

To others this is an encoder that streams (asr/encoders/base.py), in steps of S frames and with a lookahead of
M/2, whose state is less than a window of features. Windows begin on whole chunks of the encoder, if there
are any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from asr.config import Config
from asr.encoders.base import LONGEST_WHOLE_S, Encoder, EncoderOutput
from asr.encoders.latency import Latency
from asr.errors import ConfigError
from asr.layers.window import gather_from, joined
from asr.lengths import seconds_to_frames


class WindowConfig(Config):
    """How long windows are."""

    length_s: float = Field(30.0, gt=0, le=LONGEST_WHOLE_S)
    """Seconds that a window hears."""
    overlap_s: float = Field(10.0, ge=0)
    """Seconds that neighbours share; each answers its own half of them."""

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if self.overlap_s >= self.length_s:
            raise ValueError(
                f"expected an overlap of less than the {self.length_s:g} s of a window, found "
                f"{self.overlap_s:g} s: {self.length_s / 3:g} would do"
            )
        return self


def windows_suiting(encoder: Encoder) -> WindowConfig:
    """The usual windows, or as long ones as the encoder can hear."""
    usual, longest_s = WindowConfig(), encoder.longest_whole_s
    if usual.length_s > longest_s:
        return WindowConfig(length_s=longest_s, overlap_s=longest_s / 3)
    return usual


@dataclass(frozen=True)
class WindowedState:
    """What a stream remembers."""

    frames: Tensor
    """(B, N - 1, D): features from the beginning of the next window on."""
    lengths: Tensor
    """(B,) int64: how many of them are there."""
    answered: Tensor
    """(B,) int64: outputs at the beginning of the window that its neighbour has answered."""


class WindowedEncoder(Encoder):
    """See the module docstring; (B, T, input_dim) -> (B, ceil(T / subsampling), output_dim)."""

    streaming = True

    def __init__(self, encoder: Encoder, windows: WindowConfig) -> None:
        """Raises ConfigError for an encoder that streams by itself, and for windows that do not suit it."""
        super().__init__()
        if encoder.streaming:
            raise ConfigError(
                "windows: expected a model that hears whole recordings, found one that streams "
                "and has no need of windows; leave them out"
            )
        if windows.length_s > encoder.longest_whole_s:
            raise ConfigError(
                f"windows: expected at most {encoder.longest_whole_s:.0f} s, which this model hears in one "
                f"piece, found {windows.length_s:g} s"
            )
        self.encoder, self.windows = encoder, windows
        self.input_dim, self.output_dim = encoder.input_dim, encoder.output_dim
        self.subsampling, self.frame_shift_s = encoder.subsampling, encoder.frame_shift_s
        whole = math.lcm(encoder.subsampling, encoder.chunk_frames)
        side = seconds_to_frames(windows.overlap_s / 2, whole * self.frame_shift_s)
        # No longer than was asked for: the encoder may hear no more than that.
        step = math.floor(windows.length_s / (whole * self.frame_shift_s) + 1e-6) - 2 * side
        if step < 1:
            raise ConfigError(
                f"windows: expected {(2 * side + 1) * whole * self.frame_shift_s:g} s at least with this "
                f"overlap, in whole frames of the model, found {windows.length_s:g} s"
            )
        self.step_outputs = step * whole // self.subsampling
        self.side_outputs = side * whole // self.subsampling
        """Outputs on either side of those that a window answers."""
        self.lookahead_frames = side * whole
        self.together = max(1, int((encoder.longest_stored_s / windows.length_s) ** 2))
        """Most windows that are heard together."""

    @property
    def window_frames(self) -> int:
        """Feature frames of a window."""
        return self.chunk_frames + 2 * self.lookahead_frames

    @property
    def flush_frames(self) -> int:
        """None: what stands behind the end of a window is the encoder's own affair."""
        return 0

    def with_latency(self, latency: Latency) -> WindowedEncoder:
        """See Encoder.with_latency: of the encoder in the windows."""
        return WindowedEncoder(self.encoder.with_latency(latency), self.windows)

    def encode(self, x: Tensor, x_lengths: Tensor, state: WindowedState | None) -> EncoderOutput:
        """See Encoder.forward."""
        if state is not None:
            return self._complete(x, x_lengths, state)
        y, y_lengths, rest = self._complete(x, x_lengths, self.fresh_state(len(x), x.device, x.dtype))
        last = self.flush(rest)
        return EncoderOutput(*joined(y, y_lengths, last.y, last.y_lengths), None)

    def flush(self, state: WindowedState) -> EncoderOutput:
        """End the streams: a last window, as long as what is left."""
        batch, device = len(state.lengths), state.lengths.device
        begin, lengths, answered = torch.zeros_like(state.lengths), state.lengths, state.answered
        wanted = -(-lengths // self.subsampling) - answered
        y = state.frames.new_zeros(batch, int(wanted.max()) if batch else 0, self.output_dim)
        for rows in self._in_parts(wanted > 0):
            window = _Window(state.frames[rows], begin[rows], lengths[rows])
            y[rows] = self._answer(window, answered[rows], y.shape[1])
        return EncoderOutput(y, wanted, self.fresh_state(batch, device, state.frames.dtype))

    def fresh_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> WindowedState:
        """See Encoder.fresh_state."""
        frames = torch.zeros(batch, self.window_frames - 1, self.input_dim, device=device, dtype=dtype)
        none = torch.zeros(batch, dtype=torch.int64, device=device)
        return WindowedState(frames, none, none)

    def _complete(self, x: Tensor, x_lengths: Tensor, state: WindowedState) -> EncoderOutput:
        """What all windows answer that are complete, one after the other."""
        frames, lengths = joined(state.frames, state.lengths, x, x_lengths)
        begin, answered, parts = torch.zeros_like(lengths), state.answered, list[Tensor]()
        counts = torch.zeros_like(lengths)
        while True:
            needed = (answered + self.step_outputs + self.side_outputs) * self.subsampling
            ready = lengths - begin >= needed
            if not bool(ready.any()):
                break
            # Whoever is ready now was so before: all streams have their k-th window in the k-th part.
            part = x.new_zeros(len(x), self.step_outputs, self.output_dim)
            for rows in self._in_parts(ready):
                window = _Window(frames[rows], begin[rows], needed[rows])
                part[rows] = self._answer(window, answered[rows], self.step_outputs)
            parts.append(part)
            kept = (answered + self.step_outputs).clamp(max=self.side_outputs)
            begin = begin + (answered + self.step_outputs - kept) * self.subsampling * ready
            answered = torch.where(ready, kept, answered)
            counts = counts + self.step_outputs * ready
        y = torch.cat(parts, dim=1) if parts else x.new_zeros(len(x), 0, self.output_dim)
        rest = gather_from(frames, begin, self.window_frames - 1)
        return EncoderOutput(y, counts, WindowedState(rest, lengths - begin, answered))

    def _in_parts(self, which: Tensor) -> tuple[Tensor, ...]:
        """The streams of a mask (B,), as many in a part as fit into memory together."""
        rows = which.nonzero()[:, 0]
        return torch.split(rows, self.together) if len(rows) else ()

    def _answer(self, window: _Window, answered: Tensor, count: int) -> Tensor:
        """(B, count, E) what a window of each stream answers behind the first `answered` (B,) outputs."""
        x = gather_from(window.frames, window.begin, int(window.lengths.max()))
        return gather_from(self.encoder(x, window.lengths).y, answered, count)


class _Window(NamedTuple):
    """A part of every stream."""

    frames: Tensor
    """(B, T, D)."""
    begin: Tensor
    """(B,) int64: its first frame."""
    lengths: Tensor
    """(B,) int64: how many frames it has."""
