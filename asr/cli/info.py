"""`asr info`: the installation, or a model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from asr.cli.options import LatencyOption, parse_latency

PACKAGES = ("torch", "triton", "torchaudio", "lhotse", "sentencepiece", "soundfile", "soxr", "k2")


def info(
    model: Annotated[Path | None, typer.Argument(help="Model directory.", show_default=False)] = None,
    latency: LatencyOption = None,
) -> None:
    """Show versions, or what a model is: size, latency, memory per stream; a language model too."""
    from asr.errors import ConfigError

    if model is None:
        if latency is not None:
            raise ConfigError("--latency is of a model: name its directory, or leave it out")
        _installation()
    elif _is_lm(model):
        if latency is not None:
            raise ConfigError(f"--latency is of a recogniser, {model} is a language model: leave it out")
        _language_model(model)
    else:
        _model(model, latency)


def _installation() -> None:
    from asr import __version__

    print(f"asr {__version__}")
    for package in PACKAGES:
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")


def _model(directory: Path, latency: str | None) -> None:
    from asr.recognizer import load

    recognizer = load(directory, latency=parse_latency(latency))
    network = recognizer.network
    print(f"parameters            {sum(p.numel() for p in network.parameters()):,}")
    print(f"labels                {recognizer.config.vocab_size} ({recognizer.tokenizer.config.kind})")
    print(f"sample rate           {recognizer.sample_rate} Hz")
    print(f"frame                 {1000 / network.encoder.frame_rate:.0f} ms")
    print(f"heads                 {' '.join(name for name, has in _heads(network) if has)}")
    if recognizer.streaming:
        print(f"algorithmic latency   {1000 * recognizer.algorithmic_latency_s:.1f} ms")
        print(f"state per stream      {recognizer.stream().state_bytes:,} bytes")
        if recognizer.finals is not None:
            print("final results         of a second hearing, of whole utterances (search.finals)")
    else:
        print(f"streaming             no: {network.encoder.why_not_streaming}")
    if latencies := network.encoder.latencies:
        print(f"trained for           {', '.join(latency.name for latency in latencies)} (--latency)")
    if recognizer.config.synthetic:
        print("trained on            SYNTHETIC speech")


def _is_lm(directory: Path) -> bool:
    from asr.lm_directory import is_lm_directory

    return is_lm_directory(directory)


def _language_model(directory: Path) -> None:
    from asr.lm_directory import load_lm
    from asr.state import bytes_per_stream

    config, network, tokenizer = load_lm(directory)
    print(f"language model        {config.network.kind}; takes part in a search as --lm {directory}")
    print(f"parameters            {sum(p.numel() for p in network.parameters()):,}")
    print(f"labels                {config.vocab_size} ({tokenizer.config.kind})")
    print(f"state per hypothesis  {bytes_per_stream(network.initial_state(1)):,} bytes")


def _heads(network: object) -> list[tuple[str, bool]]:
    return [
        ("transducer", bool(getattr(network, "has_transducer", False))),
        ("ctc", getattr(network, "ctc", None) is not None),
    ]
