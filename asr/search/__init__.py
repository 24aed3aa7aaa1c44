"""Searches: encoder frames to tokens, for batches and for streams."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from asr.config import Config
from asr.errors import ConfigError
from asr.lms import Scorer
from asr.search.beam import BeamSearch, Synchronous
from asr.search.confidence import ConfidenceConfig
from asr.search.ctc import CtcGreedySearch
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.greedy import GreedySearch
from asr.search.hypothesis import Hypothesis, Search, SearchOutput, Settled, Token
from asr.search.lattice import LatticeSearch
from asr.search.rescore import RescoreWeights
from asr.search.scorers import FusionConfig, build_scorer
from asr.search.second_pass import SecondPass
from asr.search.whole import SearchResult, search_whole
from asr.text.tokenizer import Tokenizer
from asr.transducer import Transducer


class SearchConfig(Config):
    """How hypotheses are found."""

    method: Literal["greedy", "beam", "lattice"] = "greedy"
    """greedy: the best symbol at every step. beam: several hypotheses, which scorers can take part in.
    lattice: k2's search, where k2 is installed, for stateless predictors and CTC."""
    beam: int = Field(4, ge=1, le=64)
    """Hypotheses per stream (beam, lattice)."""
    margin: float = Field(10.0, gt=0)
    """Hypotheses this far (nats) below the best are given up (beam, lattice)."""
    synchronous: Synchronous = "time"
    """The order in which a transducer is searched (beam): frame by frame, or by the length of alignments,
    which hears recordings whole (asr.search.strategies)."""

    head: Literal["auto", "transducer", "ctc"] = "auto"
    """Which head decodes; `auto` takes the transducer if the model has one."""
    max_symbols: int = Field(8, ge=1)
    """Most labels per encoder frame (transducer)."""
    fusion: FusionConfig = FusionConfig()
    """What takes part beside the recogniser (beam). Validation in training goes without."""
    confidence: ConfidenceConfig = ConfidenceConfig()
    """How sure of words a transcript says it is."""
    rescore: RescoreWeights = RescoreWeights()
    """How much the heads count when the hypotheses that are left are ranked at the end (beam)."""
    mbr: float | None = Field(None, ge=0)
    """Scale of scores with which the hypothesis of least expected word errors is chosen at the end (beam)."""
    nbest: int = Field(0, ge=0, le=64)
    """Hypotheses that transcripts tell of, with their scores (beam)."""
    finals: Literal["live", "whole"] = "live"
    """Final results of a network that streams: what it said live, or what it says when it hears an utterance
    again, whole (asr.second_hearing), for which it was trained. Recordings are then heard whole, too; what
    is longer than 30 s in windows that overlap. A network that does not stream hears whole anyway."""

    @model_validator(mode="after")
    def _finals_stream(self) -> Self:
        if self.finals == "whole" and self.synchronous != "time":
            raise ValueError(
                f"synchronous={self.synchronous} and finals=whole: expected finals=live, as recordings are "
                "then heard whole anyway; use search.finals=live"
            )
        return self

    @property
    def second_pass(self) -> bool:
        """Whether something is done with the hypotheses that are left at the end."""
        return self.rescore.another_head or self.mbr is not None or self.nbest > 0


def build_search(config: SearchConfig, model: Transducer, scorer: Scorer | None = None) -> Search:
    """The search that `config` describes; raises ConfigError if the model lacks the head.

    `scorer` adds to the scores of hypotheses (asr.search.fusion), which needs several of them: method beam.
    """
    if scorer is not None and config.method != "beam":
        raise ConfigError(
            f"search.method={config.method}: expected beam with a language model or hotwords; "
            "use search.method=beam"
        )
    if config.synchronous != "time" and (config.method != "beam" or config.head == "ctc"):
        raise ConfigError(
            f"search.synchronous={config.synchronous}: expected beam search with a transducer; "
            "use search.method=beam, or search.synchronous=time"
        )
    head = config.head if config.head != "auto" else ("transducer" if model.has_transducer else "ctc")
    if head == "transducer":
        if not model.has_transducer:
            raise ConfigError("search.head=transducer: this model has only a CTC head; use search.head=ctc")
        if config.method == "beam":
            limits = config.beam, config.max_symbols, config.margin
            return BeamSearch(model, *limits, scorer, config.confidence, synchronous=config.synchronous)
        if config.method == "lattice":
            return LatticeSearch(model, False, config.beam, config.margin)
        return GreedySearch(model, config.max_symbols, confidence=config.confidence)
    if model.ctc is None:
        raise ConfigError("search.head=ctc: this model has no CTC head; use search.head=transducer")
    if config.method == "beam":
        return CtcBeamSearch(
            model, config.beam, margin=config.margin, scorer=scorer, confidence=config.confidence
        )
    if config.method == "lattice":
        return LatticeSearch(model, True, config.beam, config.margin)
    return CtcGreedySearch(model, config.confidence)


def build_second_pass(config: SearchConfig, model: Transducer, tokenizer: Tokenizer) -> SecondPass | None:
    """What `config` says is done with the hypotheses that are left at the end; None if that is nothing.

    Raises ConfigError if there are not several, or the model lacks a head that counts.
    """
    if not config.second_pass:
        return None
    if config.method != "beam":
        raise ConfigError(
            f"search.method={config.method}: expected beam with search.rescore, search.mbr or search.nbest; "
            "use search.method=beam"
        )
    return SecondPass(model, tokenizer, config.rescore, config.mbr)


__all__ = [
    "BeamSearch",
    "ConfidenceConfig",
    "CtcBeamSearch",
    "CtcGreedySearch",
    "FusionConfig",
    "GreedySearch",
    "Hypothesis",
    "LatticeSearch",
    "RescoreWeights",
    "Search",
    "SearchConfig",
    "SearchOutput",
    "SearchResult",
    "SecondPass",
    "Settled",
    "Token",
    "build_scorer",
    "build_search",
    "build_second_pass",
    "search_whole",
]
