"""`asr decode`: recognise a test set and score it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import (
    CHUNK_MS,
    BeamOption,
    BoostOption,
    CalibrateOption,
    ChunkOption,
    HeadOption,
    HotwordsOption,
    LatencyOption,
    LmOption,
    NbestOption,
    ReliabilityOption,
    SearchOption,
    parse_latency,
    search_settings,
)


def decode(
    exp: Annotated[Path, typer.Argument(help="Model directory, usually of a training run.")],
    data: Annotated[
        str, typer.Option(help="A split of the run's corpus (test, dev) or a cut manifest.")
    ] = "test",
    out: Annotated[Path | None, typer.Option(help="Where results go; default EXP/decode/NAME.")] = None,
    live: Annotated[
        bool, typer.Option("--stream", help="Feed every recording as live audio; adds latency.")
    ] = False,
    chunk_ms: ChunkOption = None,
    normalization: Annotated[
        str, typer.Option(help="Text normalisation for scoring: none, basic, english.")
    ] = "none",
    batch_s: Annotated[float, typer.Option(min=1, help="Padded seconds of audio per batch.")] = 200.0,
    latency: LatencyOption = None,
    head: HeadOption = None,
    beam: BeamOption = None,
    lm: LmOption = None,
    hotwords: HotwordsOption = None,
    hotwords_boost: BoostOption = None,
    search: SearchOption = None,
    nbest: NbestOption = None,
    cut_hotwords: Annotated[
        bool, typer.Option("--cut-hotwords", help="Also listen for each cut's custom field `hotwords`.")
    ] = False,
    calibrate: CalibrateOption = False,
    reliability: ReliabilityOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Recognise a test set: hyp.jsonl, wer.txt and a summary line."""
    from asr.errors import ConfigError
    from asr.evaluate import Options, evaluate

    if chunk_ms and not live:
        raise ConfigError("--chunk-ms is for live audio: add --stream")
    live_chunk_s = (chunk_ms or CHUNK_MS) / 1000 if live else None
    settings = tuple(search_settings(beam, lm, search, hotwords, hotwords_boost, nbest))
    options = Options(
        normalization,
        batch_s,
        live_chunk_s,
        threads,
        device,
        parse_latency(latency),
        head,
        settings,
        cut_hotwords,
        calibrate,
        reliability,
    )
    result = evaluate(exp, data, out, options)
    for line in result.lines:
        print(line)
