"""Which measure and aggregate of confidence is best, with its temperature fitted on a development set.

    python tools/bench/confidence.py MODEL DEV TEST --search greedy --search default

DEV and TEST are cut manifests. `default` is the search of the model's configuration, `greedy` the greedy one.
Every recording is encoded once; a row is a measure and an aggregate, with the quality on TEST as it is and
with the temperature of DEV.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asr.data.manifests import cut_text
from asr.data.parts import open_part
from asr.encoders import EncoderOutput
from asr.recognizer import Recognizer, load
from asr.score.confidence import Judged, fit_temperature, judge, measure_confidence
from asr.score.wer import score_pairs
from asr.score.words import HeardWord
from asr.search import ConfidenceConfig, FusionConfig, SearchConfig, Token, build_search
from asr.search import search_whole as search_all
from asr.transcript import make_transcript

MEASURES = ("probability", "gibbs", "tsallis")
AGGREGATES = ("geometric", "mean", "min", "product")
BATCH = 16


class Encoded(NamedTuple):
    """Recordings after the encoder."""

    cuts: list[Any]
    frames: EncoderOutput


@torch.inference_mode()
def encode(recognizer: Recognizer, manifest: Path) -> Iterator[Encoded]:
    """A manifest in batches of about one length."""
    part = open_part(manifest)
    cuts = list(enumerate(part.cuts()))
    cuts.sort(key=lambda each: each[1].duration)
    for start in range(0, len(cuts), BATCH):
        batch = cuts[start : start + BATCH]
        samples = [torch.from_numpy(part.samples(n, recognizer.sample_rate)) for n, _ in batch]
        lengths = torch.tensor([len(each) for each in samples])
        features = recognizer.fbank(torch.nn.utils.rnn.pad_sequence(samples, batch_first=True), lengths)
        yield Encoded([cut for _, cut in batch], recognizer.network.encode(*features[:2]))


def judged(
    recognizer: Recognizer, found: list[tuple[Any, list[Token]]], confidence: ConfidenceConfig
) -> Judged:
    """The words that were found, with their confidences."""
    frame_s = 1 / recognizer.network.encoder.frame_rate
    texts = {
        cut.id: make_transcript(tokens, recognizer.tokenizer, frame_s, cut.duration, confidence=confidence)
        for cut, tokens in found
    }
    report = score_pairs({cut.id: cut_text(cut) for cut, _ in found}, {k: t.text for k, t in texts.items()})
    return judge(report, {key: [HeardWord(*word) for word in text.words] for key, text in texts.items()})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--search", action="append", choices=["greedy", "default"])
    parser.add_argument("--measures", default=",".join(MEASURES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = load(options.model)
    sets = [list(encode(recognizer, manifest)) for manifest in (options.dev, options.test)]
    print("search   measure      aggregate  T      test as it is                            calibrated")
    for name in options.search or ["greedy"]:
        config = recognizer.search_config if name == "default" else SearchConfig(fusion=FusionConfig())
        scorer = recognizer.scorer if name == "default" else None
        for measure in options.measures.split(","):
            confidence = ConfidenceConfig(measure=measure)
            search = build_search(
                config.model_copy(update={"confidence": confidence}), recognizer.network, scorer
            )
            dev, test = (
                [
                    pair
                    for batch in batches
                    for pair in zip(batch.cuts, search_all(search, batch.frames).tokens, strict=True)
                ]
                for batches in sets
            )
            for aggregate in AGGREGATES:
                how = confidence.model_copy(update={"aggregate": aggregate})
                fitted = fit_temperature(judged(recognizer, dev, how))
                assert fitted is not None
                here = judged(recognizer, test, how)
                before, after = measure_confidence(here), measure_confidence(here.tempered(fitted))
                print(f"{name:8} {measure:12} {aggregate:10} {fitted:5.3f}  {before}  {after}", flush=True)


if __name__ == "__main__":
    main()
