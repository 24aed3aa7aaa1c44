"""Log-mel filterbank features of whole utterances and of live streams, by one code.

Frame t covers W samples from t * S on (`snip_edges`, only frames that fit) or from t * S + S/2 - W/2 on, with
the signal reflected at both of its ends, as often as a short signal needs (no `snip_edges`, one frame per
S samples). Source: Kaldi, feat/feature-window.cc. What is computed of a frame is in `logmel.py`.

Streaming. The state holds, for each stream, the samples from the start of its next frame on. An utterance
is one large chunk followed by the flush, so both go through the same lines, and frames are the same bit
for bit however the samples were cut into chunks. Without `snip_edges` the last frames of a live stream come
at the flush, because they see the end of the signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asr.errors import AudioError
from asr.features.logmel import FULL_SCALE, FbankConfig, LogMel
from asr.lengths import frame_count, padding_mask

__all__ = ["Fbank", "FbankConfig", "FbankOutput", "FbankState", "feature_count"]

GROUP_SAMPLES = 1 << 20
"""Whole utterances are taken a few streams at a time, so that working copies of the signal stay in cache."""


@dataclass(frozen=True)
class FbankState:
    """What a stream keeps between chunks; works with `asr.state`."""

    samples: Tensor
    """(B, H) float32: the samples from the start of the next frame on."""
    pending: Tensor
    """(B,) int64: how many of `samples` count, places kept for the reflected start included."""
    frames: Tensor
    """(B,) int64: frames given out so far."""
    seen: Tensor
    """(B,) int64: samples fed so far."""


class FbankOutput(NamedTuple):
    """Features, and the state with which the stream goes on."""

    features: Tensor
    """(B, T, M) float32 log-mel energies; zero beyond `feature_lengths`."""
    feature_lengths: Tensor
    """(B,) int64: frames of each stream."""
    state: FbankState


class _Signal(NamedTuple):
    """The samples at hand: those held, those new, and at an end their reflection."""

    samples: Tensor
    """(B, L) float32, contiguous. L is a multiple of the shift, so that frames are evenly spaced over the
    batch, and the storage goes on for one more window, so that each of them may be read."""
    stored: int
    """Samples in the storage."""
    end: Tensor
    """(B,) int64: where each stream's samples end."""
    frames: Tensor
    """(B,) int64: frames given out before."""
    seen: Tensor
    """(B,) int64: samples fed, the new ones included."""
    final: bool
    """Whether the streams end here."""


