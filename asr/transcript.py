"""What was said, with times and confidences: from the tokens of a search to text, words and pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asr.search import Token
from asr.text.tokenizer import Tokenizer


class TimedToken(NamedTuple):
    """A token as it was emitted."""

    piece: str
    start_s: float
    end_s: float
    confidence: float
    """Probability in 0..1."""


class Word(NamedTuple):
    """A recognised word. Times are those of its tokens' emission."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """Geometric mean of its tokens' probabilities, in 0..1."""


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording, or so far in a stream."""

    text: str
    words: tuple[Word, ...]
    tokens: tuple[TimedToken, ...]
    duration_s: float
    """Seconds of audio that were heard."""
    truncated_frames: int = 0
    """Frames where the bound on symbols per frame stopped the search; above 0 something is wrong."""


def make_transcript(
    tokens: Sequence[Token],
    tokenizer: Tokenizer,
    frame_s: float,
    duration_s: float,
    truncated: int = 0,
) -> Transcript:
    """Tokens with their encoder frames of `frame_s` seconds to text."""
    ids = [token.id for token in tokens]
    timed = tuple(
        TimedToken(piece, token.frame * frame_s, token.end_frame * frame_s, math.exp(token.log_prob))
        for piece, token in zip(tokenizer.pieces(ids), tokens, strict=True)
    )
    words = tuple(_word(span.text, tokens[span.start : span.stop], frame_s) for span in tokenizer.words(ids))
    return Transcript(tokenizer.decode(ids), words, timed, duration_s, truncated)


def join(transcripts: Sequence[Transcript]) -> Transcript:
    """The utterances of a stream, in order, as one."""
    return Transcript(
        " ".join(t.text for t in transcripts if t.text),
        tuple(word for t in transcripts for word in t.words),
        tuple(token for t in transcripts for token in t.tokens),
        max((t.duration_s for t in transcripts), default=0.0),
        sum(t.truncated_frames for t in transcripts),
    )


def _word(text: str, tokens: Sequence[Token], frame_s: float) -> Word:
    log_prob = sum(token.log_prob for token in tokens) / len(tokens)
    return Word(text, tokens[0].frame * frame_s, tokens[-1].end_frame * frame_s, math.exp(log_prob))
