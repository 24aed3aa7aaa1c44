"""What is done with the n-best of a stream that has ended: scored by other heads, decided by least risk.

A search keeps several hypotheses to the end. A second pass may rank them by the exact likelihoods of the
model's heads (asr.search.rescore), then choose the one that is expected to have the fewest word errors
(asr.search.mbr), and gives them all, best first.

Hypotheses differ only in what a search had not yet given out: what all of them share is decided. In a long
recording that is its end, at most 128 labels (asr.search.history).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from asr.encoders import EncoderOutput
from asr.errors import AudioError
from asr.search.hypothesis import Hypothesis, Token
from asr.search.mbr import minimum_bayes_risk
from asr.search.rescore import Rescored, RescoreWeights, check_heads, rescore
from asr.text.tokenizer import Tokenizer
from asr.transducer import Transducer

LONGEST_RESCORED_S = 60.0
"""A transducer's lattice grows with frames times labels, and all frames of the recording are kept for it."""


class Ranked(NamedTuple):
    """A hypothesis of a whole recording and what is thought of it."""

    hypothesis: Hypothesis
    score: float
    """What hypotheses are ranked by, before the risk."""
    ctc: float | None = None
    """Natural logarithm of the labels' probability by the CTC head; None if it does not count."""
    transducer: float | None = None
    posterior: float | None = None
    """Probability given the list; None if nobody asked for the risk."""
    risk: float | None = None
    """Expected word errors."""


class SecondPass:
    """Rescoring, then minimum Bayes risk, either of which may be left out."""

    def __init__(
        self, model: Transducer, tokenizer: Tokenizer, weights: RescoreWeights, mbr: float | None = None
    ) -> None:
        """`mbr`: scale of scores (asr.search.mbr). Raises ConfigError if a head that counts is missing."""
        check_heads(model, weights)
        self.model, self.tokenizer, self.weights, self.mbr = model, tokenizer, weights, mbr

    @property
    def rescores(self) -> bool:
        """Whether it needs the encoder's frames."""
        return self.weights.another_head

    def check_length(self, seconds: float, name: str) -> None:
        """Raise AudioError for a recording that is too long."""
        if self.rescores and seconds > LONGEST_RESCORED_S:
            raise AudioError(
                f"{name}: expected at most {LONGEST_RESCORED_S:.0f} s with search.rescore, found "
                f"{seconds:.0f} s; leave it out, or cut the recording"
            )

    def __call__(
        self,
        said: Sequence[Sequence[Token]],
        hypotheses: Sequence[Sequence[Hypothesis]],
        encoded: Sequence[EncoderOutput] = (),
    ) -> list[list[Ranked]]:
        """The hypotheses of each stream, best first, the first of them chosen.

        hypotheses: of what comes behind what was `said`; what is returned is of both.
        encoded: (B, T', E) all frames of the recordings, in parts, where it `rescores`.
        """
        whole = [
            [each._replace(tokens=[*before, *each.tokens]) for each in row]
            for before, row in zip(said, hypotheses, strict=True)
        ]
        if self.rescores:
            scored = rescore(self.model, _joined(encoded), whole, self.weights)
        else:
            scored = [[Rescored(each, each.score) for each in row] for row in whole]
        return [self._decided(row) for row in scored]

    def _decided(self, row: Sequence[Rescored]) -> list[Ranked]:
        ranked = [Ranked(*each) for each in row]
        if self.mbr is None or not ranked:
            return ranked
        texts = [
            self.tokenizer.decode([token.id for token in each.hypothesis.tokens]).split() for each in row
        ]
        found = minimum_bayes_risk(texts, [each.score for each in row], self.mbr)
        columns = zip(ranked, found.posteriors, found.risks, strict=True)
        judged = [each._replace(posterior=posterior, risk=risk) for each, posterior, risk in columns]
        return sorted(judged, key=lambda each: each.risk or 0.0)


def _joined(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    """The frames of a batch of streams, part behind part."""
    if len(parts) == 1:
        return parts[0]
    streams = range(len(parts[0].y_lengths))
    whole = [torch.cat([part.y[i, : int(part.y_lengths[i])] for part in parts]) for i in streams]
    lengths = parts[0].y_lengths.new_tensor([len(frames) for frames in whole])
    return EncoderOutput(torch.nn.utils.rnn.pad_sequence(whole, batch_first=True), lengths, None)
