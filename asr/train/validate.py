"""Validation: loss and word error rate on dev, by greedy search; each process takes its share of dev."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from asr.data.batch import Batch
from asr.score.wer import WerReport, score_pairs
from asr.search import Search, search_whole
from asr.text.tokenizer import Tokenizer
from asr.train.distributed import World
from asr.transducer import Transducer


@dataclass(frozen=True)
class DevResult:
    """What validation measured."""

    loss: float
    """Nats per label, over utterances with a finite loss."""
    wer: float
    """Word error rate in 0..1 (and above, with many insertions)."""
    report: WerReport
    """Every utterance's alignment."""

    @property
    def numbers(self) -> dict[str, float]:
        """See Measured.numbers."""
        return {"dev_wer": self.wer, "dev_loss": self.loss}

    @property
    def headline(self) -> str:
        """See Measured.headline."""
        return f"dev WER {100 * self.wer:6.2f} %"


class _Part(NamedTuple):
    """What one process measured on its batches."""

    loss: float
    labels: int
    references: dict[str, str]
    hypotheses: dict[str, str]


def validate(
    network: Transducer, search: Search, batches: Iterable[Batch], tokenizer: Tokenizer, world: World
) -> DevResult:
    """Decode and score the batches of all processes; leaves the network in evaluation mode."""
    parts = world.gather(_measure(network, search, batches, tokenizer))
    references: dict[str, str] = {}
    hypotheses: dict[str, str] = {}
    for part in parts:
        references |= part.references
        hypotheses |= part.hypotheses
    loss, labels = sum(part.loss for part in parts), sum(part.labels for part in parts)
    report = score_pairs(references, hypotheses)
    return DevResult(loss / max(labels, 1), report.overall.wer, report)


@torch.inference_mode()
def _measure(network: Transducer, search: Search, batches: Iterable[Batch], tokenizer: Tokenizer) -> _Part:
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
    return _Part(total, labels, references, hypotheses)
