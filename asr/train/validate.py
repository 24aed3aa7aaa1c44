"""Validation: loss and word error rate on dev, by greedy search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from asr.data.batches import Batch
from asr.score.wer import score_pairs
from asr.search import Search, search_whole
from asr.text.tokenizer import Tokenizer
from asr.transducer import Transducer


@dataclass(frozen=True)
class DevResult:
    """What validation measured."""

    loss: float
    """Nats per label, over utterances with a finite loss."""
    wer: float
    """Word error rate in 0..1 (and above, with many insertions)."""


@torch.inference_mode()
def validate(
    network: Transducer, search: Search, batches: Iterable[Batch], tokenizer: Tokenizer
) -> DevResult:
    """Decode and score `batches`; leaves the network in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    references: dict[str, str] = {}
    hypotheses: dict[str, str] = {}
    total, labels = 0.0, 0
    for batch in batches:
        features, lengths = batch.features.to(device), batch.feature_lengths.to(device)
        encoded = network.encode(features, lengths)
        losses = network.losses(
            encoded.y, encoded.y_lengths, batch.targets.to(device), batch.target_lengths.to(device)
        ).total.cpu()
        finite = torch.isfinite(losses)
        total += float(losses[finite].sum())
        labels += int(batch.target_lengths[finite].sum())
        found = search_whole(search, encoded)
        for utterance, text, tokens in zip(batch.ids, batch.texts, found.tokens, strict=True):
            references[utterance] = text
            hypotheses[utterance] = tokenizer.decode([token.id for token in tokens])
    return DevResult(total / max(labels, 1), score_pairs(references, hypotheses).overall.wer)
