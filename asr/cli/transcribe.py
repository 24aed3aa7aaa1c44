"""`asr transcribe`: recordings to text, whole or as live audio."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from asr.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asr.errors import AsrError
    from asr.live import ShownWords, Update
    from asr.recognizer import Recognizer, Transcript
    from asr.text.tokenizer import Tokenizer


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings: wav, flac, ogg, opus, mp3.")],
    model: options.ModelOption = None,
    format: Annotated[
        Literal["txt", "json", "srt", "vtt", "ctm", "textgrid"], typer.Option(help="Output format.")
    ] = "txt",
    live: Annotated[
        bool, typer.Option("--stream", help="Feed as live audio and show partial results.")
    ] = False,
    chunk_ms: options.ChunkOption = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="With --stream, feed at the speed of speech.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="With one file, draw log-mel, token times and words to this PNG.")
    ] = None,
    silence: options.SilenceOption = None,
    max_length: options.MaxLengthOption = None,
    nothing: options.NothingOption = None,
    vad: options.VadOption = False,
    stats: options.StatsOption = False,
    latency: options.LatencyOption = None,
    window: options.WindowOption = None,
    overlap: options.OverlapOption = None,
    head: options.HeadOption = None,
    beam: options.BeamOption = None,
    lm: options.LmOption = None,
    hotwords: options.HotwordsOption = None,
    hotwords_boost: options.BoostOption = None,
    search: options.SearchOption = None,
    nbest: options.NbestOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Transcribe recordings. Results go to stdout, partial results to stderr."""
    from asr.errors import ConfigError
    from asr.live import ShownWords, feed_file
    from asr.recognizer import load

    _check_one(files, format, picture)
    endpoint = options.endpoint_of(silence, max_length, nothing)
    if not live and (endpoint or vad or stats or realtime or chunk_ms):
        raise ConfigError(
            "--silence, --max-length, --nothing, --vad, --stats, --realtime and --chunk-ms are for live "
            "audio: add --stream"
        )
    options.check_voice(vad, endpoint)
    if nbest and format != "json":
        raise ConfigError(f"--nbest: expected --format json, found {format}")
    if threads:
        import torch

        torch.set_num_threads(threads)
    settings = options.search_settings(beam, lm, search, hotwords, hotwords_boost, nbest)
    recognizer = load(
        model,
        device,
        latency=options.parse_latency(latency),
        head=head,
        settings=settings,
        windows=options.windows_of(window, overlap),
    )
    if live:
        recognizer.network.encoder.require_streaming()
    feed = partial(
        feed_file,
        recognizer,
        chunk_s=(chunk_ms or options.CHUNK_MS) / 1000,
        realtime=realtime,
        endpoint=endpoint,
    )
    failed = False
    for file in files:
        if live:
            voice = options.voice_of(vad, recognizer.sample_rate)
            shown = ShownWords(recognizer.tokenizer) if stats else None
            heard = _live(partial(feed, file, voice=voice), recognizer.tokenizer, shown)
        else:
            heard = _whole(recognizer, file)
        _report(heard, file, format)
        failed = failed or heard.error is not None
        if heard.interrupted:
            raise typer.Exit(options.INTERRUPTED)
        if picture and heard.error is None and heard.transcript is not None:
            _draw(picture, recognizer, file, heard.transcript)
            print(f"picture: {picture}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _check_one(files: list[Path], format_name: str, picture: Path | None) -> None:
    """Raise ConfigError for several files where only one makes sense."""
    from asr.errors import ConfigError

    if len(files) > 1 and (picture or format_name in {"srt", "vtt", "textgrid"}):
        option = "--picture" if picture else f"--format {format_name}"
        raise ConfigError(f"{option} is about one recording, found {len(files)} files; give them one by one")


class _Heard(NamedTuple):
    """What became of a file."""

    transcript: Transcript | None
    error: AsrError | None = None
    interrupted: bool = False


def _whole(recognizer: Recognizer, file: Path) -> _Heard:
    from asr.errors import AsrError

    try:
        options.note_windows(recognizer, file)
        return _Heard(recognizer.transcribe(file))
    except AsrError as error:
        return _Heard(None, error)


def _live(feed: Callable[..., Iterator[Update]], tokenizer: Tokenizer, words: ShownWords | None) -> _Heard:
    """Show a file that is fed as live audio as it is heard; all its utterances as one transcript.

    With `words`, which watches them change, say how soon each was answered, and the speed.
    """
    from asr.errors import AsrError
    from asr.interrupt import Interrupt
    from asr.live import shown_text
    from asr.transcript import join

    finals: list[Transcript] = []
    last, failure, shown = None, None, ""
    with Interrupt() as interrupt:
        try:
            for last in feed(interrupt=interrupt):
                text = shown_text(last.event, tokenizer)
                if text != shown:
                    print(f"[{last.heard_s:7.2f} s] {text}", file=sys.stderr, flush=True)
                shown = text
                if last.final:
                    finals.append(last.transcript)
                    shown = ""
                if words is not None:
                    words.see(last.event)
                if words is not None and last.response is not None:
                    print(f"  {last.response}", file=sys.stderr)
        except AsrError as error:
            failure = error
    if words is not None and last is not None:
        print(last.stats, *words.stability.lines(), sep="\n", file=sys.stderr)
    return _Heard(join(finals) if finals else None, failure, interrupt.requested)


def _report(heard: _Heard, file: Path, format_name: str) -> None:
    """The result to stdout, what is wrong with it to stderr: one bad file must not lose the others."""
    from asr.cli.formats import render

    if heard.error is not None:
        print(f"asr: {heard.error}", file=sys.stderr)
    if heard.transcript is not None:
        _warn_truncated(file, heard.transcript)
        print(render(heard.transcript, format_name, file.stem), end="", flush=True)
    if heard.interrupted:
        print(f"asr: {file}: interrupted; this is what was heard", file=sys.stderr)


def _warn_truncated(file: Path, transcript: Transcript) -> None:
    from asr.transcript import bound_note

    if transcript.truncated_frames:
        print(f"asr: {file}: {bound_note(transcript.truncated_frames)}", file=sys.stderr)


def _draw(path: Path, recognizer: Recognizer, file: Path, transcript: Transcript) -> None:
    from asr.audio import read_audio
    from asr.drawing import draw_recording

    samples = read_audio(file, recognizer.sample_rate).samples
    draw_recording(path, recognizer, samples, file.name, transcript)
