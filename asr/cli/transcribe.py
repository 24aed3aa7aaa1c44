"""`asr transcribe`: recordings to text, whole or as live audio."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from asr.cli.options import (
    HeadOption,
    LatencyOption,
    MaxLengthOption,
    NothingOption,
    SilenceOption,
    StatsOption,
    VadOption,
    endpoint_of,
    parse_latency,
    voice_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asr.live import Update
    from asr.recognizer import Recognizer, Transcript


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings: wav, flac, ogg, opus, mp3.")],
    model: Annotated[Path, typer.Option(help="Model directory.")],
    format: Annotated[
        Literal["txt", "json", "srt", "vtt", "ctm"], typer.Option(help="Output format.")
    ] = "txt",
    live: Annotated[
        bool, typer.Option("--stream", help="Feed as live audio and show partial results.")
    ] = False,
    chunk_ms: Annotated[float, typer.Option(min=1, help="Audio per feed with --stream.")] = 100.0,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="With --stream, feed at the speed of speech.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="With one file, draw log-mel, token times and words to this PNG.")
    ] = None,
    silence: SilenceOption = None,
    max_length: MaxLengthOption = None,
    nothing: NothingOption = None,
    vad: VadOption = False,
    stats: StatsOption = False,
    latency: LatencyOption = None,
    head: HeadOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Transcribe recordings. Results go to stdout, partial results to stderr."""
    from asr.cli.formats import render
    from asr.errors import AsrError, ConfigError
    from asr.live import feed_file
    from asr.recognizer import load

    if len(files) > 1 and (picture or format in {"srt", "vtt"}):
        option = "--picture" if picture else f"--format {format}"
        raise ConfigError(f"{option} is about one recording, found {len(files)} files; give them one by one")
    if threads:
        import torch

        torch.set_num_threads(threads)
    endpoint = endpoint_of(silence, max_length, nothing)
    if not live and (endpoint or vad or stats):
        raise ConfigError(
            "--silence, --max-length, --nothing, --vad and --stats are for live audio: add --stream"
        )
    recognizer = load(model, device, latency=parse_latency(latency), head=head)
    failed = 0
    for file in files:
        try:
            if live:
                voice = voice_of(vad, recognizer.sample_rate)
                updates = feed_file(
                    recognizer, file, chunk_ms / 1000, realtime=realtime, endpoint=endpoint, voice=voice
                )
                transcript = _live(updates, file, stats)
            else:
                transcript = recognizer.transcribe(file)
        except AsrError as error:
            # One bad file must not lose the others' results; the exit code says that something failed.
            print(f"asr: {error}", file=sys.stderr)
            failed += 1
            continue
        _warn_truncated(file, transcript)
        print(render(transcript, format, file.stem), end="", flush=True)
        if picture:
            _draw(picture, recognizer, file, transcript)
            print(f"picture: {picture}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _live(updates: Iterator[Update], file: Path, stats: bool) -> Transcript:
    """Show a file that is fed as live audio as it is heard; all its utterances as one transcript."""
    from asr.transcript import join

    finals: list[Transcript] = []
    current, last = None, None
    try:
        for last in updates:
            if current is None or last.transcript.text != current.text:
                print(f"[{last.heard_s:7.2f} s] {last.transcript.text}", file=sys.stderr, flush=True)
            current = last.transcript
            if last.final:
                finals.append(last.transcript)
                current = None
                if stats and last.response is not None:
                    print(f"  {last.response}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"asr: {file}: interrupted; this is what was heard", file=sys.stderr)
    if stats and last is not None:
        print(last.stats, file=sys.stderr)
    return join([*finals, *([current] if current else [])])


def _warn_truncated(file: Path, transcript: Transcript) -> None:
    if transcript.truncated_frames:
        print(
            f"asr: {file}: the bound on symbols per frame stopped the search on "
            f"{transcript.truncated_frames} frames; the model may be diverging, or raise search.max_symbols",
            file=sys.stderr,
        )


def _draw(path: Path, recognizer: Recognizer, file: Path, transcript: Transcript) -> None:
    """Log-mel, emission times and words of one recording."""
    from asr.audio import read_audio
    from asr.score.picture import TokenMark, WordMark, draw_transcript

    features = recognizer.features(read_audio(file, recognizer.sample_rate).samples)
    tokens = [TokenMark(t.piece, t.start_s, t.confidence) for t in transcript.tokens]
    words = [WordMark(*word) for word in transcript.words]
    title = f"{file.name}: {transcript.text}"
    draw_transcript(
        path, features, recognizer.fbank.shift_s, tokens, words, title, synthetic=recognizer.config.synthetic
    )
