"""Text: tokenizers between transcripts and label ids, and normalisation for scoring. No torch here."""

from asr.text.normalize import NORMALIZERS, normalize
from asr.text.tokenizer import (
    BLANK,
    BOUNDARY,
    UNKNOWN,
    Tokenizer,
    TokenizerConfig,
    WordSpan,
    clean,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "BLANK",
    "BOUNDARY",
    "NORMALIZERS",
    "UNKNOWN",
    "Tokenizer",
    "TokenizerConfig",
    "WordSpan",
    "clean",
    "load_tokenizer",
    "normalize",
    "train_tokenizer",
]
