"""What is said of a model that was trained: in its card, beside the weights, and at the top of its page."""

from __future__ import annotations

from collections.abc import Sequence

from asr.features.fbank import Fbank
from asr.train.setup import RunSetup


def facts(setup: RunSetup, weights: str, dev_wer: float, throughput: str) -> list[tuple[str, str]]:
    """What the model is, how it was trained, what was measured; names and values."""
    info, recipe, network = setup.info, setup.recipe, setup.network
    environment = info.environment
    encoder = network.encoder
    latency_s = encoder.algorithmic_latency_s + Fbank(recipe.features).lookahead_s
    live = (
        f"streaming, algorithmic latency {1000 * latency_s:.0f} ms"
        if encoder.streaming
        else "whole utterances"
    )
    # A twin is for training alone.
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("twin."))
    software = f"commit {environment.commit}, torch {environment.versions['torch']}"
    return [
        ("model", f"{parameters / 1e6:.2f} M parameters, {live}, {recipe.features.sample_rate} Hz"),
        ("corpus", f"{info.corpus} ({len(setup.batches.pool)} training recordings)"),
        ("dev WER", f"{100 * dev_wer:.2f} % ({weights})"),
        *([] if info.initial is None else [("began as", info.initial.described)]),
        ("trained", f"at {throughput} on {environment.hardware}"),
        ("started", f"{environment.started}, {software}"),
    ]


def model_card(setup: RunSetup, lines: Sequence[tuple[str, str]]) -> str:
    """Markdown of the facts."""
    warning = "\n**Trained on synthetic speech. It says nothing about real voices.**\n"
    synthetic = warning if setup.info.synthetic else ""
    listed = "\n".join(f"- {name}: {value}" for name, value in lines)
    return f"""# {setup.recipe.name}
{synthetic}
{listed}

`recipe.yaml` and `run.yaml` hold the full configuration, `log.jsonl` every step, `report.html` the curves.

    asr transcribe FILE... --model DIR
"""


def with_fact(card: str, name: str, value: str) -> str:
    """The card with one more line behind its list, in place of what it said of `name`."""
    lines = [line for line in card.split("\n") if not line.startswith(f"- {name}: ")]
    last = max((i for i, line in enumerate(lines) if line.startswith("- ")), default=len(lines) - 1)
    return "\n".join([*lines[: last + 1], f"- {name}: {value}", *lines[last + 1 :]])
