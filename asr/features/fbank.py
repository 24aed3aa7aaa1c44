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

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asr.errors import AudioError
from asr.features.logmel import FULL_SCALE, FbankConfig, LogMel, Run
from asr.lengths import frame_count, padding_mask

__all__ = ["Fbank", "FbankConfig", "FbankOutput", "FbankState", "feature_count"]


@dataclass(frozen=True)
class FbankState:
    """What a stream keeps between chunks; works with `asr.state`."""

    samples: Tensor
    """(B, H) float32: the samples from the start of the next frame on; beyond `pending`, anything."""
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


class _Step(NamedTuple):
    """Frames that have become ready, and the state after them."""

    runs: list[Run]
    """One for each stream, in order."""
    state: FbankState


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

    def samples_for(self, frames: int) -> int:
        """Samples after which a live stream has given its first `frames` frames (at least 1)."""
        return self._history + self.config.window - self._left + (frames - 1) * self.config.shift

    def initial_state(self, batch: int, device: torch.device | str | None = None) -> FbankState:
        """The state of `batch` streams that have not started."""
        device = self.log_mel.mel.device if device is None else torch.device(device)
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
        samples of each call, so a dithered stream is repeatable only in the same chunks. Raises AudioError
        for samples of another dtype or shape.
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
            start = self.initial_state(len(samples), samples.device)
            steps = self._steps(start, samples, sample_lengths)
            return self._output([*steps, self._ended(steps[-1].state)])
        return self._output(self._steps(state, samples, sample_lengths))

    @torch.no_grad()
    def flush(self, state: FbankState) -> FbankOutput:
        """End the streams: their last frames, which reflect the signal's end. The state begins afresh."""
        return self._output([self._ended(state)])

    def _output(self, steps: list[_Step]) -> FbankOutput:
        """The features of all steps, stream by stream."""
        state = steps[-1].state
        runs = [list(runs) for runs in zip(*(step.runs for step in steps), strict=True)]
        counts = [sum(run.frames for run in stream) for stream in runs]
        longest, bins = max(counts, default=0), self.config.num_mel_bins
        in_order = [run for stream in runs for run in stream]
        rows = state.samples.new_empty(sum(counts), bins)
        self.log_mel(in_order, rows)
        lengths = torch.tensor(counts, dtype=torch.int64, device=rows.device)
        if len(rows) == len(counts) * longest:
            return FbankOutput(rows.view(len(counts), longest, bins), lengths, state)
        features = rows.new_zeros(len(counts), longest, bins)
        features[padding_mask(lengths, longest)] = rows
        return FbankOutput(features, lengths, state)

    def _steps(self, state: FbankState, samples: Tensor, sample_lengths: Tensor) -> list[_Step]:
        """A short chunk is joined to the samples held; of a long one only the beginning, the rest is read
        where it lies."""
        joined = 2 * self.config.window
        if samples.shape[1] <= joined:
            return [self._joined(state, samples, sample_lengths)]
        head = self._joined(state, samples[:, :joined], sample_lengths.clamp(max=joined))
        return [head, self._direct(head.state, samples.contiguous(), sample_lengths, joined)]

    def _joined(self, state: FbankState, samples: Tensor, sample_lengths: Tensor) -> _Step:
        """Frames of the held samples followed by the new ones."""
        batch, new = samples.shape
        signal = samples.new_zeros(batch, self._held + new + self.config.shift)
        signal[:, : self._held] = state.samples
        places = state.pending[:, None] + torch.arange(new, device=samples.device)
        signal.scatter_(1, places, samples)
        pending, seen = state.pending + sample_lengths, state.seen + sample_lengths
        if self._left and bool((state.frames == 0).any()):
            self._reflect_start(signal, state.frames, seen)
        counts = self._whole_frames(pending)
        return self._step(signal, torch.zeros_like(counts), counts, pending, state.frames + counts, seen)

    def _direct(self, state: FbankState, samples: Tensor, sample_lengths: Tensor, fed: int) -> _Step:
        """Frames of the rest of a chunk of which `fed` samples have been fed already."""
        start = sample_lengths.clamp(max=fed) - state.pending  # of what is held, in the chunk
        more = sample_lengths > fed  # otherwise the state has all, and may hold more than this chunk
        pending = torch.where(more, sample_lengths - start, state.pending)
        counts = torch.where(more, self._whole_frames(pending), 0)
        seen = state.seen + (sample_lengths - fed).clamp(min=0)
        step = self._step(samples, start.clamp(min=0), counts, pending, state.frames + counts, seen)
        kept = torch.where(more[:, None], step.state.samples, state.samples)
        return _Step(step.runs, replace(step.state, samples=kept))

    def _ended(self, state: FbankState) -> _Step:
        """The last frames: without `snip_edges`, those that reach beyond the end."""
        batch = len(state.seen)
        signal = torch.cat([state.samples, state.samples.new_zeros(batch, self._right)], dim=1)
        counts = torch.zeros_like(state.seen)
        if not self.config.snip_edges:
            counts = (state.seen + self.config.shift // 2) // self.config.shift - state.frames
            self._reflect_start(signal, state.frames, state.seen)
            self._reflect_end(signal, state)
        runs = self._runs(signal, torch.zeros_like(counts), counts)
        return _Step(runs, self.initial_state(batch, signal.device))

    def _step(
        self, signal: Tensor, start: Tensor, counts: Tensor, pending: Tensor, frames: Tensor, seen: Tensor
    ) -> _Step:
        """The next `counts` frames of `signal` (B, L) from sample `start` on, of which `pending` count."""
        used = counts * self.config.shift
        places = (start + used)[:, None] + torch.arange(self._held, device=signal.device)
        held = signal.gather(1, places.clamp_(max=signal.shape[1] - 1))
        return _Step(self._runs(signal, start, counts), FbankState(held, pending - used, frames, seen))

    def _runs(self, signal: Tensor, start: Tensor, counts: Tensor) -> list[Run]:
        first = (start + self._history).tolist()
        return [Run(signal[b, i:], n) for b, (i, n) in enumerate(zip(first, counts.tolist(), strict=True))]

    def _whole_frames(self, pending: Tensor) -> Tensor:
        """Frames that end within the samples at hand."""
        spare = pending - self._history - self.config.window
        return (spare // self.config.shift + 1).clamp(min=0)

    def _reflect_start(self, signal: Tensor, frames: Tensor, seen: Tensor) -> None:
        """Fill the places before the first sample, in streams that have given no frame.

        Done again with every chunk until then: by the first frame, all of its sources are there.
        """
        times = torch.arange(-self._left, 0, device=signal.device)
        sources = (_reflected(times, seen[:, None]) + self._left).clamp_(max=signal.shape[1] - 1)
        start = signal[:, : self._left]
        start.copy_(torch.where((frames == 0)[:, None], signal.gather(1, sources), start))

    def _reflect_end(self, signal: Tensor, state: FbankState) -> None:
        """Continue each stream by its mirror image."""
        beyond = torch.arange(self._right, device=signal.device)
        origin = state.frames * self.config.shift - self._left  # the time of signal[:, 0]
        sources = _reflected(state.seen[:, None] + beyond, state.seen[:, None]) - origin[:, None]
        signal.scatter_(1, state.pending[:, None] + beyond, signal.gather(1, sources.clamp_(min=0)))


def feature_count(samples: int, config: FbankConfig) -> int:
    """Frames that an utterance of `samples` samples has."""
    return frame_count(samples, config.window, config.shift, config.snip_edges)


def _reflected(times: Tensor, seen: Tensor) -> Tensor:
    """Index of the sample that Kaldi reads at `times`: mirrored before 0 and from `seen` on, repeatedly."""
    seen = seen.clamp(min=1)
    folded = times % (2 * seen)
    return torch.where(folded < seen, folded, 2 * seen - 1 - folded)


def _noise_like(samples: Tensor, generator: torch.Generator | None) -> Tensor:
    device = samples.device if generator is None else generator.device
    return torch.randn(samples.shape, generator=generator, device=device).to(samples.device)
