"""The mathematics of one log-mel frame, Kaldi-compatible, for many frames at once.

For each frame x of W samples in 16-bit units::

    d[i] = x[i] - mean(x)
    y[i] = w[i] (d[i] - preemphasis d[i-1])      w[i] = (0.5 - 0.5 cos(2 pi i / (W-1)))^0.85   (Povey)
    P[k] = |FFT(y)[k]|^2                         FFT size: W rounded up to a power of two
    mel[m] = log(max(eps, sum_k H[k, m] P[k]))   H: triangles on the scale 1127 log(1 + f / 700)

Source: Kaldi, feat/feature-window.cc, feature-fbank.cc, mel-computations.cc. Kaldi's rule for the first
sample, d[0] - preemphasis d[0], has no effect here because the Povey window starts at exactly zero.

A frame's features do not depend on the frames beside it, to the last bit: arithmetic on samples is one
rounding per operation, and the FFT and the matrix products, whose library kernels may round differently for
a different number of rows, always get blocks of one number of rows (`CPU_ROWS`), the last one filled up
with zeros. Such a block is also what keeps the temporaries in the second-level cache.

Departures: samples are given in [-1, 1], not as 16-bit integers (the window carries the factor); window
types other than Povey, the energy column and vocal tract warping are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asr.config import Config

FULL_SCALE = 32768.0
"""Kaldi's features are those of 16-bit integers; a power of two, so scaling costs no precision."""

EPSILON = torch.finfo(torch.float32).eps
"""Kaldi's floor under the logarithm."""

CPU_ROWS = 256
"""Frames per block on a CPU: temporaries of 1.5 MB, and about 0.1 ms for a block that is almost empty."""

GPU_ROWS = 4096
"""Frames per block elsewhere: an almost empty block is cheap there, and each block costs kernel launches."""

MEL_GROUP = 32
"""Neighbouring mel filters that share one matrix product over the FFT bins that they cover."""


class FbankConfig(Config):
    """Settings of the log-mel features; the names and defaults are Kaldi's but for 80 bins and the edges."""

    sample_rate: int = Field(16000, ge=1000, le=768_000)
    """Hz."""
    num_mel_bins: int = Field(80, ge=1, le=1024)
    frame_length_ms: float = Field(25.0, gt=0, le=1000)
    frame_shift_ms: float = Field(10.0, gt=0, le=1000)
    low_freq: float = Field(20.0, ge=0)
    """Lower edge of the first filter, Hz."""
    high_freq: float = 0.0
    """Upper edge of the last filter, Hz; zero or less counts down from the Nyquist frequency."""
    preemphasis: float = Field(0.97, ge=0, le=1)
    remove_dc_offset: bool = True
    dither: float = Field(0.0, ge=0)
    """Standard deviation of noise added to the samples, in 16-bit units; 0 for repeatable features."""
    snip_edges: bool = False
    """True: only frames that fit in the signal. False: one per shift, the signal reflected at its ends."""

    @property
    def window(self) -> int:
        """Samples per frame, truncated as Kaldi does."""
        return int(self.sample_rate * 0.001 * self.frame_length_ms)

    @property
    def shift(self) -> int:
        """Samples from frame to frame, truncated as Kaldi does."""
        return int(self.sample_rate * 0.001 * self.frame_shift_ms)

    @property
    def fft_size(self) -> int:
        """The window rounded up to a power of two."""
        return 1 << (self.window - 1).bit_length()

    @property
    def band(self) -> tuple[float, float]:
        """Lowest and highest frequency of the filters, Hz."""
        nyquist = 0.5 * self.sample_rate
        return self.low_freq, self.high_freq if self.high_freq > 0 else nyquist + self.high_freq

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.band
        if not low < high <= 0.5 * self.sample_rate:
            raise ValueError(
                f"expected low_freq < high_freq <= {0.5 * self.sample_rate:g} Hz (Nyquist), "
                f"found {low:g} and {high:g}; change low_freq, high_freq or sample_rate"
            )
        if not 1 <= self.shift <= self.window or self.window < 2:
            raise ValueError(
                f"expected a frame_shift_ms of at least one sample and at most frame_length_ms, "
                f"found {self.shift} and {self.window} samples"
            )
        return self


