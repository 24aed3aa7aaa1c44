"""Which scorers take part in a search, as configuration, and made for a recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from asr.config import Config
from asr.lms import NgramModel, Scorer, TokenNgram, WordNgram, WordNgramConfig
from asr.search.biasing import BiasingConfig
from asr.search.fusion import Fusion, Weighted
from asr.search.internal_lm import InternalLm
from asr.text.tokenizer import Tokenizer
from asr.transducer import Transducer


class FusionConfig(Config):
    """What takes part in a beam search beside the recogniser."""

    lm: str | None = None
    """File of an n-gram language model: ARPA, gzipped or not, or what NgramModel.save made of it."""
    lm_weight: float = Field(0.3, gt=0)
    lm_unit: Literal["words", "labels"] = "words"
    """What the language model is of: words, or the labels that the recogniser writes (letters, pieces)."""
    words: WordNgramConfig = WordNgramConfig()
    """How words score the labels that spell them."""
    internal_lm_weight: float = Field(0.0, ge=0)
    """How much of the language model inside the transducer is taken off (asr.search.internal_lm)."""
    biasing: BiasingConfig = BiasingConfig()
    """Phrases that are rewarded (asr.search.biasing)."""
    reward: float = 0.0
    """Added for every label, against the preference of language models for short texts."""

    @property
    def empty(self) -> bool:
        """Whether nothing takes part."""
        scorers = self.lm is not None or self.biasing.hotwords is not None or self.internal_lm_weight > 0
        return not scorers and self.reward == 0


def build_scorer(
    config: FusionConfig, model: Transducer, tokenizer: Tokenizer, *, streams: bool = False
) -> Scorer | None:
    """The scorer that `config` describes, None if nothing takes part.

    streams: they may bring phrases of their own, so that there is a scorer in any case.

    Raises ModelError naming the file of a language model, HotwordsError or TokenError naming the line of a
    phrase that cannot be used, ConfigError for what does not fit the recogniser.
    """
    if config.empty and not streams:
        return None
    parts = []
    # First: a misspelt phrase is found before a large file is read.
    biasing = config.biasing.scorer(tokenizer, streams=streams)
    if biasing is not None:
        parts.append(Weighted(biasing))
    if config.lm is not None:
        ngram = NgramModel.read(Path(config.lm))
        scorer: Scorer
        if config.lm_unit == "words":
            scorer = WordNgram(ngram, tokenizer, config.words)
        else:
            scorer = TokenNgram(ngram, tokenizer)
        parts.append(Weighted(scorer, config.lm_weight))
    if config.internal_lm_weight:
        parts.append(Weighted(InternalLm(model), -config.internal_lm_weight))
    return Fusion(model.vocab_size, parts, config.reward)
