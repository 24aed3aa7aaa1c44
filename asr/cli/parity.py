"""`asr parity`: does a model hear live what it hears in files?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import HeadOption, LatencyOption, parse_latency


def parity(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    files: Annotated[list[Path], typer.Argument(help="Recordings.")],
    latency: LatencyOption = None,
    head: HeadOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="How much of each recording is heard.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of the random pieces.")] = 0,
) -> None:
    """Hear recordings whole, in pieces, in a batch of streams and live; exit code 1 if they differ."""
    from asr.audio import read_audio
    from asr.errors import AudioError
    from asr.lengths import seconds_to_samples
    from asr.parity import TOLERANCE, check
    from asr.recognizer import load

    recognizer = load(model, latency=parse_latency(latency), head=head)
    recognizer.network.encoder.require_streaming()
    longest, alike = seconds_to_samples(seconds, recognizer.sample_rate), 0
    for file in files:
        try:
            samples = read_audio(file, recognizer.sample_rate).samples[:longest]
        except AudioError as error:
            print(f"asr: {error}", file=sys.stderr)
            continue
        found = check(recognizer, samples, seed=seed)
        differences = "  ".join(f"{way} {difference:.0e}" for way, difference in found.differences.items())
        print(
            f"{file}: {differences}  tokens {'equal' if found.same_tokens else 'DIFFER'} ({found.tokens})  "
            f"latency {1000 * found.measured_latency_s:.1f} of {1000 * found.stated_latency_s:.1f} ms, "
            f"live {1000 * found.live_latency_s:.1f} ms  state {found.state_bytes[1]:,} bytes",
            flush=True,
        )
        for fault in found.faults:
            print(f"asr: {file}: {fault}", file=sys.stderr)
        alike += not found.faults
    print(f"{alike} of {len(files)} recordings are heard alike (to {TOLERANCE:.0e})")
    if alike < len(files):
        raise typer.Exit(1)
