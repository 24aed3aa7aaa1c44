"""`asr stream`: live audio from a microphone or a pipe to text."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from asr.cli import options

if TYPE_CHECKING:
    import numpy.typing as npt

    from asr.live import Update

BYTES = 2  # of a sample


def stream(
    model: options.ModelOption = None,
    mic: Annotated[bool, typer.Option("--mic", help="Hear the microphone (extra mic).")] = False,
    pipe: Annotated[bool, typer.Option("--stdin", help="Hear 16-bit mono samples from stdin.")] = False,
    rate: Annotated[int, typer.Option(min=1000, help="Samples per second.")] = 16000,
    device: Annotated[str | None, typer.Option(help="Input device: number or part of a name.")] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="Show the input devices.")] = False,
    block_ms: Annotated[float, typer.Option(min=5, max=2000, help="Audio per block.")] = 50.0,
    latency: options.LatencyOption = None,
    head: options.HeadOption = None,
    beam: options.BeamOption = None,
    lm: options.LmOption = None,
    hotwords: options.HotwordsOption = None,
    hotwords_boost: options.BoostOption = None,
    search: options.SearchOption = None,
    silence: options.SilenceOption = 0.8,
    max_length: options.MaxLengthOption = 20.0,
    nothing: options.NothingOption = 5.0,
    vad: options.VadOption = False,
    stats: options.StatsOption = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 1,
) -> None:
    """Transcribe live audio: utterances with their times to stdout, partial results to stderr."""
    from asr.errors import ConfigError
    from asr.microphone import devices, microphone

    if list_devices:
        print("\n".join(devices()) or "no input device")
        return
    if mic == pipe:
        raise ConfigError("expected --mic or --stdin, found " + ("both" if mic else "neither") + "; give one")
    if pipe and device is not None:
        raise ConfigError("--device is for --mic: leave it out, or give --mic instead of --stdin")
    endpoint = options.endpoint_of(silence, max_length, nothing)
    options.check_voice(vad, endpoint)
    import torch

    from asr.interrupt import Interrupt
    from asr.live import ShownWords, feed, shown_text
    from asr.recognizer import load

    if threads:
        torch.set_num_threads(threads)
    settings = options.search_settings(beam, lm, search, hotwords, hotwords_boost)
    recognizer = load(model, latency=options.parse_latency(latency), head=head, settings=settings)
    recognizer.network.encoder.require_streaming()
    voice, block_s = options.voice_of(vad, recognizer.sample_rate), block_ms / 1000
    source = microphone(rate, block_s, device) if mic else nullcontext(_pipe(rate, block_s))
    with Interrupt() as interrupt, source as blocks:
        if mic:
            print("listening; Ctrl-C ends", file=sys.stderr)
        last, words = None, ShownWords(recognizer.tokenizer)
        for last in feed(recognizer, blocks, rate, endpoint=endpoint, voice=voice, interrupt=interrupt):
            show(last, shown_text(last.event, recognizer.tokenizer), stats)
            if stats:
                words.see(last.event)
    if stats and last is not None:
        print(last.stats, *words.stability.lines(), sep="\n", file=sys.stderr)


def show(update: Update, text: str, stats: bool) -> None:
    """A partial text to stderr, on a terminal over the last; a final one to stdout, with its times."""
    terminal = sys.stderr.isatty()
    if not update.final:
        print(f"[{update.heard_s:7.2f} s] {text}", end="\r" if terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        return
    from asr.transcript import bound_note

    words = update.transcript.words
    if terminal:
        print("\x1b[2K", end="", file=sys.stderr, flush=True)
    if update.transcript.truncated_frames:
        print(f"asr: {bound_note(update.transcript.truncated_frames)}", file=sys.stderr, flush=True)
    if not update.transcript.text:
        return
    times = f"{words[0].start_s:.2f} {words[-1].end_s:.2f} " if words else ""
    print(f"{times}{update.transcript.text}", flush=True)
    if stats and update.response is not None:
        print(f"  {update.response}", file=sys.stderr, flush=True)


def _pipe(rate: int, block_s: float) -> Iterator[npt.NDArray[Any]]:
    """16-bit little-endian samples from stdin, as they come."""
    import numpy as np

    from asr.lengths import seconds_to_samples

    size, rest = BYTES * seconds_to_samples(block_s, rate), b""
    source = cast(io.BufferedReader, sys.stdin.buffer)
    while data := source.read1(size):
        data = rest + data
        whole = len(data) // BYTES * BYTES
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2")
