"""Language models that take part in a search, as configuration, and made for a recogniser.

What a path is decides: a directory holds a neural language model (`asr.lm_directory`), a file an n-gram.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator

from asr.config import Config
from asr.errors import ConfigError
from asr.lm_directory import load_lm
from asr.lms import NgramModel, Scorer, TokenNgram, WordNgram, WordNgramConfig
from asr.lms.cache import CacheConfig, NeuralCache
from asr.text.tokenizer import Tokenizer

Unit = Literal["words", "labels"]


def _counts(weight: float) -> float:
    if weight == 0:
        raise ValueError("expected a weight other than 0: leave the language model out")
    return weight


LmWeight = Annotated[float, AfterValidator(_counts)]
"""How much a language model counts. Below 0 it is taken off: one of what the recogniser was trained on, large
(density ratio, McDermott et al. 2019) or of low order (LODR, Zheng et al. 2022); set words.penalty of such a
one to 0, or words that it does not know are worth more with each label."""


class LmConfig(Config):
    """One language model."""

    lm: str
    """File of an n-gram: ARPA, gzipped or not, or what NgramModel.save made of it; or a neural language
    model's directory, as `asr train` makes it, whose labels must be the recogniser's."""
    weight: LmWeight = 0.3
    unit: Unit = "words"
    """What an n-gram is of: words, or the labels that the recogniser writes (letters, pieces)."""
    words: WordNgramConfig = WordNgramConfig()
    """How words score the labels that spell them."""
    cache: CacheConfig | None = None
    """Of a neural model: what an utterance has said becomes likelier (asr.lms.cache)."""


def build_lm(config: LmConfig, tokenizer: Tokenizer, device: torch.device) -> Scorer:
    """The scorer of labels that `config` describes, for a recogniser that writes those of `tokenizer`.

    Raises ModelError naming what cannot be read or speaks other labels, ConfigError.
    """
    path = Path(config.lm)
    if path.is_dir():
        network = load_lm(path, tokenizer, device).network
        return network if config.cache is None else NeuralCache(network, config.cache)
    if config.cache is not None:
        raise ConfigError(
            f"fusion: {path}: expected the directory of a neural language model with a cache, found "
            f"{'an n-gram' if path.is_file() else 'nothing there'}; leave the cache out"
        )
    ngram = NgramModel.read(path)
    if config.unit == "words":
        return WordNgram(ngram, tokenizer, config.words)
    return TokenNgram(ngram, tokenizer)
