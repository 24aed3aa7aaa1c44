"""`asr align`: when each word of a known text was said."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asr.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asr.align import AlignedCut, Options, TextAlignment
    from asr.recognizer import Recognizer

MAX_TEXT_BYTES = 4 << 20
"""A book has about a million characters."""
SUFFIXES = {"json": "jsonl", "ctm": "ctm"}
"""Formats whose utterances go into one file."""


def align(
    audio: Annotated[Path | None, typer.Argument(help="Recording: wav, flac, ogg, opus, mp3.")] = None,
    text: Annotated[str | None, typer.Argument(help="What is said in it, or @FILE with that.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead: a cut manifest whose recordings and texts are aligned.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; with --data a directory. Default: stdout.")
    ] = None,
    format: Annotated[Literal["json", "ctm", "textgrid"], typer.Option(help="Output format.")] = "json",
    model: options.ModelOption = None,
    head: options.HeadOption = None,
    normalization: Annotated[
        str, typer.Option(help="Normalisation of the text beforehand: none, basic, english.")
    ] = "none",
    max_memory_mb: Annotated[
        int, typer.Option("--max-memory-mb", min=1, help="Memory that one alignment may take.")
    ] = 2048,
    latency: options.LatencyOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Times of the words and tokens of known texts (forced alignment)."""
    from asr.align import Options, align_file
    from asr.errors import ConfigError
    from asr.recognizer import load

    one = audio is not None and text is not None
    if one == (data is not None) or (audio is None) != (text is None):
        raise ConfigError("expected a recording and its text (or @FILE), or --data MANIFEST with --out DIR")
    if data is not None and out is None:
        raise ConfigError("--data writes a file for every recording, or one of all: add --out DIR")
    if threads:
        import torch

        torch.set_num_threads(threads)
    chosen = Options(head, normalization, max_memory_mb << 20)
    recognizer = load(model, device, latency=options.parse_latency(latency))
    if data is not None:
        assert out is not None
        _align_all(recognizer, data, out, format, chosen)
        return
    assert audio is not None
    assert text is not None
    options.note_windows(recognizer, audio)
    rendered = render(align_file(recognizer, audio, _text(text), chosen), format, audio.stem)
    if out is None:
        print(rendered, end="")
    else:
        _write(out, rendered)


def render(alignment: TextAlignment, format_name: str, recording: str) -> str:
    """An alignment in a format, with a newline at its end; `recording` is its id."""
    from asr.cli.formats import render_ctm, render_json
    from asr.cli.textgrid import Interval, textgrid

    transcript = alignment.transcript
    if format_name == "ctm":
        return render_ctm(transcript, recording)
    if format_name == "textgrid":
        words = [Interval(word.start_s, word.end_s, word.text) for word in transcript.words]
        tokens = [Interval(token.start_s, token.end_s, token.piece) for token in transcript.tokens]
        return textgrid(transcript.duration_s, {"words": words, "tokens": tokens})
    entry: dict[str, Any] = json.loads(render_json(transcript, recording))
    entry["log_prob"] = round(alignment.log_prob, 4)
    entry["tokens"] = [
        {
            "text": token.piece,
            "start_s": round(token.start_s, 3),
            "end_s": round(token.end_s, 3),
            "log_prob": round(log_prob, 4),
        }
        for token, log_prob in zip(transcript.tokens, alignment.log_probs, strict=True)
    ]
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def _align_all(recognizer: Recognizer, manifest: Path, out: Path, format_name: str, chosen: Options) -> None:
    """A file of all utterances or one of each, and OUT/<name of the manifest> with the words' times."""
    from asr.align import align_manifest
    from asr.config import replacing
    from asr.data.manifests import write_cuts
    from asr.errors import ConfigError
    from asr.evaluate import windows_lines

    aligned = out / manifest.name
    if aligned.resolve() == manifest.resolve():
        raise ConfigError(f"--out {out}: expected another directory than that of {manifest}")
    out.mkdir(parents=True, exist_ok=True)
    counts, durations_s = {"aligned": 0, "failed": 0}, list[float]()

    def cuts(write: Any) -> Iterator[Any]:
        for item in align_manifest(recognizer, manifest, chosen):
            if item.alignment is None:
                counts["failed"] += 1
                print(f"asr: {item.error}", file=sys.stderr)
                continue
            counts["aligned"] += 1
            durations_s.append(item.cut.duration)
            write(item)
            yield item.cut

    if format_name in SUFFIXES:
        with replacing(out / f"alignment.{SUFFIXES[format_name]}") as stream:
            write_cuts(cuts(lambda item: stream.write(_rendered(item, format_name).encode())), aligned)
    else:
        names = _Names(out)
        write_cuts(cuts(lambda item: _write(names.of(item.cut.id), _rendered(item, format_name))), aligned)
    for line in windows_lines(recognizer, durations_s):
        print(line)
    print(f"{counts['aligned']} utterances aligned, {counts['failed']} not: {out}")
    if counts["failed"]:
        raise typer.Exit(1)


def _rendered(item: AlignedCut, format_name: str) -> str:
    assert item.alignment is not None
    return render(item.alignment, format_name, item.cut.id)


class _Names:
    """File names of utterances: their ids, without what leads elsewhere, each only once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._taken: set[str] = set()

    def of(self, utterance: str) -> Path:
        """DIR/ID.TextGrid, with a number if another id has become the same name."""
        plain = re.sub(r"[^\w.+=@-]", "_", utterance).lstrip(".")[:200] or "_"
        name, number = plain, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{plain}-{number}"
        self._taken.add(name.lower())
        return self.directory / f"{name}.TextGrid"


def _write(path: Path, content: str) -> None:
    from asr.config import write_atomically

    write_atomically(path, content.encode())


def _text(argument: str) -> str:
    """The text itself, or of @FILE."""
    from asr.errors import DataError

    if not argument.startswith("@"):
        return argument
    path = Path(argument[1:])
    if not path.is_file():
        raise DataError(f"{path}: expected a text file, found nothing there")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError(f"{path}: expected at most {MAX_TEXT_BYTES} bytes of text, found more")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found byte {error.start} that is not") from error