class LogMel(nn.Module):
    """Log-mel features of the frames of a signal."""

    window: Tensor
    mel: Tensor

    def __init__(self, config: FbankConfig) -> None:
        super().__init__()
        self.config = config
        mel = mel_filters(config)
        # Real and imaginary parts lie side by side in memory: with every row of H given twice, the matrix
        # product adds them up, which is cheaper than a pass over strided memory.
        self.register_buffer("mel", mel.repeat_interleave(2, dim=0).contiguous(), persistent=False)
        self.register_buffer("window", povey_window(config.window) * FULL_SCALE, persistent=False)
        self._groups = _mel_groups(mel)

    def forward(self, signal: Tensor, offset: int, runs: Sequence[range], output: Tensor) -> None:
        """Write the features of many frames of `signal` into `output`.

        `signal` is (K,) float32 in [-1, 1], contiguous; frame f begins at sample offset + f * shift and must
        end inside of it. `runs` name the frames, `output` (R, M) float32 gets one row for each, in order.
        """
        size = CPU_ROWS if signal.device.type == "cpu" else GPU_ROWS
        mel = self.mel.to(_product_dtype(signal.device))
        weights = [(filters, bins, mel[bins, filters]) for filters, bins in self._groups]
        padded = signal.new_zeros(size, self.config.fft_size)
        energies = mel.new_empty(size, self.config.num_mel_bins)
        frames = self._frames(signal, offset)
        emphasised = self._frames(self._emphasised(signal), offset)[:, 1:]
        for block in _blocks(runs, size):
            n = sum(len(run) for run in block)
            self._condition(frames, emphasised, block, padded)
            _mel_energies(padded, weights, energies)
            energies.clamp_(min=EPSILON).log_()
            output[:n] = energies[:n]
            output = output[n:]

    def _frames(self, signal: Tensor, offset: int) -> Tensor:
        """All frames (F, W) of a signal, overlapping in memory."""
        window, shift = self.config.window, self.config.shift
        count = max(0, 1 + (len(signal) - offset - window) // shift)
        return signal.as_strided((count, window), (shift, 1), signal.storage_offset() + offset)

    def _emphasised(self, signal: Tensor) -> Tensor:
        """x[i] - preemphasis x[i-1], for all frames at once; entry 0 is of no use.

        Summed as (x[i] - x[i-1]) + (1 - preemphasis) x[i-1], so that a constant offset meets its mean, scaled
        alike, without a rounding error in between: digital silence with an offset stays digital silence.
        """
        earlier = signal[:-1]
        result = torch.empty_like(signal)
        result[0] = 0
        torch.sub(signal[1:], earlier, out=result[1:])
        result[1:] += earlier * self._rest
        return result

    @property
    def _rest(self) -> float:
        """1 - preemphasis, of the single-precision number that Kaldi uses."""
        return 1.0 - float(torch.tensor(self.config.preemphasis, dtype=torch.float32))

    def _condition(self, frames: Tensor, emphasised: Tensor, block: list[range], padded: Tensor) -> None:
        """Fill `padded` (N, FFT size) with the frames of a block, offset removed and windowed.

        Each operation rounds once: a fused multiply-add could round differently where vector code ends.
        """
        window = self.config.window
        filled = 0
        for run in block:
            rows = slice(run.start, run.stop)
            target = padded[filled : filled + len(run), 1:window]  # the window is zero at sample 0
            if self.config.remove_dc_offset:
                torch.sub(emphasised[rows], frames[rows].mean(1, keepdim=True).mul_(self._rest), out=target)
            else:
                target.copy_(emphasised[rows])
            filled += len(run)
        padded[:filled, 1:window].mul_(self.window[1:])
        padded[filled:].zero_()


def _blocks(runs: Sequence[range], size: int) -> Iterator[list[range]]:
    """Cut and join runs of frames into blocks of `size` frames; the last block may have fewer."""
    block: list[range] = []
    room = size
    for run in runs:
        while len(run):
            block.append(run[:room])
            run = run[room:]
            room -= len(block[-1])
            if room == 0:
                yield block
                block, room = [], size
    if block:
        yield block


def povey_window(size: int) -> Tensor:
    """Kaldi's default window: a Hann window to the power 0.85; (size,) float32, zero at both ends."""
    phase = 2 * math.pi / (size - 1) * torch.arange(size, dtype=torch.float64)
    return (0.5 - 0.5 * torch.cos(phase)).pow(0.85).float()


def mel_filters(config: FbankConfig) -> Tensor:
    """Triangular filters H, (FFT size / 2, M) float32, in float32 arithmetic as in Kaldi.

    The Nyquist bin has no weight, as in Kaldi. A filter too narrow to hold any FFT bin is all zeros, and its
    feature is then the floor, where Kaldi refuses.
    """
    bins = config.fft_size // 2
    hertz = torch.arange(bins, dtype=torch.float32) * (config.sample_rate / config.fft_size)
    low, high = (_mel_scale(torch.tensor(f, dtype=torch.float32)) for f in config.band)
    step = (high - low) / (config.num_mel_bins + 1)
    index = torch.arange(config.num_mel_bins, dtype=torch.float32)
    left, centre, right = (low + (index + i) * step for i in range(3))
    mel = _mel_scale(hertz)[:, None]
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)


def _mel_energies(padded: Tensor, weights: list[tuple[slice, slice, Tensor]], energies: Tensor) -> None:
    """Power spectrum of one block (N, FFT size), weighed by the filters into `energies` (N, M).

    Every call has the same shape, see the module's docstring. Given `out`, the products are also out of
    reach of autocast.
    """
    spectrum = torch.view_as_real(torch.fft.rfft(padded)).flatten(1)
    power = spectrum.mul_(spectrum).to(energies.dtype)
    for filters, bins, weight in weights:
        torch.mm(power[:, bins], weight, out=energies[:, filters])


def _mel_groups(mel: Tensor) -> list[tuple[slice, slice]]:
    """Split the filters into groups, each with the (doubled) FFT bins that it covers.

    Filters are narrow, so most of H is zero: a few small products leave out most of it. A group that covers
    no bin gets one bin of weight zero.
    """
    groups = []
    for first in range(0, mel.shape[1], MEL_GROUP):
        filters = slice(first, min(first + MEL_GROUP, mel.shape[1]))
        covered = mel[:, filters].any(dim=1).nonzero().flatten().tolist() or [0]
        groups.append((filters, slice(2 * covered[0], 2 * covered[-1] + 2)))
    return groups


def _mel_scale(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log(1.0 + hertz / 700.0)


def _product_dtype(device: torch.device) -> torch.dtype:
    """Float64 wherever a setting made for training could turn a float32 product into TF32 or bfloat16."""
    if device.type == "cuda" or (device.type == "cpu" and torch.get_float32_matmul_precision() != "highest"):
        return torch.float64
    return torch.float32
