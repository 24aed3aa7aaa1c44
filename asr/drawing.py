"""A recording as a recognizer hears it: features, emission times and words in one picture."""

from __future__ import annotations

from pathlib import Path

from asr.audio import Samples
from asr.recognizer import Recognizer
from asr.score.picture import TokenMark, WordMark, draw_transcript
from asr.transcript import Transcript


def draw_recording(
    path: Path, recognizer: Recognizer, samples: Samples, name: str, transcript: Transcript | None = None
) -> None:
    """Draw samples at the recognizer's rate, and their transcript or what it makes of them, into a PNG."""
    transcript = transcript or recognizer.transcribe(samples, recognizer.sample_rate)
    tokens = [TokenMark(t.piece, t.start_s, t.confidence) for t in transcript.tokens]
    words = [WordMark(*word) for word in transcript.words]
    draw_transcript(
        path,
        recognizer.features(samples),
        recognizer.fbank.shift_s,
        tokens,
        words,
        f"{name}: {transcript.text}",
        synthetic=recognizer.config.synthetic,
    )
