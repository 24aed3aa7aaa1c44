"""What was said, with times and confidences: from the tokens of a search to text, words and pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asr.search import Token
from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.search.second_pass import Ranked
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


class Alternative(NamedTuple):
    """What may have been said in the whole recording; scores are natural logarithms."""

    text: str
    score: float
    """What it is ranked by: the sum of what follows, by weights."""
    log_prob: float
    """Of its labels by the search, over the alignments that it found."""
    fused: float
    """What language models and phrases added."""
    ctc: float | None = None
    """Exactly, by the CTC head; None if it was not asked (search.rescore)."""
    transducer: float | None = None
    posterior: float | None = None
    """Probability given the alternatives; None without search.mbr."""
    risk: float | None = None
    """Expected word errors; with it the first alternative has the least."""


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
    alternatives: tuple[Alternative, ...] = ()
    """The best hypotheses, the first of them the text, if search.nbest asks for some."""


def make_transcript(
    tokens: Sequence[Token],
    tokenizer: Tokenizer,
    frame_s: float,
    duration_s: float,
    truncated: int = 0,
    n_best: Sequence[Ranked] = (),
    confidence: ConfidenceConfig = PLAIN,
) -> Transcript:
    """Tokens with their encoder frames of `frame_s` seconds to text, and the alternatives to tell of.

    Confidences are as configured.
    """
    ids = [token.id for token in tokens]
    timed = tuple(
        TimedToken(piece, token.frame * frame_s, token.end_frame * frame_s, confidence.of_token(token))
        for piece, token in zip(tokenizer.pieces(ids), tokens, strict=True)
    )
    words = tuple(
        _word(span.text, tokens[span.start : span.stop], frame_s, confidence) for span in tokenizer.words(ids)
    )
    alternatives = tuple(_alternative(ranked, tokenizer) for ranked in n_best)
    return Transcript(tokenizer.decode(ids), words, timed, duration_s, truncated, alternatives)


def join(transcripts: Sequence[Transcript]) -> Transcript:
    """The utterances of a stream, in order, as one; alternatives are those of the only one."""
    return Transcript(
        " ".join(t.text for t in transcripts if t.text),
        tuple(word for t in transcripts for word in t.words),
        tuple(token for t in transcripts for token in t.tokens),
        max((t.duration_s for t in transcripts), default=0.0),
        sum(t.truncated_frames for t in transcripts),
        transcripts[0].alternatives if len(transcripts) == 1 else (),
    )


def bound_note(frames: int) -> str:
    """What to tell users of so many frames where the bound on symbols stopped the search."""
    return (
        f"the bound on symbols per frame stopped the search on {frames} frames; the model may be diverging, "
        "or raise search.max_symbols"
    )


def as_json(alternative: Alternative) -> dict[str, str | float | None]:
    """Its fields that were asked for, for JSON, which has no infinity: null is minus infinity."""
    fields = {name: getattr(alternative, name) for name in Alternative._fields}
    scores = {name: value for name, value in fields.items() if isinstance(value, float)}
    finite = {name: round(value, 4) if math.isfinite(value) else None for name, value in scores.items()}
    return {"text": alternative.text, **finite}


def _alternative(ranked: Ranked, tokenizer: Tokenizer) -> Alternative:
    hypothesis, score, *others = ranked
    text = tokenizer.decode([token.id for token in hypothesis.tokens])
    return Alternative(text, score, hypothesis.log_prob, hypothesis.fused, *others)


def _word(text: str, tokens: Sequence[Token], frame_s: float, confidence: ConfidenceConfig) -> Word:
    return Word(text, tokens[0].frame * frame_s, tokens[-1].end_frame * frame_s, confidence.of_word(tokens))
