"""Phrase biasing: what it costs a beam search, and what it finds.

    python tools/bench/biasing.py DATA                          # batches of 16, one thread
    python tools/bench/biasing.py DATA --part dev --phrases 1000 --boosts 2,4,8

DATA is what egs/english/prepare.py wrote. The list is drawn from the part's own words (half of those of six
letters or more) and filled up to --phrases with words of the train part that the part does not hold: what is
listed and not said must not be heard. The encoder runs once, untimed; searches without a list, with one for
all recordings, and with one of the same length for each of them take turns, times are medians of processor
time, and only their ratios are printed. Before that, the scorer must add to 500 texts of the train part,
without a search, what counting their words says.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from search import batches, encode, measure

import asr
from asr.data.manifests import cut_text
from asr.data.parts import find_part, open_part
from asr.errors import AsrError, ManifestError
from asr.recognizer import Recognizer
from asr.score.biasing import score_phrases
from asr.score.wer import score_pairs
from asr.search import BeamSearch, Token, search_whole
from asr.search.biasing import PhraseBiasing, PhraseList
from asr.search.streams import begin
from asr.text.hotwords import Phrase

LEAST_LETTERS = 6


def cuts_of(data: Path, part: str) -> list[Any]:
    """Raises ManifestError."""
    path = find_part(data, part)
    if path is None:
        raise ManifestError(f"{data / part}.jsonl.gz: not there; DATA is what egs/english/prepare.py wrote")
    return list(open_part(path).cuts())


def listed(texts: Sequence[str], others: Sequence[str], count: int, seed: int) -> list[str]:
    """Half of the long words of `texts`, and of other texts words that are not in them."""
    rng = random.Random(seed)
    said, heard = ({word for text in each for word in text.split()} for each in (texts, others))
    long = sorted(word for word in said if len(word) >= LEAST_LETTERS)
    unsaid = sorted(word for word in heard - said if len(word) >= LEAST_LETTERS)
    own = rng.sample(long, min(count, len(long) // 2))
    return own + rng.sample(unsaid, min(count - len(own), len(unsaid)))


def check(recognizer: Recognizer, words: Sequence[str], texts: Sequence[str]) -> None:
    """Exits unless the scorer adds what the definition says."""
    scorer = PhraseBiasing(recognizer.tokenizer, [[Phrase(word, 2.0) for word in words]])
    for text in texts:
        state, total = scorer.initial_state(1), 0.0
        for label in recognizer.tokenizer.encode(text):
            total += float(scorer.score(state)[0, label])
            state = scorer.advance(state, torch.tensor([label]))
        total += float(scorer.end(state)[0])
        if total != 2.0 * sum(word in words for word in text.split()):
            sys.exit(f"wrong: {text!r} has {total}")


def time_ratios(
    recognizer: Recognizer, cuts: Sequence[Any], words: Sequence[str], others: Sequence[str], options: Any
) -> dict[str, float]:
    """Processor time of the searches with phrases over that without."""
    phrases = [Phrase(word) for word in words]
    encoded = encode(recognizer, cuts)
    plain = BeamSearch(recognizer.network, options.beam)
    biased = BeamSearch(
        recognizer.network, options.beam, scorer=PhraseBiasing(recognizer.tokenizer, [phrases])
    )
    own = PhraseBiasing(recognizer.tokenizer, [[]])
    listening = BeamSearch(recognizer.network, options.beam, scorer=own)
    drawn = [listed((), others, len(words), seed) for seed in range(len(cuts))]
    start = time.process_time()
    kept = [PhraseList(own, [Phrase(word) for word in each]) for each in drawn]
    own.score(own.states_for([kept[0].number]))
    print(f"{len(kept)} lists of {len(drawn[0])} made in {time.process_time() - start:.2f} s")

    def each_its_own() -> list[list[Token]]:
        return search_whole(listening, encoded, state=begin(listening, len(cuts), kept)).tokens

    runs = {
        "without": lambda: search_whole(plain, encoded).tokens,
        "a list for all": lambda: search_whole(biased, encoded).tokens,
        "a list for each": each_its_own,
    }
    measure(runs, 2)
    seconds = measure(runs, options.repeats)
    return {name: seconds[name] / seconds["without"] for name in list(runs)[1:]}


def recognise(
    recognizer: Recognizer, cuts: Sequence[Any], phrases: Sequence[Phrase], options: Any
) -> list[str]:
    """How well the phrases were recognised, in words."""
    scorer = PhraseBiasing(recognizer.tokenizer, [phrases]) if phrases[0].boost else None
    search = BeamSearch(recognizer.network, options.beam, scorer=scorer)
    texts: dict[str, str] = {}
    for start in range(0, len(cuts), options.batch):
        batch = cuts[start : start + options.batch]
        for cut, tokens in zip(batch, search_whole(search, encode(recognizer, batch)).tokens, strict=True):
            texts[cut.id] = recognizer.tokenizer.decode([token.id for token in tokens])
    report = score_pairs({cut.id: cut_text(cut) for cut in cuts}, texts)
    lines = score_phrases(report, [phrase.text for phrase in phrases]).lines()
    return [f"WER {100 * report.wer:.1f} %", *lines]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="a model directory; the English model of the package")
    parser.add_argument("--part", default="test-kathleen")
    parser.add_argument("--phrases", type=int, default=1000)
    parser.add_argument("--boosts", default="0,4", help="0: without the list; '' for times only")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="draws words and recordings")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        recognizer, cuts = asr.load(options.model), cuts_of(options.data, options.part)
        others = [cut_text(cut) for cut in cuts_of(options.data, "train")]
        words = listed([cut_text(cut) for cut in cuts], others, options.phrases, options.seed)
        check(recognizer, words, others[:500])
        for what, batch in batches(options.data, options.part, options.batch, options.seed).items():
            for name, ratio in time_ratios(recognizer, batch, words, others, options).items():
                print(
                    f"{len(batch)} {what}: {name} of {len(words)} phrases, {ratio:.3f} of the time without",
                    flush=True,
                )
        for boost in map(float, filter(None, options.boosts.split(","))):
            lines = recognise(recognizer, cuts, [Phrase(word, boost) for word in words], options)
            print(f"boost {boost:g}: " + "\n    ".join(lines), flush=True)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
