"""From text files to an ARPA file: n-grams of words, or of the labels of the model to fuse with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from asr.errors import ConfigError
from asr.lms.backoff import check_name, write_arpa
from asr.lms.kneser_ney import KneserNey, KneserNeyConfig, train_kneser_ney
from asr.lms.sentences import Sentences
from asr.text.tokenizer import load_tokenizer


class TrainedNgram(NamedTuple):
    """What was trained, and on what."""

    model: KneserNey
    left_out: int
    """Lines that the tokenizer cannot write."""
    first_left_out: str
    """Where the first of them is, and why."""


def train_ngram(
    texts: Sequence[Path],
    out: Path,
    config: KneserNeyConfig,
    *,
    tokens: Path | None = None,
    normalization: str = "basic",
) -> TrainedNgram:
    """Count the words of `texts`, or with the directory `tokens` its tokenizer's labels, and write `out`.

    With a tokenizer all its labels are in the model, seen or not, so that it can score each of them. Raises
    ConfigError, DataError, ModelError as the parts do; nothing is written then.
    """
    check_name(out)
    tokenizer = None if tokens is None else load_tokenizer(tokens)
    if tokenizer is not None and config.max_words is not None:
        raise ConfigError("max_words is for words: the labels of a tokenizer are all kept; leave one out")
    labels = () if tokenizer is None else tokenizer.symbols[1:]
    sentences = Sentences(texts, normalization, tokenizer)
    model = train_kneser_ney((sentence.tokens for sentence in sentences.at_least_one()), config, labels)
    write_arpa(model, out)
    return TrainedNgram(model, sentences.left_out, sentences.first_left_out)
