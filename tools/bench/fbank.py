"""Speed of `asr.features.fbank` beside torchaudio.compliance.kaldi.fbank, in one process.

    python tools/bench/fbank.py                       # 2 threads, then 1
    python tools/bench/fbank.py --threads 1 --repeats 30

Whole files: one of 60 s, and a batch of 16 of 12 s, for which torchaudio is called 16 times, as it has no
batches. Live: one stream in chunks of 40 ms and of 10 ms. Speech-like 16-bit audio at 16 kHz, 80 bins, 25/10
ms, no snip_edges. Before any time is printed, features must agree with kaldi-native-fbank to 1e-3, and
chunks must give the bits of the whole. The contestants take turns, so that a disturbance hits both; times are
medians, the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import kaldi_native_fbank
import torch
import torchaudio.compliance.kaldi
from measure import in_turn
from torch import Tensor

from asr.features.fbank import Fbank, FbankConfig

RATE = 16000
TOLERANCE = 1e-3


def audio(seconds: float, seed: int) -> Tensor:
    """Harmonics of a gliding pitch in syllables, with noise; (N,) float32 of 16-bit values."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    phase = 2 * torch.pi * torch.cumsum(130 + 40 * torch.sin(4 * t + seed), 0) / RATE
    voice = sum(torch.sin(h * phase) / h for h in range(1, 20)) * (torch.sin(14 * t) + 0.3).clamp(min=0)
    wave = 0.1 * voice + 0.003 * torch.randn(len(t), generator=generator)
    return ((wave * 32768).round().clamp(-32768, 32767) / 32768).float()


def peer(samples: Tensor) -> Tensor:
    return torchaudio.compliance.kaldi.fbank(samples[None] * 32768, num_mel_bins=80, snip_edges=False)


def live(fbank: Fbank, samples: Tensor, chunk: int) -> Tensor:
    state, parts = fbank.initial_state(1), []
    for part in samples[None].split(chunk, dim=1):
        features, _, state = fbank(part, torch.tensor([part.shape[1]]), state)
        parts.append(features[0])
    return torch.cat([*parts, fbank.flush(state).features[0]])


def kaldi(samples: Tensor) -> Tensor:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.snip_edges = False
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = 0.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(RATE, (samples * 32768).tolist())
    fbank.input_finished()
    return torch.stack([torch.from_numpy(fbank.get_frame(i)) for i in range(fbank.num_frames_ready)])


def audible(features: Tensor) -> Tensor:
    """Without energies below that of the last bit of the audio: there, either is rounding."""
    return features.clamp(min=0.0)


def check(fbank: Fbank, batch: Tensor, lengths: Tensor) -> None:
    """Exits unless features agree with Kaldi, and chunks give the bits of the whole."""
    found = fbank(batch, lengths).features
    for name, oracle in (("Kaldi", kaldi), ("torchaudio", peer)):
        pairs = ((audible(a), audible(oracle(b))) for a, b in zip(found, batch, strict=True))
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        print(f"  largest difference from {name}: {difference:.1e}")
        if name == "Kaldi" and not difference < TOLERANCE:
            sys.exit("wrong: no times for wrong features")
    if not torch.equal(live(fbank, batch[0], 640), found[0]):
        sys.exit("wrong: chunks of 40 ms do not give the bits of the whole")


def compare(name: str, seconds: float, times: list[float]) -> None:
    mine, theirs = times
    print(
        f"  {name:<18} ours {mine * 1e3:7.2f} ms ({seconds / mine:7.0f} x real time)   "
        f"torchaudio {theirs * 1e3:7.2f} ms   ratio {theirs / mine:.2f}"
    )


def stream(fbank: Fbank, chunk: int, repeats: int) -> None:
    """Median cost of a chunk in the middle of a stream."""
    samples, length = audio(chunk * 20 / RATE, 2)[None], torch.tensor([chunk])
    parts, costs, state = samples.split(chunk, dim=1), [], fbank.initial_state(1)
    for _ in range(max(5, repeats)):
        for part in parts:
            start = time.perf_counter()
            state = fbank(part, length, state).state
            costs.append(time.perf_counter() - start)
    cost, ms = statistics.median(costs), chunk * 1000 // RATE
    print(f"  live, {ms} ms chunks  {cost * 1e6:7.0f} us each   real-time factor {cost * 1e3 / ms:.4f}")


def bench(threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    fbank = Fbank(FbankConfig(sample_rate=RATE, num_mel_bins=80, snip_edges=False))
    minute, minute_length = audio(60, 0)[None], torch.tensor([60 * RATE])
    batch, lengths = torch.stack([audio(12, seed) for seed in range(16)]), torch.full((16,), 12 * RATE)
    print(f"{threads} thread(s)")
    check(fbank, minute, minute_length)
    check(fbank, batch, lengths)
    compare(
        "one of 60 s", 60, in_turn(repeats, lambda: fbank(minute, minute_length), lambda: peer(minute[0]))
    )
    compare(
        "batch of 16 x 12 s",
        192,
        in_turn(repeats, lambda: fbank(batch, lengths), lambda: [*map(peer, batch)]),
    )
    stream(fbank, 640, repeats)
    stream(fbank, 160, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    for threads in arguments.threads:
        bench(threads, arguments.repeats)


if __name__ == "__main__":
    main()
