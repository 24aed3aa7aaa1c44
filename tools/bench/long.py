"""Hours of audio through one live stream: does it cost the same in the last minute as in the first?

    python tools/bench/long.py DATA                                     # an hour, the model's own search
    python tools/bench/long.py DATA --minutes 15 --search method=greedy --search "fusion={}"
    python tools/bench/long.py DATA --windows 15:5,30:10,60:20          # full context: whole, and in windows

DATA is what egs/english/prepare.py wrote; the model is the English one that comes with the package unless
--model says another. The recordings of a part follow each other, 0.3 s of silence between them, again and
again until there are --minutes, and are fed in pieces of 100 ms under the rules of `asr stream`.

Prints a table in Markdown: processor time per second of audio since the row before, resident memory, bytes
of state, the number of words in each round that ended since the row before and their errors. The first minute
pays for what is done once. Rounds are alike but for what the stream heard before them, so the words tell
whether anything is lost.

With --windows one round is heard in full context, whole and in windows of so many seconds that overlap: word
errors, words that differ from those of the whole, largest and mean difference of encoder frames relative to
the mean size of a frame's values, and processor time of the whole.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from biasing import cuts_of

import asr
from asr.audio import Samples
from asr.data.manifests import cut_text
from asr.data.samples import load_samples
from asr.recognizer import Recognizer, Word
from asr.score.wer import score_pairs

PIECE_S, GAP_S = 0.1, 0.3
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Round(NamedTuple):
    """The recordings of a part, one after the other, and what was said."""

    samples: Samples
    text: str


def resident_mib() -> float:
    """Memory that the process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_MIB


def one_round(data: Path, part: str, rate: int) -> Round:
    cuts = cuts_of(data, part)
    gap = np.zeros(round(GAP_S * rate), np.float32)
    pieces = [piece for cut in cuts for piece in (load_samples(cut, rate), gap)]
    return Round(np.concatenate(pieces), " ".join(cut_text(cut) for cut in cuts))


def endless(samples: Samples, size: int) -> Iterator[Samples]:
    """The samples again and again, in pieces, the last of a round shorter."""
    while True:
        yield from (samples[start : start + size] for start in range(0, len(samples), size))


def rows(recognizer: Recognizer, heard: Round, minutes: Sequence[float]) -> Iterator[str]:
    """A row of the table at each of the minutes."""
    rate = recognizer.sample_rate
    session = recognizer.stream(rate, endpoint=asr.EndpointConfig())
    pieces, length_s = endless(heard.samples, round(PIECE_S * rate)), len(heard.samples) / rate
    fed, words, rounds, since = 0, list[Word](), 0, 0.0
    for minute in minutes:
        begun = time.process_time()
        while fed < minute * 60 * rate:
            piece = next(pieces)
            fed += len(piece)
            words += [w for e in session.feed(piece) if e.kind == "final" for w in e.transcript.words]
        factor = (time.process_time() - begun) / (minute * 60 - since)
        since, ended = minute * 60, int(fed / rate / length_s)
        cost = f"{factor:.4f} | {resident_mib():.0f} MiB | {session.state_bytes:,}"
        yield f"| {minute:g} min | {cost} | {errors(words, heard.text, length_s, rounds, ended)} |"
        words, rounds = [w for w in words if w.end_s >= ended * length_s], ended


def errors(words: Sequence[Word], text: str, length_s: float, first: int, last: int) -> str:
    """Of the rounds from `first` to before `last`, each of `length_s` seconds and this text."""
    rounds = range(first, last)
    said = {
        str(n): " ".join(
            w.text for w in words if n * length_s <= (w.start_s + w.end_s) / 2 < (n + 1) * length_s
        )
        for n in rounds
    }
    if not said:
        return "-"
    wer = score_pairs({str(n): text for n in rounds}, said).wer
    counts = ", ".join(str(len(each.split())) for each in said.values())
    return f"{counts}; {100 * wer:.1f} %"


def window_rows(recognizer: Recognizer, heard: Round, windows: Sequence[asr.WindowConfig]) -> Iterator[str]:
    """Rows of the table of --windows: the whole first, however long it is."""
    recognizer.network.encoder.period_s = math.inf
    whole, frames, length_s = "", torch.empty(0), len(heard.samples) / recognizer.sample_rate
    for each in [None, *windows]:
        hearing = recognizer if each is None else recognizer.with_windows(each)
        begun = time.process_time()
        said = hearing.transcribe(heard.samples, recognizer.sample_rate).text
        factor = (time.process_time() - begun) / length_s
        y = hearing.encode(heard.samples)
        if each is None:
            whole, frames = said, y
        away = (y - frames).abs() / frames.abs().mean()
        wer, other = (score_pairs({"": text}, {"": said}).wer for text in (heard.text, whole))
        name = "whole" if each is None else f"{each.length_s:g} s by {each.overlap_s:g} s"
        differ = f"{100 * other:.1f} % | {float(away.max()):.2g}, {float(away.mean()):.2g}"
        yield f"| {name} | {100 * wer:.1f} % | {differ} | {factor:.3f} |"


def chosen_windows(text: str) -> list[asr.WindowConfig]:
    pairs = (each.split(":") for each in text.split(","))
    return [asr.WindowConfig(length_s=float(length), overlap_s=float(overlap)) for length, overlap in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", default="test-kathleen")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--search", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", help="LENGTH:OVERLAP,... in seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    latency = asr.Latency(None) if options.windows else None
    recognizer = asr.load(options.model, latency=latency, settings=options.search)
    heard = one_round(options.data, options.part, recognizer.sample_rate)
    print(f"rounds of {len(heard.samples) / recognizer.sample_rate:.0f} s, {options.threads} threads")
    if options.windows:
        print("| windows | WER | words that differ | frames: largest, mean | real-time factor |")
        found = window_rows(recognizer, heard, chosen_windows(options.windows))
    else:
        print("| heard | real-time factor | memory | state, bytes | words; errors |")
        minutes = [m for m in (1, 10, 20, 30, 40, 50, 60, 120, 180) if m < options.minutes]
        found = rows(recognizer, heard, [*minutes, options.minutes])
    print("|---|---|---|---|---|")
    for row in found:
        print(row, flush=True)


if __name__ == "__main__":
    main()
