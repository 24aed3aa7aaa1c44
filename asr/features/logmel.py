"""The mathematics of one log-mel frame, Kaldi-compatible, for many frames at once.

For each frame x of W samples in 16-bit units::

    d[i] = x[i] - mean(x)
    y[i] = w[i] (d[i] - preemphasis d[i-1])      w[i] = (0.5 - 0.5 cos(2 pi i / (W-1)))^0.85   (Povey)
    P[k] = |FFT(y)[k]|^2                         FFT size: W rounded up to a power of two
    mel[m] = log(max(eps, sum_k H[k, m] P[k]))   H: triangles on the scale 1127 log(1 + f / 700)

Source: Kaldi, feat/feature-window.cc, feature-fbank.cc, mel-computations.cc. Kaldi's rule for the first
sample, d[0] - preemphasis d[0], has no effect here because the window starts at exactly zero.

`FbankConfig.whisper` is another such front end: the periodic Hann window 0.5 - 0.5 cos(2 pi i / W), no
preemphasis and no mean taken off, an FFT as long as the window, and triangles over hertz of equal area whose
corners lie on Slaney's scale (linear to 1 kHz, logarithmic beyond; Slaney 1998, "Auditory toolbox").

A frame's features do not depend on the frames beside it, to the last bit: arithmetic on samples is one
rounding per operation, and the FFT and the matrix products, whose library kernels may round differently for
a different number of rows, always get blocks of one number of rows (`CPU_ROWS`), the last one filled up
with zeros. Such a block is also what keeps the temporaries in the second-level cache.

Departures: samples are given in [-1, 1], not as 16-bit integers (the window carries the factor); window
types other than Povey and Hann, the energy column and vocal tract warping are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asr.config import Config

FULL_SCALE = 32768.0
"""Kaldi's features are those of 16-bit integers; a power of two, so scaling costs no precision."""

EPSILON = torch.finfo(torch.float32).eps
"""Kaldi's floor under the logarithm."""

CPU_ROWS = 256
"""Frames per block on a CPU: temporaries of 1.5 MB, and some 0.2 ms for an almost empty block."""

GPU_ROWS = 4096
"""Frames per block elsewhere: an almost empty block is cheap there, and each block costs kernel launches."""

SLANEY_KNEE = 15.0
"""1 kHz on Slaney's scale, where it turns logarithmic."""

WHISPER_STD = 4 * math.log(10)
WHISPER_MEAN = 2 * math.log(FULL_SCALE) - WHISPER_STD
"""(x - mean) / std of these features is what Whisper hears, (log10(energy) + 4) / 4 of samples in [-1, 1]."""

MEL_GROUP = 16
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
    window_type: Literal["povey", "hann"] = "povey"
    """Kaldi's default, or a periodic Hann window."""
    round_to_power_of_two: bool = True
    """False: the FFT is as long as the window."""
    mel_scale: Literal["htk", "slaney"] = "htk"
    """Where the filters lie and what they are: as in Kaldi, or of equal area on Slaney's scale."""
    mel_floor: float = Field(EPSILON, gt=0)
    """Least energy of a filter, under the logarithm."""

    @classmethod
    def whisper(cls) -> Self:
        """The front end of Whisper but for its last step, which `WHISPER_MEAN` and `WHISPER_STD` undo.

        Radford et al. 2022, "Robust speech recognition via large-scale weak supervision". Departures: Whisper
        puts frames 5 ms earlier, and its floor is 8 decades below the loudest filter of 30 s, which nobody
        knows live; the floor here is where that of speech at a usual level is.
        """
        return cls(
            low_freq=0.0,
            preemphasis=0.0,
            remove_dc_offset=False,
            window_type="hann",
            round_to_power_of_two=False,
            mel_scale="slaney",
            mel_floor=FULL_SCALE**2 * 10**-7.5,
        )

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
        """Samples of the FFT, the window and maybe zeros."""
        if not self.round_to_power_of_two:
            return self.window
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


class Run(NamedTuple):
    """Consecutive frames of one signal."""

    signal: Tensor
    """(K,) float32 in [-1, 1], contiguous; the first frame begins at sample 0."""
    frames: int
    """How many; all of which end inside of the signal."""


