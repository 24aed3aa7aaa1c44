"""Forced alignment: the frames of labels that are known, on the most probable path of a head (Viterbi).

    path* = argmax over paths that put out the labels of log P(path | encoder frames)

over the paths of the CTC head (Graves et al. 2006) or of the transducer's topology (asr_kernels.lattice). A
token's times and log-probability mean what they mean in a greedy search: with CTC it lasts as long as its run
and has the log-probability of the run's most certain frame; with a transducer it has the frames that its
symbol consumes, at least one, and the log-probability of its emission.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from asr.errors import ConfigError
from asr.search.hypothesis import Token
from asr.transducer import Transducer
from asr_kernels import CTC, Alignment, ctc_align, fused_align

Head = Literal["transducer", "ctc"]

CTC_BYTES = 3
"""Memory per frame and label with the CTC head: a byte for each of two states, and what else there is."""
TRANSDUCER_BYTES = 72
"""The same with a transducer of two arcs, for every label and every frame or label."""
ARC_BYTES = 36
"""Of every further arc."""


class Aligned(NamedTuple):
    """Labels on the most probable path."""

    tokens: list[Token]
    log_prob: float
    """Of the path; minus infinity, without tokens, if there is no path."""


def choose_head(model: Transducer, head: Head | None) -> Head:
    """`head`, or of None the transducer if the model has one; raises ConfigError if it lacks the head."""
    if head is None:
        return "transducer" if model.has_transducer else "ctc"
    if head == "transducer" and not model.has_transducer:
        raise ConfigError("head transducer: this model has only a CTC head; use ctc")
    if head == "ctc" and model.ctc is None:
        raise ConfigError("head ctc: this model has no CTC head; use transducer")
    return head


def frames_needed(model: Transducer, head: Head, labels: Sequence[int]) -> int:
    """Fewest encoder frames on which the head can put out `labels`."""
    return (CTC if head == "ctc" else model.topology).frames_needed(labels)


def bytes_needed(model: Transducer, head: Head, frames: int, labels: int) -> int:
    """About how much memory `align` takes for an utterance of so many encoder frames and labels."""
    if head == "ctc":
        return CTC_BYTES * frames * (labels + 1) + 12 * frames * model.vocab_size
    states = 2 if model.topology.repeats else 1
    per_node = states * (TRANSDUCER_BYTES + ARC_BYTES * (len(model.topology.arcs) - 2))
    # The lattice is stored by steps t + u.
    return per_node * (frames + labels) * (labels + 1)


@torch.inference_mode()
def align(
    model: Transducer, head: Head, encoded: Tensor, lengths: Tensor, labels: Sequence[Sequence[int]]
) -> list[Aligned]:
    """Align encoder frames (B, T', E), of which lengths (B,) are valid, with the labels of each utterance.

    An utterance that has too few frames (`frames_needed`) has no path. No frames and no labels are a path of
    log-probability 0.
    """
    targets, target_lengths = padded(labels, model.blank, encoded.device)
    if encoded.shape[0] == 0 or encoded.shape[1] == 0:
        return [Aligned([], -torch.inf if row else 0.0) for row in labels]
    ways = _align_ctc if head == "ctc" else _align_transducer
    found, log_probs = ways(model, encoded, lengths, targets, target_lengths)
    return [_aligned(row, int(lengths[b]), found, log_probs[b].tolist(), b) for b, row in enumerate(labels)]


def padded(labels: Sequence[Sequence[int]], blank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels (B, U), one at least, padded with blank, and how many there are (B,)."""
    targets = torch.full((len(labels), max([1, *map(len, labels)])), blank)
    for row, each in zip(targets, labels, strict=True):
        row[: len(each)] = torch.tensor(each, dtype=torch.int64)
    return targets.to(device), torch.tensor([len(row) for row in labels], device=device)


def _aligned(labels: Sequence[int], frames: int, found: Alignment, log_probs: list[float], b: int) -> Aligned:
    score = 0.0 if not labels and not frames else float(found.score[b])
    if score == -torch.inf:
        return Aligned([], score)
    columns = found.frames[b].tolist(), found.end_frames[b].tolist(), log_probs
    return Aligned([Token(label, *place) for label, *place in zip(labels, *columns, strict=False)], score)


def _align_ctc(
    model: Transducer, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> tuple[Alignment, Tensor]:
    """The best path, and (B, U) log-probabilities of the labels on their most certain frame."""
    assert model.ctc is not None
    logits = model.ctc(encoded).float()
    found = ctc_align(logits, targets, lengths, target_lengths, model.blank)
    log_probs = logits.log_softmax(dim=-1)
    best = torch.zeros(targets.shape, device=logits.device)
    for b, (first, behind) in enumerate(zip(found.frames.tolist(), found.end_frames.tolist(), strict=True)):
        for u in range(int(target_lengths[b])):
            if first[u] >= 0:
                best[b, u] = log_probs[b, first[u] : behind[u], targets[b, u]].max()
    return found, best


def _align_transducer(
    model: Transducer, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> tuple[Alignment, Tensor]:
    """The best path, and (B, U) log-probabilities of the labels where they are emitted."""
    joiner = model.joiner.projected(encoded, model.predictor.whole(targets))
    found = fused_align(
        *joiner[:4],
        targets,
        lengths,
        target_lengths,
        model.blank,
        activation=joiner.activation,
        topology=model.topology,
    )
    frames = found.frames.clamp(min=0)[:, :, None].expand(-1, -1, joiner.encoder.shape[2])
    logits = model.joiner.combine(joiner.encoder.gather(1, frames), joiner.predictor[:, :-1]).float()
    log_probs = logits[..., : logits.shape[-1] - model.topology.durations].log_softmax(dim=-1)
    return found, log_probs.gather(-1, targets[:, :, None])[:, :, 0]
