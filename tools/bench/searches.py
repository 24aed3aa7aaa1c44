"""Searches of one model beside each other: word errors, and how many of the listed rare words are recognised.

    python tools/bench/searches.py DATA                                  # all of test-kathleen, one thread
    python tools/bench/searches.py DATA --part test-so762-adults --sample 200

DATA is what egs/english/prepare.py wrote; the model is the English one that comes with the package unless
--model says another: with a language model in its settings, and a CTC head beside its transducer. Rare words
are those of the part's references that train does not have. The list is filled up to --phrases with words of
DATA/text/lm.txt that neither has, so that what is listed and not said has its chance too; every row is scored
on the same list, whether its search knew of it or not. That all rare words are listed shows what a list can
do at best: in use it comes from elsewhere, and holds some of them.

Prints a table in Markdown. Times are processor time of the whole, encoder included, reading files not.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from biasing import cuts_of
from english import read_part

import asr
from asr.data.manifests import cut_text
from asr.data.samples import load_samples
from asr.errors import AsrError
from asr.recognizer import Recognizer
from asr.score.biasing import BiasingReport, score_phrases
from asr.score.wer import WerReport, score_pairs
from asr.text.lines import read_lines

BATCH_S = 100.0
"""Padded seconds of audio in a batch."""


class Result(NamedTuple):
    """What a search found, and the processor time that it took."""

    report: WerReport
    rare: BiasingReport
    real_time_factor: float


def rare_words(data: Path, cuts: Sequence[Any], count: int, seed: int) -> list[str]:
    """Words of the recordings that train does not have, and others that neither has."""
    known = {word for cut in cuts_of(data, "train") for word in cut_text(cut).split()}
    said = {word for cut in cuts for word in cut_text(cut).split()}
    written = {word for _, line in read_lines(data / "text" / "lm.txt") for word in line.split()}
    own, others = sorted(said - known), sorted(written - said - known)
    rng = random.Random(seed)
    return own[:count] + rng.sample(others, min(len(others), max(0, count - len(own))))


def searches(options: Any, phrases: Path) -> dict[str, list[str]]:
    """Settings of each search, on top of the model's own."""
    beam = ["method=beam", f"beam={options.beam}"]
    mbr = [f"mbr={options.mbr}"]
    heads = {"own": 0.0, "ctc": options.ctc, "transducer": 1 - options.ctc}
    rescore = [f"rescore.{head}={weight:g}" for head, weight in heads.items()]
    biasing = [f"fusion.biasing.hotwords={phrases}", f"fusion.biasing.boost={options.boost}"]
    return {
        "greedy": ["method=greedy", "fusion={}"],
        f"beam {options.beam}": [*beam, "fusion={}"],
        f"beam {options.beam}, minimum risk": [*beam, "fusion={}", *mbr],
        f"beam {options.beam}, rescored": [*beam, "fusion={}", *rescore],
        "with its language model": beam,
        "… and minimum risk": [*beam, *mbr],
        "… and rescored": [*beam, *rescore],
        "… and the list": [*beam, *biasing],
        "… and all three": [*beam, *biasing, *rescore, *mbr],
    }


def run(recognizer: Recognizer, cuts: Sequence[Any], words: Sequence[str]) -> Result:
    """Recognise everything, in batches of about one length."""
    texts, audio_s, seconds = dict[str, str](), 0.0, 0.0
    waiting = sorted(cuts, key=lambda cut: -cut.duration)
    while waiting:
        size = max(1, int(BATCH_S / waiting[0].duration))
        batch, waiting = waiting[:size], waiting[size:]
        samples = [load_samples(cut, recognizer.sample_rate) for cut in batch]
        start = time.process_time()
        found = recognizer.transcribe_batch(samples, [cut.id for cut in batch])
        seconds += time.process_time() - start
        audio_s += sum(transcript.duration_s for transcript in found)
        texts |= {cut.id: transcript.text for cut, transcript in zip(batch, found, strict=True)}
    report = score_pairs({cut.id: cut_text(cut) for cut in cuts}, texts)
    return Result(report, score_phrases(report, words), seconds / audio_s)


def line(name: str, result: Result) -> str:
    """A row of the table."""
    (low, high), rare = result.report.interval, result.rare.overall
    return (
        f"| {name} | {100 * result.report.wer:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {rare.right} of "
        f"{rare.said} | {rare.right} of {rare.written} | {100 * result.rare.listed.wer:.1f} | "
        f"{100 * result.rare.unlisted.wer:.1f} | {result.real_time_factor:.3f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="a model directory; the English model of the package")
    parser.add_argument("--part", default="test-kathleen")
    parser.add_argument("--sample", type=int, default=0, help="recordings; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="draws recordings and words")
    parser.add_argument("--phrases", type=int, default=1000)
    parser.add_argument("--boost", type=float, default=4.0)
    parser.add_argument("--beam", type=int, default=8)
    parser.add_argument("--mbr", type=float, default=0.5, help="scale of the scores")
    parser.add_argument("--ctc", type=float, default=0.2, help="in rescoring; the rest is the transducer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        cuts = read_part(options.data, options.part, options.sample, options.seed).cuts
        words = rare_words(options.data, cuts, options.phrases, options.seed)
        print(f"{len(cuts)} recordings of {options.part}, {len(words)} listed words\n")
        print("| search | WER % [95 %] | listed words: recall | precision | their WER | others | time |")
        print("|---|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            phrases = Path(directory) / "words.txt"
            phrases.write_text("\n".join(words))
            for name, settings in searches(options, phrases).items():
                recognizer = asr.load(options.model, settings=settings)
                print(line(name, run(recognizer, cuts, words)), flush=True)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
