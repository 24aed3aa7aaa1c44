"""`asr data`: bring a corpus into cut manifests, check them, and write them as shards."""

from __future__ import annotations

import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli import options

if TYPE_CHECKING:
    from asr.data.check import CheckReport

SHOWN_IDS = 5

app = typer.Typer(
    help="Import corpora as lhotse cuts, check them, write them as shards.", no_args_is_help=True
)


class Kind(StrEnum):
    """Layouts that can be imported."""

    AUTO = "auto"
    LHOTSE = "lhotse"
    KALDI = "kaldi"
    NEMO = "nemo"
    LJSPEECH = "ljspeech"
    PAIRS = "pairs"


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A manifest, or a corpus directory.")],
    out: Annotated[Path, typer.Argument(help="Cut manifest to write, NAME.jsonl.gz.")],
    kind: Annotated[Kind, typer.Option(help="Layout of the source.")] = Kind.AUTO,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out utterances whose audio is missing.")
    ] = False,
) -> None:
    """Turn a corpus (lhotse, Kaldi, NeMo, LJSpeech layouts, pairs of files) into a cut manifest."""
    from rich.progress import TextColumn, TimeElapsedColumn

    from asr.data.importers import import_corpus
    from asr.data.manifests import write_cuts
    from asr.progress import progress_bar

    columns = (TextColumn("reading headers"), TextColumn("{task.completed} utterances"), TimeElapsedColumn())
    with progress_bar(*columns) as progress:
        task = progress.add_task("", total=None)
        imported = import_corpus(
            source, kind.value, skip_missing=skip_missing, progress=lambda: progress.advance(task)
        )
    write_cuts(imported.cuts, out)
    hours = sum(cut.duration for cut in imported.cuts) / 3600
    skipped = f", {len(imported.skipped)} skipped for missing audio" if imported.skipped else ""
    print(f"{out}: {len(imported.cuts)} cuts, {hours:.3f} h{skipped}")


class Storage(StrEnum):
    """How shards hold recordings."""

    FLAC = "flac"
    OPUS = "opus"
    ORIGINAL = "original"


@app.command("shard")
def shard_command(
    manifest: Annotated[Path, typer.Argument(help="Cut manifest, for example DIR/train.jsonl.gz.")],
    out: Annotated[Path, typer.Argument(help="Directory to write, for example DIR/train.shar.")],
    shard_size: Annotated[int, typer.Option(min=1, help="Cuts in each shard.")] = 1000,
    form: Annotated[
        Storage,
        typer.Option("--format", help="flac: lossless; opus: small, lossy; original: the files as they are."),
    ] = Storage.FLAC,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out and count what cannot be read.")
    ] = False,
) -> None:
    """Write a corpus part as lhotse Shar, for sequential reading; `asr train` takes DIR/PART.shar.

    An interrupted command goes on where it was when it is given again.
    """
    from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from asr.data.shard_writer import write_shards
    from asr.progress import progress_bar

    columns = (TextColumn("writing shards"), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with progress_bar(*columns) as display:
            task = display.add_task("", total=None)
            card = write_shards(
                manifest,
                out,
                shard_size=shard_size,
                form=form.value,
                skip_broken=skip_broken,
                progress=lambda done, total: display.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        print(f"{out}: interrupted; the same command goes on with what is there", file=sys.stderr)
        raise typer.Exit(options.INTERRUPTED) from None
    skipped = f", {card.skipped} left out because they could not be read" if card.skipped else ""
    print(
        f"{out}: {card.cuts} cuts, {card.duration_s / 3600:.3f} h in {card.shards} shards, "
        f"{card.audio_bytes / 2**20:.1f} MiB of {form.value}{skipped}"
    )


@app.command("check")
def check_command(
    parts: Annotated[
        list[Path],
        typer.Argument(help="Cut manifests, checked together, and shards, of which all samples are read."),
    ],
    all_samples: Annotated[
        bool, typer.Option("--all-samples", help="Read all samples, not only the headers.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Model directory whose tokenizer the texts must fit.")
    ] = None,
    subsampling: Annotated[int, typer.Option(min=1, help="Time reduction of the model.")] = 4,
) -> None:
    """Check recordings and texts; exit code 1 if anything is wrong."""
    from rich.progress import Progress

    from asr.data.check import check_cuts, check_shards
    from asr.data.manifests import read_cuts
    from asr.data.shards import SUFFIX, ShardedPart
    from asr.progress import progress_bar

    fitting = None
    if tokenizer is not None:
        from asr.text.tokenizer import load_tokenizer

        fitting = load_tokenizer(tokenizer)
    cuts = [cut for path in parts if path.suffix != SUFFIX for cut in read_cuts(path)]
    shards = [ShardedPart(path) for path in parts if path.suffix == SUFFIX]
    check_part = partial(check_shards, tokenizer=fitting, subsampling=subsampling)
    check_all = partial(check_cuts, all_samples=all_samples, tokenizer=fitting, subsampling=subsampling)
    reports = []
    with progress_bar(*Progress.get_default_columns()) as bar:
        if cuts:
            task = bar.add_task("checking", total=len(cuts))
            reports.append(check_all(cuts, progress=partial(bar.advance, task)))
        for part in shards:
            task = bar.add_task(f"checking {part.directory}", total=len(part))
            reports.append(check_part(part, progress=partial(bar.advance, task)))
    for report in reports:
        _print_report(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def _print_report(report: CheckReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from asr.data.check import PROBLEMS

    print(f"{report.cuts} cuts, {report.recordings} recordings, {report.duration_s / 3600:.3f} h")
    if report.ok:
        print("no problems found")
        return
    table = Table("problem", "cuts", "first ids", "first case")
    for kind, title in PROBLEMS.items():
        if ids := report.problems.get(kind):
            more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
            first = ", ".join(ids[:SHOWN_IDS]) + more
            table.add_row(title, str(len(ids)), escape(first), escape(report.details[kind]))
    Console().print(table)
