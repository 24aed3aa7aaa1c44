"""Language models for English: a text from several sources, and n-grams of letters and of words from it.

    python egs/english/lm.py DATA_DIR OUT_DIR [--wordnet DIR] [--chitchat FILE] [--text FILE]... [--model DIR]

The text has, one sentence a line, in lower-case letters, apostrophes and spaces:

train      what the train part of DATA_DIR says (prepare.py)
ljspeech   DATA_DIR/text/lm.txt, the sentences of its books, recorded or not
wordnet    examples of use in WordNet's files (Debian's wordnet-base: --wordnet /usr/share/wordnet)
chitchat   messages of 7,168 conversations of students, BYU's Chit-Chat challenge (`pip download --no-deps
           chitchat-dataset`, MIT licence; its `chitchat_dataset/dataset.json`), divided into sentences
text       other files, a sentence a line

A sentence with digits, symbols or other letters is left out, and so is every sentence that a dev or test part
of DATA_DIR says, word for word. What is repeated stays: how often something is said is what is to be learnt.

OUT_DIR gets `lm-text.txt`, `dev.txt` (what the dev part says), `letters.arpa` (labels of --model's tokenizer)
and `words.arpa`; the perplexity of dev under both is printed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from splits import words_of
from synthesise import held_out_texts, sentences

from asr.config import replacing
from asr.data.manifests import cut_text, read_cuts
from asr.errors import AsrError, DataError, ManifestError
from asr.lms.kneser_ney import KneserNeyConfig
from asr.lms.ngram import NgramModel
from asr.lms.perplexity import text_perplexities
from asr.lms.train_ngram import train_ngram
from asr.text.lines import read_lines

TEXT, DEV, LETTERS, WORDS = "lm-text.txt", "dev.txt", "letters.arpa", "words.arpa"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
MAX_CHITCHAT_BYTES = 1 << 30


class Source(NamedTuple):
    """What became of one source."""

    name: str
    sentences: int
    words: int
    held_out: int
    unwritable: int
    """Sentences with something else than letters."""


def read_chitchat(path: Path) -> Iterator[str]:
    """The sentences of the messages of `dataset.json`."""
    if not path.is_file() or path.stat().st_size > MAX_CHITCHAT_BYTES:
        raise ManifestError(f"{path}: expected chitchat-dataset's dataset.json, found no such file")
    try:
        conversations = json.loads(path.read_text(encoding="utf-8"))
        messages = [
            message["text"]
            for conversation in conversations.values()
            for turn in conversation["messages"]
            for message in turn
        ]
        yield from (part for message in messages for part in SENTENCE_END.split(message))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{path}: expected conversations as chitchat-dataset has them, found other content "
            f"({type(error).__name__}: {str(error)[:80]})"
        ) from error


def sources(
    data_dir: Path, wordnet: Path | None, chitchat: Path | None, texts: Sequence[Path]
) -> Iterator[tuple[str, Iterable[str]]]:
    """Names and sentences as they are written."""
    yield "train", (cut_text(cut) for cut in read_cuts(data_dir / "train.jsonl.gz"))
    if (data_dir / "text" / "lm.txt").is_file():
        yield "ljspeech", sentences([data_dir / "text" / "lm.txt"], None)
    if wordnet is not None:
        if not any(wordnet.glob("data.*")):
            raise DataError(f"{wordnet}: expected WordNet's data.noun and others, found none")
        yield "wordnet", sentences([], wordnet)
    if chitchat is not None:
        yield "chitchat", read_chitchat(chitchat)
    for path in texts:
        yield str(path), (line for _, line in read_lines(path))


def write_text(path: Path, found: Iterable[tuple[str, Iterable[str]]], held_out: set[str]) -> list[Source]:
    """Write the sentences of all sources that are not held out."""
    done = []
    with replacing(path) as stream:
        for name, written in found:
            kept = words = held = unwritable = 0
            for sentence in written:
                spoken = words_of(sentence)
                if not spoken:
                    unwritable += bool(sentence.strip())
                elif spoken in held_out:
                    held += 1
                else:
                    stream.write(f"{spoken}\n".encode())
                    kept += 1
                    words += spoken.count(" ") + 1
            done.append(Source(name, kept, words, held, unwritable))
    return done


def report(found: Sequence[Source]) -> str:
    """The size of each source."""
    lines = [f"{'':12} {'sentences':>10} {'words':>10} {'held out':>9} {'not only letters':>17}"]
    total = Source("all", *(sum(column) for column in list(zip(*found, strict=True))[1:]))
    lines += [
        f"{source.name:12} {source.sentences:10,} {source.words:10,} {source.held_out:9,} "
        f"{source.unwritable:17,}"
        for source in (*found, total)
    ]
    return "\n".join(lines)


def train(out_dir: Path, model: Path, letters: KneserNeyConfig, words: KneserNeyConfig) -> Iterator[str]:
    """Train both models from the text in `out_dir`; a line about each, as it predicts dev."""
    for name, config, tokens in ((LETTERS, letters, model), (WORDS, words, None)):
        trained = train_ngram([out_dir / TEXT], out_dir / name, config, tokens=tokens)
        read = NgramModel.read(out_dir / name)
        dev = text_perplexities(read, [out_dir / DEV], tokens=tokens)[0].prediction
        ngrams = sum(len(order.word) for order in trained.model.orders)
        yield (
            f"{name}: order {config.order}, {ngrams:,} n-grams; dev: perplexity {dev.perplexity:.2f}, "
            f"without OOV {dev.perplexity_known:.2f}, OOV {100 * dev.unknown_rate:.2f} %, "
            f"{dev.bits_per_character:.3f} bits per character"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, gather, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--wordnet", type=Path)
    parser.add_argument("--chitchat", type=Path)
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--model", type=Path, default=Path("asr/pretrained/english"))
    parser.add_argument("--letters-order", type=int, default=8)
    parser.add_argument("--words-order", type=int, default=3)
    options = parser.parse_args(arguments)
    # From 5 letters on what was seen once says little and is two thirds of the file.
    letters = KneserNeyConfig(order=options.letters_order, prune=(0, 0, 0, 0, 1)[: options.letters_order])
    words = KneserNeyConfig(order=options.words_order)
    try:
        said = [cut_text(cut) for cut in read_cuts(options.data_dir / "dev.jsonl.gz")]
        found = sources(options.data_dir, options.wordnet, options.chitchat, options.text)
        print(report(write_text(options.out_dir / TEXT, found, held_out_texts(options.data_dir))))
        write_text(options.out_dir / DEV, [("dev", said)], set())
        for line in train(options.out_dir, options.model, letters, words):
            print(line, flush=True)
    except AsrError as error:
        print(f"lm.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