class Fbank(nn.Module):
    """Log-mel features of batches of utterances or of chunks of live streams, on any device.

    Samples are in [-1, 1]; they are scaled by 32768, so that features equal Kaldi's on 16-bit audio. Two
    streams of a batch never influence each other, NaN included. Not differentiable.
    """

    def __init__(self, config: FbankConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FbankConfig()
        self.log_mel = LogMel(config)
        # One more sample of history is kept for odd windows: their reflected end reaches back that far.
        self._history = 0 if config.snip_edges else config.window % 2
        # Samples before the first one that the first frame covers, and the most after the last one.
        self._left = 0 if config.snip_edges else config.window // 2 - config.shift // 2 + self._history
        self._right = 0 if config.snip_edges else config.window - config.window // 2
        self._held = self._history + config.window - 1

    @property
    def window_s(self) -> float:
        """Length of a frame in seconds."""
        return self.config.window / self.config.sample_rate

    @property
    def shift_s(self) -> float:
        """Time from frame to frame in seconds."""
        return self.config.shift / self.config.sample_rate

    @property
    def lookahead_s(self) -> float:
        """Seconds of audio after frame t's nominal start, t * shift_s, that the frame needs."""
        return self.window_s if self.config.snip_edges else (self.window_s + self.shift_s) / 2

    def initial_state(self, batch: int, device: torch.device | str | None = None) -> FbankState:
        """The state of `batch` streams that have not started."""
        device = self.log_mel.window.device if device is None else torch.device(device)
        counts = torch.zeros(batch, dtype=torch.int64, device=device)
        samples = torch.zeros(batch, self._held, device=device)
        return FbankState(samples, pending=counts + self._left, frames=counts, seen=counts)

    @torch.no_grad()
    def forward(
        self,
        samples: Tensor,
        sample_lengths: Tensor,
        state: FbankState | None = None,
        generator: torch.Generator | None = None,
    ) -> FbankOutput:
        """Features of whole utterances (no `state`) or of the next chunk of each stream (with one).

        `samples` is (B, N) float32 in [-1, 1] at the configured rate, `sample_lengths` (B,) int64 says how
        many of them count: any number, 0 too. `generator` seeds the dither, if there is any: noise on the
        samples of each call, so a dithered stream is repeatable only in the same chunks. Raises AudioError for
        samples of another dtype or shape.
        """
        if samples.dtype != torch.float32 or samples.dim() != 2:
            found = f"{str(samples.dtype).removeprefix('torch.')} {tuple(samples.shape)}"
            raise AudioError(
                f"expected float32 samples (batch, time) in [-1, 1], found {found}; convert them"
            )
        sample_lengths = sample_lengths.to(samples.device)
        if self.config.dither:
            samples = samples + _noise_like(samples, generator) * (self.config.dither / FULL_SCALE)
        if state is None:
            return self._whole(samples, sample_lengths)
        return self._chunk(state, samples, sample_lengths, final=False)

    @torch.no_grad()
    def flush(self, state: FbankState) -> FbankOutput:
        """End the streams: their last frames, which reflect the signal's end. The state begins afresh."""
        nothing = state.samples.new_zeros(len(state.seen), 0)
        return self._chunk(state, nothing, torch.zeros_like(state.seen), final=True)

    def _chunk(self, state: FbankState, samples: Tensor, sample_lengths: Tensor, final: bool) -> FbankOutput:
        signal = self._signal(state, samples, sample_lengths, final)
        counts = self._frames_ready(signal)
        features = samples.new_zeros(len(counts), _extremes(counts)[1], self.config.num_mel_bins)
        self._features(signal, counts, features)
        if final:
            return FbankOutput(features, counts, self.initial_state(len(counts), counts.device))
        return FbankOutput(features, counts, self._remainder(signal, counts))

    def _whole(self, samples: Tensor, sample_lengths: Tensor) -> FbankOutput:
        """A start, one chunk and the flush, a few streams at a time."""
        longest = feature_count(_extremes(sample_lengths)[1], self.config)
        features = samples.new_zeros(len(samples), longest, self.config.num_mel_bins)
        counts = torch.zeros_like(sample_lengths)
        streams = max(1, GROUP_SAMPLES // max(1, samples.shape[1]))
        for first in range(0, len(samples), streams):
            group = slice(first, first + streams)
            start = self.initial_state(len(samples[group]), samples.device)
            signal = self._signal(start, samples[group], sample_lengths[group], final=True)
            counts[group] = self._frames_ready(signal)
            self._features(signal, counts[group], features[group])
        return FbankOutput(features, counts, self.initial_state(len(samples), samples.device))

    def _signal(self, state: FbankState, samples: Tensor, sample_lengths: Tensor, final: bool) -> _Signal:
        """The held samples followed by the new ones, with what can be reflected by now."""
        batch, new = samples.shape
        window, shift = self.config.window, self.config.shift
        length = self._held + new + max(self._right if final else 0, shift)
        length = -(-length // shift) * shift
        storage = samples.new_zeros(batch * length + self._history + window)
        joined = storage[: batch * length].view(batch, length)
        joined[:, : self._held] = state.samples
        low, high = _extremes(state.pending)
        if new and low == high:
            joined[:, low : low + new] = samples
        elif new:
            joined.scatter_(1, state.pending[:, None] + torch.arange(new, device=samples.device), samples)
        end, seen = state.pending + sample_lengths, state.seen + sample_lengths
        signal = _Signal(joined, len(storage), end, state.frames, seen, final)
        if self._left and _extremes(state.frames)[0] == 0:
            self._reflect_start(signal)
        if final and self._right:
            self._reflect_end(signal)
        return signal

    def _reflect_start(self, signal: _Signal) -> None:
        """Fill the places before the first sample, in streams that have given no frame.

        Done again with every chunk until then: by the first frame, all of its sources are there.
        """
        times = torch.arange(-self._left, 0, device=signal.seen.device)
        sources = _reflected(times, signal.seen[:, None]) + self._left
        start = signal.samples[:, : self._left]
        mirrored = signal.samples.gather(1, sources.clamp_(max=signal.samples.shape[1] - 1))
        start.copy_(torch.where((signal.frames == 0)[:, None], mirrored, start))

    def _reflect_end(self, signal: _Signal) -> None:
        """Continue each ended stream by its mirror image."""
        beyond = torch.arange(self._right, device=signal.seen.device)
        origin = signal.frames * self.config.shift - self._left  # the time of samples[:, 0]
        sources = _reflected(signal.seen[:, None] + beyond, signal.seen[:, None]) - origin[:, None]
        mirrored = signal.samples.gather(1, sources.clamp_(min=0))
        signal.samples.scatter_(1, signal.end[:, None] + beyond, mirrored)

    def _frames_ready(self, signal: _Signal) -> Tensor:
        window, shift = self.config.window, self.config.shift
        if signal.final and not self.config.snip_edges:
            return (signal.seen + shift // 2) // shift - signal.frames  # all that `feature_count` counts
        return torch.clamp((signal.end - self._history - window) // shift + 1, min=0)

    def _remainder(self, signal: _Signal, counts: Tensor) -> FbankState:
        """The state after the first `counts` frames have been given out."""
        used = counts * self.config.shift
        low, high = _extremes(used)
        if low == high:
            rest = signal.samples[:, low : low + self._held].clone()
        else:
            places = used[:, None] + torch.arange(self._held, device=used.device)
            rest = signal.samples.gather(1, places)
        return FbankState(rest, signal.end - used, signal.frames + counts, signal.seen)

    def _features(self, signal: _Signal, counts: Tensor, features: Tensor) -> None:
        """Write the log-mel of the first `counts` frames of each stream into zeroed `features` (B, T, M)."""
        batch, length = signal.samples.shape
        spacing = length // self.config.shift  # frames from stream to stream in the storage
        runs = [range(b * spacing, b * spacing + n) for b, n in enumerate(counts.tolist())]
        storage = signal.samples.as_strided((signal.stored,), (1,))
        if all(len(run) == features.shape[1] for run in runs):
            self.log_mel(storage, self._history, runs, features.view(-1, features.shape[2]))
            return
        packed = features.new_empty(sum(map(len, runs)), features.shape[2])
        self.log_mel(storage, self._history, runs, packed)
        features[padding_mask(counts, features.shape[1])] = packed


def feature_count(samples: int, config: FbankConfig) -> int:
    """Frames that an utterance of `samples` samples has."""
    return frame_count(samples, config.window, config.shift, config.snip_edges)


def _reflected(times: Tensor, seen: Tensor) -> Tensor:
    """Index of the sample that Kaldi reads at `times`: mirrored before 0 and from `seen` on, repeatedly."""
    seen = seen.clamp(min=1)
    folded = times % (2 * seen)
    return torch.where(folded < seen, folded, 2 * seen - 1 - folded)


def _extremes(counts: Tensor) -> tuple[int, int]:
    values = counts.tolist()
    return (min(values), max(values)) if values else (0, 0)


def _noise_like(samples: Tensor, generator: torch.Generator | None) -> Tensor:
    device = samples.device if generator is None else generator.device
    return torch.randn(samples.shape, generator=generator, device=device).to(samples.device)
