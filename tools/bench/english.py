"""Models of this toolkit beside others, on the same recordings, scored alike.

    python tools/bench/english.py DATA [--model DIR ...] [--peers pocketsphinx,whisper] [--parts NAME,...]
                                  [--sample N] [--seed N] [--whisper-model NAME_OR_DIR] [--out DIR]

DATA is what egs/english/prepare.py wrote. The peers are an extra: pip install 'asr-transducer[bench]'.
Every system runs in a process of its own on one thread, with its defaults (recognisers.py); what is measured,
and how texts are normalised, is said in comparison.py.

OUT gets `table.md`, `comparison.svg` and what every system heard, recording by recording: Ctrl-C stops after
the recording in hand, and the same command goes on there. A larger --sample holds every smaller one of the
same seed, so that a sample can grow to the whole part.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from comparison import Row, draw, measure, table
from decoding import Part, Start, System, decode, read_about, read_records, start_child
from recognisers import PACKAGES, require_peer

from asr.cli.options import INTERRUPTED
from asr.config import write_atomically
from asr.data.parts import find_part, open_part
from asr.errors import AsrError, ConfigError, ManifestError
from asr.interrupt import Interrupt

PARTS = ("test-so762-adults", "test-so762-children", "test-kathleen")


class Options(NamedTuple):
    """What to compare on what."""

    data: Path
    out: Path
    systems: Sequence[System]
    parts: Sequence[str] = PARTS
    sample: int = 0
    """Recordings of each part; 0: all."""
    seed: int = 0


def compare(options: Options, interrupt: Interrupt, start: Start = start_child) -> list[Row]:
    """Decode what is missing and score everything; nothing if it was interrupted. Raises AsrError."""
    parts = [read_part(options.data, name, options.sample, options.seed) for name in options.parts]
    for system in options.systems:
        decode(system, parts, options.out, interrupt, start)
        if interrupt.requested:
            return []
    return [_row(system, part, options.out) for part in parts for system in options.systems]


def _row(system: System, part: Part, out: Path) -> Row:
    records = read_records(out / system.name / f"{part.name}.jsonl")
    return measure(system.name, part, records, bool(read_about(system, out)["streaming"]))


def read_part(data: Path, name: str, sample: int, seed: int) -> Part:
    """The part's recordings, or `sample` of them drawn by the seed, in the manifest's order."""
    path = find_part(data, name)
    if path is None:
        raise ManifestError(f"{data / name}.jsonl.gz: not there; DATA is what egs/english/prepare.py wrote")
    cuts = list(open_part(path).cuts())
    drawn = np.sort(np.random.default_rng(seed).permutation(len(cuts))[: sample or len(cuts)])
    return Part(name, [cuts[number] for number in drawn], len(cuts))


def systems_of(models: Sequence[str], peers: Sequence[str], whisper_model: str) -> list[System]:
    """This toolkit's models, then the peers. Raises ConfigError, MissingExtraError."""
    systems = [System(f"asr-{Path(model).resolve().name}", "toolkit", model) for model in models]
    for peer in peers:
        require_peer(peer)
        systems.append(System(peer, peer, whisper_model if peer == "whisper" else ""))
    if not systems:
        raise ConfigError("expected something to compare, found none: give --model or --peers")
    if len({system.name for system in systems}) < len(systems):
        raise ConfigError(f"expected systems of different names, found {[system.name for system in systems]}")
    return systems


def write(rows: Sequence[Row], options: Options, command: str) -> str:
    """OUT/table.md and OUT/comparison.svg; returns the table."""
    drawn = f" {options.sample} recordings of each part, seed {options.seed}." if options.sample else ""
    loading = ", ".join(f"{s.name} {read_about(s, options.out)['load_s']:.1f} s" for s in options.systems)
    content = table(rows)
    head = f"`{command}`, {datetime.date.today()}, {cpu()}, one thread.{drawn}\n\n"
    texts = f"numbers written out, then normalisation {rows[0].report.normalization!r}"
    foot = f"\nLoaded in: {loading}. Texts: {texts}.\n"
    write_atomically(options.out / "table.md", (head + content + foot).encode())
    draw(rows, options.out / "comparison.svg")
    return content


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", action="append", default=[], help="a model directory; may be repeated")
    parser.add_argument("--peers", default=",".join(PACKAGES), help="names with commas; '' for none")
    parser.add_argument("--whisper-model", default="tiny.en", help="a name or a directory (CTranslate2)")
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas")
    parser.add_argument("--sample", type=int, default=0, help="recordings of each part; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--out", type=Path, default=Path("exp/bench-english"))
    args = parser.parse_args(arguments)
    if args.sample < 0:
        raise ConfigError(f"--sample: expected 0 or more recordings, found {args.sample}")
    peers, parts = ([name for name in text.split(",") if name] for text in (args.peers, args.parts))
    if not parts:
        raise ConfigError("--parts: expected a name at least, found none")
    systems = systems_of(args.model, peers, args.whisper_model)
    return Options(args.data, args.out, systems, parts, args.sample, args.seed)


def main(arguments: Sequence[str] | None = None, start: Start = start_child) -> int:
    """Parse, compare, print."""
    try:
        options = _parse(arguments)
        with Interrupt() as interrupt:
            rows = compare(options, interrupt, start)
        if not rows:
            print("interrupted; the same command goes on", file=sys.stderr)
            return INTERRUPTED
        given = sys.argv[1:] if arguments is None else arguments
        print(
            write(rows, options, shlex.join(["python", "tools/bench/english.py", *map(str, given)])), end=""
        )
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"table.md, comparison.svg and what was heard in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
