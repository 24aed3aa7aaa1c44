"""The model card that training writes beside the weights."""

from __future__ import annotations

from asr.features.fbank import Fbank
from asr.train.setup import RunSetup


def model_card(setup: RunSetup, weights: str, dev_wer: float, throughput: float) -> str:
    """Markdown: what the model is, how it was trained, what was measured."""
    info, recipe, network = setup.info, setup.recipe, setup.network
    environment = info.environment
    encoder = network.encoder
    latency_s = encoder.algorithmic_latency_s + Fbank(recipe.features).lookahead_s
    live = (
        f"streaming, algorithmic latency {1000 * latency_s:.0f} ms"
        if encoder.streaming
        else "whole utterances"
    )
    synthetic = (
        "\n**Trained on synthetic speech. It says nothing about real voices.**\n" if info.synthetic else ""
    )
    parameters = sum(p.numel() for p in network.parameters())
    return f"""# {recipe.name}
{synthetic}
- {parameters / 1e6:.2f} M parameters, {live}, {recipe.features.sample_rate} Hz
- corpus: {info.corpus} ({len(setup.batches.pool)} training recordings)
- dev WER {100 * dev_wer:.2f} % ({weights})
- trained at {throughput:.0f} utterance-seconds per second on {environment.hardware}
- started {environment.started}, commit {environment.commit}, torch {environment.versions["torch"]}

`recipe.yaml` and `run.yaml` hold the full configuration, `log.jsonl` every step.

    asr transcribe FILE... --model DIR
"""
