"""What was said, with times and confidences: from the tokens of a search to text, words and pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asr.search import Token
from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.text.tokenizer import Tokenizer


class TimedToken(NamedTuple):
    """A token as it was emitted."""

    piece: str
    start_s: float
    end_s: float
    confidence: float
    """In 0..1; by default its probability (asr.search.confidence)."""


class Word(NamedTuple):
    """A recognised word. Times are those of its tokens' emission."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """In 0..1; by default the geometric mean of its tokens' probabilities (asr.search.confidence)."""


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
    confidence: ConfidenceConfig = PLAIN,
) -> Transcript:
    """Tokens with their encoder frames of `frame_s` seconds to text, with confidences as configured."""
    ids = [token.id for token in tokens]
    timed = tuple(
        TimedToken(piece, token.frame * frame_s, token.end_frame * frame_s, confidence.of_token(token))
        for piece, token in zip(tokenizer.pieces(ids), tokens, strict=True)
    )
    words = tuple(
        _word(span.text, tokens[span.start : span.stop], frame_s, confidence) for span in tokenizer.words(ids)
    )
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


def _word(text: str, tokens: Sequence[Token], frame_s: float, confidence: ConfidenceConfig) -> Word:
    return Word(text, tokens[0].frame * frame_s, tokens[-1].end_frame * frame_s, confidence.of_word(tokens))
