"""Decoding after the encoder: greedy search beside a naive loop and beside a search frame by frame.

    python tools/bench/search.py DATA                          # batches of 16, one thread
    python tools/bench/search.py DATA --model DIR --part dev --batch 4

DATA is what egs/english/prepare.py wrote, or any other corpus of manifests; the model is the English one that
comes with the package unless --model says another, of a transducer whose blank takes one frame and whose
labels take none. The encoder runs once, untimed. Two batches: recordings drawn at random, and of about one
length, as sorting them gives.

Peers: "naive" is the definition, one utterance after the other, with a predictor that goes on from its state
(tests/asr/naive_greedy.py); "frame by frame" goes through the frames of the batch together
(frame_by_frame.py). All must find the same tokens on the same frames, or nothing is printed. The contestants
take turns; times are medians of processor time, as far as this machine has other work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame_by_frame import frame_by_frame

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "asr"))

from naive_greedy import naive_greedy  # noqa: E402

import asr  # noqa: E402
from asr.data.parts import find_part, open_part  # noqa: E402
from asr.data.samples import load_samples  # noqa: E402
from asr.encoders import EncoderOutput  # noqa: E402
from asr.errors import AsrError, ManifestError  # noqa: E402
from asr.recognizer import Recognizer  # noqa: E402
from asr.search import GreedySearch, Token, search_whole  # noqa: E402

MAX_SYMBOLS = 8
Search = Callable[[], list[list[Token]]]


def batches(data: Path, name: str, size: int, seed: int) -> dict[str, list[Any]]:
    """Cuts of two batches. Raises ManifestError."""
    path = find_part(data, name)
    if path is None:
        raise ManifestError(f"{data / name}.jsonl.gz: not there; DATA is what egs/english/prepare.py wrote")
    cuts = list(open_part(path).cuts())
    if len(cuts) < size:
        raise ManifestError(f"{path}: expected {size} recordings at least, found {len(cuts)}; see --batch")
    drawn = np.random.default_rng(seed).permutation(len(cuts))[:size]
    middle = (len(cuts) - size) // 2
    alike = sorted(cuts, key=lambda cut: cut.duration)[middle : middle + size]
    return {"drawn at random": [cuts[i] for i in drawn], "of about one length": alike}


@torch.inference_mode()
def encode(recognizer: Recognizer, cuts: Sequence[Any]) -> EncoderOutput:
    samples = [torch.from_numpy(load_samples(cut, recognizer.sample_rate)) for cut in cuts]
    lengths = torch.tensor([len(each) for each in samples])
    padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    features, feature_lengths, _ = recognizer.fbank(padded, lengths)
    return recognizer.network.encode(features, feature_lengths)


def contestants(recognizer: Recognizer, encoded: EncoderOutput) -> dict[str, Search]:
    model, (y, lengths, _) = recognizer.network, encoded
    search = GreedySearch(model, MAX_SYMBOLS)
    whole = [part[:n] for part, n in zip(y, lengths.tolist(), strict=True)]
    return {
        "naive": lambda: [naive_greedy(model, frames, MAX_SYMBOLS).tokens for frames in whole],
        "frame by frame": lambda: frame_by_frame(model, y, lengths, MAX_SYMBOLS),
        "GreedySearch": lambda: search_whole(search, encoded).tokens,
    }


def check(found: list[list[Token]], expected: list[list[Token]], name: str) -> None:
    """Exits unless ids and frames are the same and log-probabilities to 1e-3."""
    for ours, theirs in zip(found, expected, strict=True):
        same = [token[:3] for token in ours] == [token[:3] for token in theirs]
        near = all(abs(a.log_prob - b.log_prob) < 1e-3 for a, b in zip(ours, theirs, strict=False))
        if not (same and near):
            sys.exit(f"wrong: {name} does not find what the definition finds")


def measure(searches: dict[str, Search], repeats: int) -> dict[str, float]:
    """Median seconds of processor time."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(repeats):
        for name, search in searches.items():
            start = time.process_time()
            search()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def compare(recognizer: Recognizer, what: str, cuts: Sequence[Any], repeats: int) -> None:
    encoded = encode(recognizer, cuts)
    searches = contestants(recognizer, encoded)
    expected = searches["naive"]()
    for name, search in searches.items():
        check(search(), expected, name)
    seconds = measure(searches, repeats)
    frames, labels = encoded.y_lengths.tolist(), sum(map(len, expected))
    print(
        f"{len(cuts)} {what}: {min(frames)} to {max(frames)} frames, {labels / sum(frames):.2f} labels each"
    )
    for name, each in seconds.items():
        print(f"  {name:16}{1e3 * each:8.1f} ms, naive / this {seconds['naive'] / each:5.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="a model directory; the English model of the package")
    parser.add_argument("--part", default="test-so762-adults")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="draws the recordings")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        recognizer = asr.load(arguments.model)
        found = batches(arguments.data, arguments.part, arguments.batch, arguments.seed)
        for what, cuts in found.items():
            compare(recognizer, what, cuts, arguments.repeats)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
