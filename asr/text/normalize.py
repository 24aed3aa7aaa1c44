"""Normalisation for scoring: which differences in writing do not count as errors. A named choice.

none
    White space is collapsed. For corpora whose transcripts have one fixed writing.
basic
    For any language. NFKC and case folding; typographic apostrophes become '; an apostrophe inside a word,
    and a full stop or comma between digits, stay; other punctuation and symbols (Unicode P and S) become
    spaces; white space is collapsed. Combining marks stay, for they are vowels in many scripts.
english
    As described for Whisper's English normaliser: contractions and titles written out, numbers and amounts
    in digits, British spellings made American, fillers and bracketed remarks dropped. Every rule is listed
    in `asr.text.english`.

A word error rate is only comparable with one under the same normalisation, so reports name it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType

from asr.errors import ConfigError
from asr.text.english import APOSTROPHES, normalize_english


def normalize(text: str, name: str) -> str:
    """Return the text under the named normalisation; raises ConfigError, which lists the names there are."""
    return normalizer(name)(text)


def normalizer(name: str) -> Callable[[str], str]:
    """Return the named normalisation as a function; raises ConfigError, which lists the names there are."""
    if name not in NORMALIZERS:
        raise ConfigError(f"normalization: expected {', '.join(NORMALIZERS)}, found {name!r}")
    return NORMALIZERS[name]


def collapse(text: str) -> str:
    """Return the text with white space collapsed: "none"."""
    return " ".join(text.split())


def normalize_basic(text: str) -> str:
    """Apply the rules of "basic"."""
    text = unicodedata.normalize(
        "NFKC", unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).casefold()
    )
    kept = r"(?<=\w)'(?=\w)|(?<=\d)[.,](?=\d)"
    return collapse(re.sub(rf"({kept})|.", _keep_or_space, text, flags=re.DOTALL))


def _keep_or_space(match: re.Match[str]) -> str:
    return match[0] if match[1] or unicodedata.category(match[0])[0] not in "PS" else " "


NORMALIZERS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"none": collapse, "basic": normalize_basic, "english": normalize_english}
)
"""The normalisations by name."""
