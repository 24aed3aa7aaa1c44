"""What the streaming benchmarks of encoders share: chunks must give the whole, then steps are timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from asr.encoders.base import Encoder


def agree(encoder: Encoder, frames: int = 32) -> None:
    """Exits unless chunks of so many feature frames give the whole, to 1e-4."""
    x = torch.randn(1, 10 * frames, encoder.input_dim)
    length = torch.tensor([x.shape[1]])
    whole, state, parts = encoder(x, length).y, encoder.initial_state(1), []
    for part in x.split(frames, dim=1):
        y, y_lengths, state = encoder(part, torch.tensor([part.shape[1]]), state)
        parts.append(y[:, : int(y_lengths)])
    last = encoder.flush(state)
    parts.append(last.y[:, : int(last.y_lengths)])
    error = float((torch.cat(parts, dim=1) - whole).abs().max())
    if not error < 1e-4:
        sys.exit(f"wrong: chunks differ from the whole by {error:.1e}")


def step_times(hear: Callable[[Any], Any], state: Any, chunks: int) -> list[float]:
    """Seconds of each chunk, of streams that have heard a few chunks."""
    times = []
    for number in range(chunks + 12):
        start = time.perf_counter()
        state = hear(state)
        if number >= 12:
            times.append(time.perf_counter() - start)
    return times