class LogMel(nn.Module):
    """Log-mel features of runs of frames."""

    later_window: Tensor
    mel: Tensor

    def __init__(self, config: FbankConfig) -> None:
        super().__init__()
        self.config = config
        mel = mel_filters(config)
        # Real and imaginary parts lie side by side in memory: with every row of H given twice, the matrix
        # product adds them up, which is cheaper than a pass over strided memory.
        self.register_buffer("mel", mel.repeat_interleave(2, dim=0).contiguous(), persistent=False)
        window = povey_window if config.window_type == "povey" else hann_window
        self.register_buffer("later_window", window(config.window)[1:] * FULL_SCALE, persistent=False)
        self._groups = _mel_groups(mel)
        # 1 - preemphasis, of the single-precision number that Kaldi uses
        self._rest = 1.0 - float(torch.tensor(config.preemphasis, dtype=torch.float32))

    @torch.inference_mode()  # a tenth faster than no_grad; `output` stays an ordinary tensor
    def forward(self, runs: Sequence[Run], output: Tensor) -> None:
        """Write the features of all frames of `runs`, in order, into the rows of `output` (R, M) float32."""
        size = CPU_ROWS if output.device.type == "cpu" else GPU_ROWS
        mel = self.mel.to(_product_dtype(output.device))
        energies = mel.new_empty(size, self.config.num_mel_bins)
        products = [
            (first, stop - first, mel[first:stop, filters], energies[:, filters])
            for filters, first, stop in self._groups
        ]
        padded = output.new_empty(size, self.config.fft_size)
        padded[:, self.config.window - 1 :] = 0
        done = 0
        for block in _blocks(runs, size, self.config.shift):
            n = self._condition(block, padded)
            _mel_energies(padded, products)
            torch.log(
                energies.narrow(0, 0, n).clamp_(min=self.config.mel_floor), out=output.narrow(0, done, n)
            )
            done += n

    def _condition(self, block: list[Run], padded: Tensor) -> int:
        """Fill `padded` (N, FFT size) with the frames of a block, conditioned and windowed; their number.

        Each operation rounds once: a fused multiply-add could round differently where vector code ends.
        Sample 0 is left out, because its window is zero, and the others are moved up by one, which changes
        the phase of the spectrum only, but keeps memory accesses aligned.
        """
        window, shift = self.config.window, self.config.shift
        body = padded.narrow(1, 0, window - 1)
        filled = 0
        for signal, count in block:
            signal = signal.narrow(0, 0, (count - 1) * shift + window)
            emphasised = self._emphasised(signal).as_strided((count, window - 1), (shift, 1))
            target = body.narrow(0, filled, count)
            if self.config.remove_dc_offset:
                frames = signal.as_strided((count, window), (shift, 1))
                torch.sub(emphasised, frames.mean(1, keepdim=True).mul_(self._rest), out=target)
            else:
                target.copy_(emphasised)
            filled += count
        body.narrow(0, 0, filled).mul_(self.later_window)
        if filled < len(padded):
            padded[filled:] = 0
        return filled

    def _emphasised(self, signal: Tensor) -> Tensor:
        """x[i+1] - preemphasis x[i], (K - 1,).

        Summed as (x[i+1] - x[i]) + (1 - preemphasis) x[i], so that a constant offset meets its mean, scaled
        alike, without a rounding error in between: digital silence with an offset stays digital silence.
        """
        count = len(signal) - 1
        earlier, later = signal.narrow(0, 0, count), signal.narrow(0, 1, count)
        return (later - earlier).add_(earlier * self._rest)


def _blocks(runs: Sequence[Run], size: int, shift: int) -> Iterator[list[Run]]:
    """Cut and join runs into blocks of `size` frames; the last block may have fewer."""
    block: list[Run] = []
    room = size
    for signal, count in runs:
        done = 0
        while done < count:
            taken = min(room, count - done)
            block.append(Run(signal[done * shift :] if done else signal, taken))
            done += taken
            room -= taken
            if room == 0:
                yield block
                block, room = [], size
    if block:
        yield block


