"""Speech recognition with RNN transducers.

    >>> import asr
    >>> recognizer = asr.load("exp/digits")
    >>> recognizer.transcribe("recording.wav").text

Importing this package is cheap: torch is imported when the first model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asr.errors import AsrError

if TYPE_CHECKING:
    from asr.recognizer import (
        EndpointConfig,
        Event,
        Latency,
        Recognizer,
        Session,
        Transcript,
        WindowConfig,
        load,
    )

__all__ = [
    "AsrError",
    "EndpointConfig",
    "Event",
    "Latency",
    "Recognizer",
    "Session",
    "Transcript",
    "WindowConfig",
    "__version__",
    "load",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from asr import recognizer

        return getattr(recognizer, name)
    raise AttributeError(f"module 'asr' has no attribute {name!r}")
