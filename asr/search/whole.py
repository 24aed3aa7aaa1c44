"""Search whole encoded utterances: begin, search, flush in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from asr.encoders import EncoderOutput
from asr.search.hypothesis import Search, Token


class SearchResult(NamedTuple):
    """What was found in finished utterances."""

    tokens: list[list[Token]]
    """Tokens of each utterance."""
    truncated: list[int]
    """For each utterance the frames where the bound on symbols per frame stopped the search."""


@torch.inference_mode()
def search_whole(search: Search, encoded: EncoderOutput) -> SearchResult:
    """Search a batch of whole encoded utterances."""
    y, y_lengths, _ = encoded
    found = search(y, y_lengths, search.initial_state(y.shape[0], y.device))
    last = search.flush(found.state)
    return SearchResult([a + b for a, b in zip(found.tokens, last, strict=True)], found.truncated)
