"""Search whole encoded utterances: begin, search, flush in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from asr.encoders import EncoderOutput
from asr.search.beam import BeamSearch
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.hypothesis import Search, Token
from asr.search.second_pass import Ranked, SecondPass


class SearchResult(NamedTuple):
    """What was found in finished utterances."""

    tokens: list[list[Token]]
    """Tokens of each utterance."""
    truncated: list[int]
    """For each utterance the frames where the bound on symbols per frame stopped the search."""
    n_best: Sequence[Sequence[Ranked]] = ()
    """For each utterance all hypotheses, the chosen one first, if there was a second pass."""


@torch.inference_mode()
def search_whole(
    search: Search, encoded: EncoderOutput, second: SecondPass | None = None, state: Any = None
) -> SearchResult:
    """Search a batch of whole encoded utterances, from a state of the search that has heard nothing."""
    y, y_lengths, _ = encoded
    state = search.initial_state(y.shape[0], y.device) if state is None else state
    found = search(y, y_lengths, state)
    if second is not None:
        assert isinstance(search, BeamSearch | CtcBeamSearch)
        n_best = second(found.tokens, search.n_best(found.state), [encoded])
        return SearchResult([row[0].hypothesis.tokens for row in n_best], found.truncated, n_best)
    last = search.flush(found.state)
    return SearchResult([a + b for a, b in zip(found.tokens, last, strict=True)], found.truncated)
