"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from asr.recognizer import Latency

LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        help="CHUNK_MS[:HISTORY_MS] or full, for models trained for several: when it answers.",
    ),
]
HeadOption = Annotated[
    Literal["transducer", "ctc"] | None, typer.Option("--head", help="Which head decodes, if there are two.")
]


def parse_latency(text: str | None) -> Latency | None:
    """`240`, `240:2000` or `full`; raises ConfigError."""
    from asr.errors import ConfigError
    from asr.recognizer import Latency

    if text is None:
        return None
    if text == "full":
        return Latency(None)
    chunk, _, left = text.partition(":")
    try:
        return Latency(float(chunk) / 1000, float(left) / 1000 if left else None)
    except ValueError:
        raise ConfigError(
            f"--latency {text}: expected milliseconds of a chunk and maybe of its history, or full, "
            "e.g. 240, 240:2000"
        ) from None
