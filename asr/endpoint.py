"""When an utterance of a live stream has ended: three rules, each of which can be left out.

    silence   words were heard, and none for `trailing_silence_s` seconds
    nothing   `nothing_s` seconds without a word since the utterance began: what was heard is forgotten
    length    `max_length_s` seconds since the first word began: ends before a word that may not be complete

After Kaldi's online endpointing (online2/online-endpoint.h), with one rule of each kind. Silence is what
follows the last token and, with a voice activity detector, the last speech.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.config import Config

Rule = Literal["silence", "nothing", "length"]


class EndpointConfig(Config):
    """The rules; None leaves one out."""

    trailing_silence_s: float | None = Field(0.8, gt=0)
    """Seconds of silence behind words that end an utterance."""
    nothing_s: float | None = Field(5.0, gt=0)
    """Seconds without any word after which the utterance begins anew."""
    max_length_s: float | None = Field(20.0, gt=0)
    """Longest utterance in seconds, from its first word on."""

    def rule(self, length_s: float, silence_s: float | None) -> Rule | None:
        """The rule by which an utterance of `length_s` seconds has ended; None if it goes on.

        `silence_s` is the silence behind its last word; None if there was no word, and `length_s` is then the
        time since it began.
        """
        if silence_s is None:
            return "nothing" if _reached(length_s, self.nothing_s) else None
        if _reached(silence_s, self.trailing_silence_s):
            return "silence"
        return "length" if _reached(length_s, self.max_length_s) else None


def _reached(value_s: float, bound_s: float | None) -> bool:
    return bound_s is not None and value_s >= bound_s - 1e-6
