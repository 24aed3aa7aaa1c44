"""The command line `asr`: parse, one library call, print.

A user's error is one line on stderr and exit code 1; `--debug` shows the traceback instead. Commands
import what they need when they run, so that help and version answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from asr import __version__
from asr.cli import (
    align,
    average,
    data,
    decode,
    export,
    finetune,
    info,
    lm,
    parity,
    score,
    stream,
    train,
    transcribe,
)
from asr.errors import AsrError

app = typer.Typer(
    name="asr",
    help="Speech recognition with RNN transducers: train, decode, score, transcribe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(lm.app, name="lm")
app.command("align")(align.align)
app.command("train")(train.train)
app.command("finetune")(finetune.finetune)
app.command("decode")(decode.decode)
app.command("stream")(stream.stream)
app.command("transcribe")(transcribe.transcribe)
app.command("parity")(parity.parity)
app.command("average")(average.average)
app.command("export")(export.export)
app.command("score")(score.score)
app.command("info")(info.info)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"asr {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point of the console script."""
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except AsrError as error:
        if debug:
            raise
        print(f"asr: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # full disks, directories that may not be written, ...
        if debug:
            raise
        print(f"asr: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
