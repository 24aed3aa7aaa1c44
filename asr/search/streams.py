"""What a stream brings to a search: phrases of its own to listen for.

The streams of a batch share one scorer, in which each has a list of its own (asr.search.biasing); which one
is in their states, so that batches may be put together and taken apart as streams come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from asr.errors import ConfigError
from asr.search.beam import BeamSearch
from asr.search.biasing import BiasingConfig, PhraseBiasing, PhraseList
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.fusion import Fusion
from asr.search.hypothesis import Search


def listen(search: Search, config: BiasingConfig, hotwords: Sequence[str], name: str) -> PhraseList | None:
    """Phrases for `begin`, beside those of `config`; None if there are none.

    Raises HotwordsError or TokenError naming `name` and the phrase, ConfigError if the search cannot listen.
    """
    if not hotwords:
        return None
    scorer = search.scorer if isinstance(search, BeamSearch | CtcBeamSearch) else None
    each = [part.scorer for part in scorer.parts] if isinstance(scorer, Fusion) else [scorer]
    biasing = next((found for found in each if isinstance(found, PhraseBiasing)), None)
    if biasing is None:
        raise ConfigError(
            f"{name}: expected a beam search that listens for hotwords, found another one; "
            "use search.method=beam, without a scorer of your own"
        )
    return config.listen(biasing, hotwords, name)


def begin(
    search: Search, batch: int, phrases: Sequence[PhraseList | None] = (), device: torch.device | None = None
) -> Any:
    """State of `batch` streams that have heard nothing, and the phrases that each listens for, if any do."""
    if not any(phrases):
        return search.initial_state(batch, device)
    assert len(phrases) == batch
    assert isinstance(search, BeamSearch | CtcBeamSearch)
    assert isinstance(search.scorer, Fusion | PhraseBiasing)
    lists = [0 if each is None else each.number for each in phrases]
    return search.initial_state(batch, device, search.scorer.states_for(lists, device))
