"""Searches: encoder frames to tokens, for batches and for streams."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.config import Config
from asr.errors import ConfigError
from asr.search.beam import BeamSearch
from asr.search.ctc import CtcGreedySearch
from asr.search.greedy import GreedySearch
from asr.search.hypothesis import Hypothesis, Search, SearchOutput, Token
from asr.search.whole import SearchResult, search_whole
from asr.transducer import Transducer


class SearchConfig(Config):
    """How hypotheses are found."""

    head: Literal["auto", "transducer", "ctc"] = "auto"
    """Which head decodes; `auto` takes the transducer if the model has one."""
    max_symbols: int = Field(8, ge=1)
    """Most labels per encoder frame (transducer)."""


def build_search(config: SearchConfig, model: Transducer) -> Search:
    """The search that `config` describes; raises ConfigError if the model lacks the head."""
    head = config.head if config.head != "auto" else ("transducer" if model.has_transducer else "ctc")
    if head == "transducer":
        if not model.has_transducer:
            raise ConfigError("search.head=transducer: this model has only a CTC head; use search.head=ctc")
        return GreedySearch(model, config.max_symbols)
    if model.ctc is None:
        raise ConfigError("search.head=ctc: this model has no CTC head; use search.head=transducer")
    return CtcGreedySearch(model)


__all__ = [
    "BeamSearch",
    "CtcGreedySearch",
    "GreedySearch",
    "Hypothesis",
    "Search",
    "SearchConfig",
    "SearchOutput",
    "SearchResult",
    "Token",
    "build_search",
    "search_whole",
]
