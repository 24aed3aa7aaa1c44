"""Live streams through recurrent encoders of about 10 million parameters, one thread, and one training step.

    python tools/bench/recurrent.py                       # every mixer
    python tools/bench/recurrent.py --mixers min_gru,lru  # some

Per mixer, the widest of 8 layers without more than 10 million parameters: time of a step that hears 40, 160
or 320 ms at once (`--latency`; the outputs are the same), as a real-time factor; bytes of a stream's state,
which must not change over an hour of frames; and forward and backward of (8, 400, 80) features. Before
anything is timed, chunks must give what the whole gives, to 1e-4. Times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from streams import agree, step_times

from asr import state as states
from asr.encoders import RecurrentEncoder, RecurrentEncoderConfig, build_encoder
from asr.encoders.mixers import mixers

BINS, SHIFT_S = 80, 0.01
LARGEST = 10_000_000
STEPS_S = (0.04, 0.16, 0.32)


def of_ten_million(kind: str) -> RecurrentEncoder:
    """The widest that fits; widths are multiples of 16, for the heads."""
    found = None
    for dim in range(160, 640, 16):
        config = RecurrentEncoderConfig(mixer={"kind": kind}, dim=dim, layers=8)
        torch.manual_seed(0)
        encoder = build_encoder(config, BINS, SHIFT_S)
        assert isinstance(encoder, RecurrentEncoder)
        if sum(p.numel() for p in encoder.parameters()) > LARGEST:
            break
        found = encoder
    assert found is not None
    return found.eval()


def hear(encoder: RecurrentEncoder, frames: int, state: Any) -> Any:
    x = torch.zeros(1, frames, BINS).normal_()
    return encoder(x, torch.tensor([frames]), state).state


def hour(encoder: RecurrentEncoder) -> int:
    """Bytes of a stream's state; exits if they change over an hour."""
    state = encoder.initial_state(1)
    sizes = {states.bytes_per_stream(state)}
    for _ in range(36):
        state = hear(encoder, 10_000, state)
        sizes.add(states.bytes_per_stream(state))
    if len(sizes) != 1:
        sys.exit(f"wrong: the state takes from {min(sizes)} to {max(sizes)} bytes")
    return sizes.pop()


def training_s(encoder: RecurrentEncoder, repeats: int) -> float:
    x, lengths, times = torch.randn(8, 400, BINS), torch.full((8,), 400), []
    for _ in range(repeats):
        encoder.zero_grad(set_to_none=True)
        start = time.perf_counter()
        encoder(x, lengths).y.square().sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(kind: str, repeats: int) -> None:
    encoder = of_ten_million(kind)
    size, dim = sum(p.numel() for p in encoder.parameters()), encoder.config.dim
    with torch.inference_mode():
        agree(encoder)
        held = hour(encoder)
        factors = []
        for step_s in STEPS_S:
            step = partial(hear, encoder, round(step_s / SHIFT_S))
            times = step_times(step, encoder.initial_state(1), 10 * repeats)
            factors.append(statistics.median(times) / step_s)
    shown = "  ".join(f"{factor:.4f}" for factor in factors)
    print(
        f"{kind:16} {size / 1e6:5.2f} M, width {dim:3}   {shown}   {held:8,} bytes   "
        f"{1000 * training_s(encoder.train(), repeats):6.0f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixers", default=",".join(mixers()), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="training steps; ten times as many chunks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = ", ".join(f"{1000 * step_s:.0f}" for step_s in STEPS_S)
    print(f"mixer; size; real-time factor of steps of {steps} ms; state of a stream; training step")
    for kind in arguments.mixers.split(","):
        measure(kind, arguments.repeats)


if __name__ == "__main__":
    main()
