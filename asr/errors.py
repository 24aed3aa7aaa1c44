"""Every error that a user can cause, and nothing else.

::

    AsrError                    catch this to catch them all; the command line prints its one line
    ├── ConfigError             a key, value or combination of settings that cannot work
    ├── DataError               something is wrong with what was given to learn from or to score
    │   ├── AudioError          a recording that cannot be read as speech
    │   ├── ManifestError       a corpus, manifest or transcript file that cannot be understood
    │   ├── HotwordsError       a list of phrases that cannot be used
    │   └── TokenError          text that the tokenizer has no symbol for
    ├── ModelError              a model or experiment directory that cannot be used
    ├── StreamingError          live use of something that cannot stream
    ├── TrainingError           training cannot start or go on
    └── MissingExtraError       an optional package is needed; the message is the pip command

Each message is one line: what was expected, what was found, how to mend it; it names the file or the
utterance. Violated internal invariants are asserts, not errors of this tree.
"""

from __future__ import annotations


class AsrError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(AsrError):
    """A configuration key, value or combination that cannot work."""


class DataError(AsrError):
    """Something is wrong with the data that was given."""


class AudioError(DataError):
    """A recording that is missing, empty, damaged or not audio."""


class ManifestError(DataError):
    """A corpus, manifest or transcript file that cannot be understood."""


class HotwordsError(DataError):
    """A list of phrases to listen for that cannot be used."""


class TokenError(DataError):
    """Text holds a symbol outside the tokenizer's vocabulary."""


class ModelError(AsrError):
    """A model directory or checkpoint that cannot be used."""


class StreamingError(AsrError):
    """Live use was asked of something that cannot stream, or of a stream that has ended."""


class TrainingError(AsrError):
    """Training cannot start or go on."""


class MissingExtraError(AsrError):
    """An optional dependency is missing."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'asr-transducer[{extra}]'")
