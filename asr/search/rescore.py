"""Hypotheses of one head scored by the other: hybrid rescoring of n-best lists.

    score(y) = w_own log p_search(y) + w_ctc log p_ctc(y|x) + w_transducer log p_transducer(y|x) + fused(y)

where p_search is what the search found, over the alignments in its beam, the other two are exact sums over
all alignments (the losses of asr_kernels), and fused(y) is what the search's scorers added. It combines heads
as joint CTC/attention decoding does (Watanabe et al. 2017), with a transducer in the place of attention, and
after the search instead of within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from asr.config import Config
from asr.encoders import EncoderOutput
from asr.errors import ConfigError
from asr.losses import Transcripts, transducer_loss
from asr.search.align import Head, padded
from asr.search.hypothesis import Hypothesis
from asr.transducer import Transducer
from asr_kernels import ctc_loss

ROWS = 8
"""Hypotheses that are scored at once: the memory of a lattice each."""


class RescoreWeights(Config):
    """How much each log-probability counts; 0 leaves it out."""

    own: float = Field(1.0, ge=0)
    """What the search found."""
    ctc: float = Field(0.0, ge=0)
    transducer: float = Field(0.0, ge=0)

    @property
    def another_head(self) -> bool:
        """Whether anything counts but what the search found."""
        return bool(self.ctc or self.transducer)

    @model_validator(mode="after")
    def _something_counts(self) -> RescoreWeights:
        if not (self.own or self.ctc or self.transducer):
            raise ValueError("expected own, ctc or transducer above 0, found none")
        return self


HALF = RescoreWeights(own=0.5, ctc=0.5)


class Rescored(NamedTuple):
    """A hypothesis and what the heads think of it."""

    hypothesis: Hypothesis
    score: float
    """The weighted sum that it is ranked by."""
    ctc: float | None = None
    """Natural logarithm of the labels' probability by the CTC head; None if it does not count."""
    transducer: float | None = None


def rescore(
    model: Transducer,
    encoded: EncoderOutput,
    hypotheses: Sequence[Sequence[Hypothesis]],
    weights: RescoreWeights = HALF,
) -> list[list[Rescored]]:
    """The hypotheses of each utterance, best first by the weighted sum; equal ones stay in order.

    encoded: (B, T', E) whole utterances, of which the hypotheses say all the labels, from the first frame on.
    A head that cannot put out the labels on so few frames gives them minus infinity. Raises ConfigError if a
    head with a weight is missing.
    """
    check_heads(model, weights)
    found = []
    for frames, length, row in zip(encoded.y, encoded.y_lengths.tolist(), hypotheses, strict=True):
        labels = [[token.id for token in hypothesis.tokens] for hypothesis in row]
        ctc, transducer = (
            log_probs(model, head, frames[:length], labels).tolist() if weight else [None] * len(row)
            for head, weight in _heads(weights)
        )
        rescored = [_rescored(*each, weights) for each in zip(row, ctc, transducer, strict=True)]
        found.append(sorted(rescored, key=lambda each: -each.score))
    return found


def check_heads(model: Transducer, weights: RescoreWeights) -> None:
    """Raise ConfigError if a head with a weight is missing."""
    if weights.ctc and model.ctc is None:
        raise ConfigError("search.rescore: this model has no CTC head; set the weight ctc to 0")
    if weights.transducer and not model.has_transducer:
        raise ConfigError("search.rescore: this model has only a CTC head; set the weight transducer to 0")


@torch.inference_mode()
def log_probs(model: Transducer, head: Head, frames: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    """(N,) natural logarithms of the probability of label strings by a head, from encoder frames (T', E)."""
    score = _by_ctc if head == "ctc" else _by_transducer
    # Without frames only silence is certain.
    if len(frames) == 0:
        return torch.tensor([-torch.inf if row else 0.0 for row in labels])
    parts = [score(model, frames, labels[i : i + ROWS]) for i in range(0, len(labels), ROWS)]
    return torch.cat([torch.zeros(0, device=frames.device), *parts])


def _heads(weights: RescoreWeights) -> Iterator[tuple[Head, float]]:
    yield "ctc", weights.ctc
    yield "transducer", weights.transducer


def _rescored(
    hypothesis: Hypothesis, ctc: float | None, transducer: float | None, weights: RescoreWeights
) -> Rescored:
    parts = (hypothesis.log_prob, weights.own), (ctc, weights.ctc), (transducer, weights.transducer)
    # Zero times minus infinity would not be a number.
    score = sum(weight * value for value, weight in parts if weight and value is not None)
    return Rescored(hypothesis, score + hypothesis.fused, ctc, transducer)


def _by_ctc(model: Transducer, frames: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    assert model.ctc is not None
    targets, target_lengths = padded(labels, model.blank, frames.device)
    logits = model.ctc(frames).float().expand(len(labels), -1, -1)
    return -ctc_loss(logits, targets, _same(frames, targets), target_lengths, model.blank)


def _by_transducer(model: Transducer, frames: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    targets, target_lengths = padded(labels, model.blank, frames.device)
    joiner = model.joiner.projected(frames.expand(len(labels), -1, -1), model.predictor.whole(targets))
    to = Transcripts(targets, _same(frames, targets), target_lengths, model.blank)
    return -transducer_loss(model.config.loss.transducer.probability, joiner, to, None)


def _same(frames: Tensor, targets: Tensor) -> Tensor:
    """(N,) the number of frames for every row of targets."""
    return targets.new_full((len(targets),), len(frames))