def povey_window(size: int) -> Tensor:
    """Kaldi's default window: a Hann window to the power 0.85; (size,) float32, zero at both ends."""
    phase = 2 * math.pi / (size - 1) * torch.arange(size, dtype=torch.float64)
    return (0.5 - 0.5 * torch.cos(phase)).pow(0.85).float()


def hann_window(size: int) -> Tensor:
    """The periodic Hann window, (size,) float32, zero at its start."""
    return torch.hann_window(size, dtype=torch.float64).float()


def mel_filters(config: FbankConfig) -> Tensor:
    """Triangular filters H, (FFT size / 2, M) float32, in float32 arithmetic as in Kaldi.

    The Nyquist bin has no weight, as in Kaldi. A filter too narrow to hold any FFT bin is all zeros, and its
    feature is then the floor, where Kaldi refuses.
    """
    if config.mel_scale == "slaney":
        return _slaney_filters(config)
    bins = config.fft_size // 2
    hertz = torch.arange(bins, dtype=torch.float32) * (config.sample_rate / config.fft_size)
    low, high = (_mel_scale(torch.tensor(f, dtype=torch.float32)) for f in config.band)
    step = (high - low) / (config.num_mel_bins + 1)
    index = torch.arange(config.num_mel_bins, dtype=torch.float32)
    left, centre, right = (low + (index + i) * step for i in range(3))
    mel = _mel_scale(hertz)[:, None]
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)


def _slaney_filters(config: FbankConfig) -> Tensor:
    """(FFT size / 2, M) float32: triangles over hertz, of area 1, with corners evenly on Slaney's scale."""
    low, high = (_slaney_scale(f) for f in config.band)
    mel = torch.linspace(low, high, config.num_mel_bins + 2, dtype=torch.float64)
    corners = torch.where(mel < SLANEY_KNEE, mel * 200 / 3, 1000 * 6.4 ** ((mel - SLANEY_KNEE) / 27))
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.arange(config.fft_size // 2, dtype=torch.float64)
    hertz = (bins * config.sample_rate / config.fft_size)[:, None]
    rising, falling = (hertz - left) / (centre - left), (right - hertz) / (right - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)).float()


def _slaney_scale(hertz: float) -> float:
    if hertz < 1000:
        return 3 * hertz / 200
    return SLANEY_KNEE + 27 * math.log(hertz / 1000) / math.log(6.4)


def _mel_energies(padded: Tensor, products: list[tuple[int, int, Tensor, Tensor]]) -> None:
    """Power spectrum of one block (N, FFT size), weighed by the filters.

    Each product is the first and the number of the (doubled) FFT bins, their weights, and where the energies
    go. Every call has the same shapes, see the module's docstring. Given `out`, the products are also out of
    reach of autocast.
    """
    spectrum = torch.view_as_real(torch.fft.rfft(padded)).flatten(1)
    power = spectrum.mul_(spectrum)
    if products[0][2].dtype != power.dtype:
        power = power.to(products[0][2].dtype)
    for first, count, weights, energies in products:
        torch.mm(power.narrow(1, first, count), weights, out=energies)


def _mel_groups(mel: Tensor) -> list[tuple[slice, int, int]]:
    """Split the filters into groups, each with the first and last (doubled) FFT bin that it covers.

    Filters are narrow, so most of H is zero: a few small products leave out most of it. A group that covers
    no bin gets one bin of weight zero.
    """
    groups = []
    for first in range(0, mel.shape[1], MEL_GROUP):
        filters = slice(first, min(first + MEL_GROUP, mel.shape[1]))
        covered = mel[:, filters].any(dim=1).nonzero().flatten().tolist() or [0]
        groups.append((filters, 2 * covered[0], 2 * covered[-1] + 2))
    return groups


def _mel_scale(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log(1.0 + hertz / 700.0)


def _product_dtype(device: torch.device) -> torch.dtype:
    """Float64 wherever a setting made for training could turn a float32 product into TF32 or bfloat16."""
    if device.type == "cuda" or (device.type == "cpu" and torch.get_float32_matmul_precision() != "highest"):
        return torch.float64
    return torch.float32
