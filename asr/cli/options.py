"""Options and exit codes that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from asr.recognizer import EndpointConfig, Latency, Recognizer, WindowConfig
    from asr.vad import VoiceActivity

INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended, by custom of shells: 128 + SIGINT."""
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        help="When it answers: CHUNK_MS heard at once; of some models CHUNK_MS:HISTORY_MS, or full.",
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="Model directory; without one, the English model in the package."),
]
CHUNK_MS = 100.0
ChunkOption = Annotated[
    float | None, typer.Option("--chunk-ms", min=1, help="Audio per feed with --stream; default 100.")
]
HeadOption = Annotated[
    Literal["transducer", "ctc"] | None, typer.Option("--head", help="Which head decodes, if there are two.")
]
BeamOption = Annotated[
    int | None, typer.Option("--beam", min=1, max=64, help="Beam search with so many hypotheses.")
]
LmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lm",
        metavar="LM[:WEIGHT]",
        help="Language model that takes part, in place of the model's own: ARPA file, or a neural one's "
        "directory; repeat it for several, below 0 it is taken off; with --beam.",
    ),
]
HotwordsOption = Annotated[
    Path | None,
    typer.Option("--hotwords", help="Phrases to listen for, one a line, TAB, boost if any; with --beam."),
]
BoostOption = Annotated[
    float | None, typer.Option("--hotwords-boost", help="Of phrases without one, in nats; default 4.")
]
SearchOption = Annotated[
    list[str] | None,
    typer.Option("--search", help="Setting of the search, e.g. fusion.lm_weight=0.4; repeatable."),
]
NbestOption = Annotated[
    int | None,
    typer.Option(
        "--nbest", min=1, max=64, help="Also the N best hypotheses, with scores (json); with --beam."
    ),
]
SilenceOption = Annotated[
    float | None, typer.Option("--silence", help="Seconds of silence that end an utterance; 0: never.")
]
MaxLengthOption = Annotated[
    float | None, typer.Option("--max-length", help="Longest utterance in seconds; 0: any.")
]
NothingOption = Annotated[
    float | None, typer.Option("--nothing", help="Seconds without a word that begin anew; 0: never.")
]
VadOption = Annotated[
    bool, typer.Option("--vad", help="Silence is only where silero-vad hears no speech either (extra vad).")
]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Say at the end where the time went.")]
StatsOption = Annotated[
    bool, typer.Option("--stats", help="Say how soon each utterance was answered, and the speed.")
]
WindowOption = Annotated[
    float | None,
    typer.Option(
        "--window",
        help="Hear windows of so many seconds, with a model that hears whole recordings; default 30 where a "
        "recording is too long for it.",
    ),
]
OverlapOption = Annotated[
    float | None,
    typer.Option("--overlap", help="Seconds that neighbouring windows share; default a third of a window."),
]

CalibrateOption = Annotated[
    bool,
    typer.Option("--calibrate", help="On a dev set: fit the temperature of confidences, say what to set."),
]
ReliabilityOption = Annotated[
    Path | None, typer.Option("--reliability", help="Draw the share of right words over confidence: a PNG.")
]


def search_settings(
    beam: int | None,
    lm: list[str] | None,
    search: list[str] | None,
    hotwords: Path | None = None,
    boost: float | None = None,
    nbest: int | None = None,
) -> list[str]:
    """What these options change in the settings of the search; --search has the last word."""
    settings = ["method=beam", f"beam={beam}"] if beam else []
    settings += _lm_settings(lm or [])
    settings += [f"fusion.biasing.hotwords={hotwords}"] if hotwords else []
    settings += [f"fusion.biasing.boost={boost}"] if boost is not None else []
    settings += [f"nbest={nbest}"] if nbest else []
    return [*settings, *(search or [])]


def _lm_settings(chosen: Sequence[str]) -> list[str]:
    """The first is the model's own language model, or stands in its place; the others are added."""
    if not chosen:
        return []
    (first, weight), *others = map(weighted, chosen)
    settings = [f"fusion.lm={first}"] + ([] if weight is None else [f"fusion.lm_weight={weight}"])
    more = [{"lm": lm} | ({} if weight is None else {"weight": weight}) for lm, weight in others]
    return [*settings, f"fusion.more_lms={json.dumps(more)}"] if more else settings


def weighted(text: str) -> tuple[str, float | None]:
    """`PATH:WEIGHT` in two; what is there under the whole name has none."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    try:
        return path, float(weight)
    except ValueError:
        return text, None


def endpoint_of(
    silence_s: float | None, max_length_s: float | None, nothing_s: float | None
) -> EndpointConfig | None:
    """The rules of these options, of which 0 and None leave one out; None without any. Raises ConfigError."""
    from asr.config import validate
    from asr.recognizer import EndpointConfig

    rules = {"trailing_silence_s": silence_s, "max_length_s": max_length_s, "nothing_s": nothing_s}
    chosen = {name: value or None for name, value in rules.items()}
    if not any(chosen.values()):
        return None
    return validate(chosen, EndpointConfig, "--silence, --max-length, --nothing")


def windows_of(length_s: float | None, overlap_s: float | None) -> WindowConfig | None:
    """The windows of these options; None without either. Raises ConfigError."""
    from asr.config import validate
    from asr.recognizer import WindowConfig

    if length_s is not None and overlap_s is None:
        overlap_s = length_s / 3
    chosen = {"length_s": length_s, "overlap_s": overlap_s}
    given = {name: value for name, value in chosen.items() if value is not None}
    return validate(given, WindowConfig, "--window, --overlap") if given else None


def note_windows(recognizer: Recognizer, file: Path) -> None:
    """Say so if a recording is too long to be heard whole and goes through in windows. Raises AudioError."""
    from asr.audio import probe

    if recognizer.streaming and recognizer.finals is None:
        return  # without a look at the header
    windows = recognizer.windows_for(probe(file).duration_s)
    if windows is not None:
        print(
            f"asr: {file}: more than the {recognizer.longest_whole_s:.0f} s that this model hears in one "
            f"piece: heard in windows of {windows.length_s:g} s that overlap by {windows.overlap_s:g} s",
            file=sys.stderr,
        )


def check_voice(wanted: bool, endpoint: EndpointConfig | None) -> None:
    """Raise ConfigError if voice activity is asked for and no rule asks for silence."""
    from asr.errors import ConfigError

    if wanted and (endpoint is None or endpoint.trailing_silence_s is None):
        raise ConfigError("--vad decides what --silence counts as silence: give --silence SECONDS as well")


def voice_of(wanted: bool, sample_rate: int) -> VoiceActivity | None:
    """A voice activity detector for one stream, if it is wanted. Raises MissingExtraError."""
    from asr.vad import SileroVad

    return SileroVad(sample_rate) if wanted else None


def parse_latency(text: str | None) -> Latency | None:
    """`240`, `240:2000` or `full`; raises ConfigError."""
    from asr.errors import ConfigError
    from asr.recognizer import Latency

    if text is None:
        return None
    if text == "full":
        return Latency(None)
    chunk, colon, left = text.partition(":")
    try:
        return Latency(float(chunk) / 1000, float(left) / 1000 if colon else None)
    except ValueError:
        raise ConfigError(
            f"--latency {text}: expected milliseconds of a chunk and maybe of its history, or full, "
            "e.g. 240, 240:2000"
        ) from None
