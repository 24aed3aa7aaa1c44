"""Which scorers take part in a search, as configuration, and made for a recogniser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from asr.config import Config
from asr.lms import Scorer, WordNgramConfig
from asr.lms.cache import CacheConfig
from asr.search.biasing import BiasingConfig
from asr.search.fusion import Fusion, Weighted
from asr.search.internal_lm import InternalLm
from asr.search.language_models import LmConfig, LmWeight, Unit, build_lm
from asr.text.tokenizer import Tokenizer
from asr.transducer import Transducer


class FusionConfig(Config):
    """What takes part in a beam search beside the recogniser."""

    lm: str | None = None
    """A language model: an n-gram's file or a neural one's directory (asr.search.language_models)."""
    lm_weight: LmWeight = 0.3
    lm_unit: Unit = "words"
    """What an n-gram is of: words, or the labels that the recogniser writes (letters, pieces)."""
    words: WordNgramConfig = WordNgramConfig()
    """How words score the labels that spell them."""
    lm_cache: CacheConfig | None = None
    """Of a neural language model."""
    more_lms: tuple[LmConfig, ...] = ()
    """Further language models, each with its weight."""
    internal_lm_weight: float = Field(0.0, ge=0)
    """How much of the language model inside the transducer is taken off (asr.search.internal_lm).
    Language models of its training texts with weights below 0 are another way."""
    biasing: BiasingConfig = BiasingConfig()
    """Phrases that are rewarded (asr.search.biasing)."""
    reward: float = 0.0
    """Added for every label, against the preference of language models for short texts."""

    @property
    def lms(self) -> tuple[LmConfig, ...]:
        """All language models."""
        if self.lm is None:
            return self.more_lms
        first = LmConfig(
            lm=self.lm, weight=self.lm_weight, unit=self.lm_unit, words=self.words, cache=self.lm_cache
        )
        return (first, *self.more_lms)

    def renamed(self, name: Callable[[str], str]) -> FusionConfig:
        """The same with another `name` of each language model."""
        more = tuple(each.model_copy(update={"lm": name(each.lm)}) for each in self.more_lms)
        return self.model_copy(update={"lm": self.lm and name(self.lm), "more_lms": more})

    def beside(self, directory: Path) -> FusionConfig:
        """The same, where a name that is in a model's directory is its own language model."""
        return self.renamed(lambda lm: str(directory / lm) if (directory / lm).exists() else lm)

    @property
    def empty(self) -> bool:
        """Whether nothing takes part."""
        scorers = bool(self.lms) or self.biasing.hotwords is not None or self.internal_lm_weight > 0
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
    device = next(model.parameters()).device
    for lm in config.lms:
        parts.append(Weighted(build_lm(lm, tokenizer, device), lm.weight))
    if config.internal_lm_weight:
        parts.append(Weighted(InternalLm(model), -config.internal_lm_weight))
    return Fusion(model.vocab_size, parts, config.reward)
