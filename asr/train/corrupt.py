"""Recordings that cannot be read: left out of batches, counted here, and an error if there are too many."""

from __future__ import annotations

from asr.errors import TrainingError

TOLERATED = 10
"""Utterances that may be left out whatever their share, so that the first batches of a run decide nothing."""


def too_many(corrupt: int, utterances: int, most: float, example: str) -> TrainingError | None:
    """The error that ends training if `corrupt` of `utterances` is more than the share `most` and a few."""
    if corrupt <= TOLERATED + most * utterances:
        return None
    return TrainingError(
        f"{corrupt} of {utterances} utterances cannot be read, the last one {example}; mend or remove them "
        f"(asr data check), or raise batches.max_corrupt ({most:g})"
    )
