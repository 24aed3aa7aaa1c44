"""How sure a search is of a token and of a word, in 0..1.

What a token is judged by is the distribution p over the V symbols of the step that put it out::

    probability   p(label)
    gibbs         1 - H / ln V                                     H = - sum_v p_v ln p_v
    tsallis       (V^(1-a) - sum_v p_v^a) / (V^(1-a) - 1)          a > 0, not 1

The entropies are normalised linearly, to 1 for one certain symbol and 0 for equal ones (Laptev and Ginsburg,
*Fast entropy-based methods of word-level confidence estimation for end-to-end automatic speech recognition*,
2023, where a = 1/3). They do not ask which symbol is certain, as a greedy search takes the most probable one.
Beam search need not, so here they are multiplied by p(label) / max p, which for greedy search is 1.

A word has the geometric mean, the mean, the least or the product of its tokens' confidences c, and what is
reported is c^(1/T): a temperature T above 1 makes it surer, one below 1 less so. T is fitted on a development
set (asr.score.confidence); it does not change which words are surer than others. Temperature scaling (Guo et
al. 2017) divides logits and normalises again; here the logarithm is divided and nothing normalised, because a
word has no other classes that the search has seen.

All searches tell this alike, of the step that put out the label (transducer) or of the most certain frame of
its run (CTC). A beam's is that of the label on the best path too, not a posterior over hypotheses: language
models and other hypotheses change which words are found and not how sure they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from asr.config import Config
from asr.search.hypothesis import Token

LEAST = 1e-9
"""A confidence of 0 has no logarithm."""


class ConfidenceConfig(Config):
    """What confidences are."""

    measure: Literal["probability", "gibbs", "tsallis"] = "probability"
    """Of a token: the label's probability, or the normalised entropy of all symbols'."""
    alpha: float = Field(1 / 3, gt=0)
    """Exponent of the Tsallis entropy; below 1 improbable symbols count for more."""
    aggregate: Literal["geometric", "mean", "min", "product"] = "geometric"
    """Of a word, from its tokens: geometric or arithmetic mean, least, product."""
    temperature: float = Field(1.0, gt=0)
    """Logarithms of confidences are divided by it; fitted on a development set by `--calibrate`."""

    @model_validator(mode="after")
    def _check(self) -> ConfidenceConfig:
        if self.alpha == 1:
            raise ValueError("alpha: expected another number than 1, where it is measure=gibbs; use that")
        return self

    def log_confidences(self, log_probs: Tensor) -> Tensor:
        """Logarithms of the confidence (..., V) in each symbol if it is put out, before the temperature.

        log_probs (..., V): of all symbols, normalised, float32 or float64; is returned itself if that is the
        measure.
        """
        if self.measure == "probability":
            return log_probs
        count = log_probs.shape[-1]
        if self.measure == "gibbs":
            entropy: Tensor = torch.special.entr(log_probs.exp()).sum(dim=-1)
            sure = 1 - entropy / math.log(count)
        else:
            most = count ** (1 - self.alpha)
            sure = (most - (self.alpha * log_probs).exp().sum(dim=-1)) / (most - 1)
        ratio = log_probs - log_probs.amax(dim=-1, keepdim=True)
        return sure.clamp(LEAST, 1).log()[..., None] + ratio

    def of_token(self, token: Token) -> float:
        """Confidence in a token, in 0..1."""
        return math.exp(token.log_sure / self.temperature)

    def of_word(self, tokens: Sequence[Token]) -> float:
        """Confidence in a word of these tokens, one at least, in 0..1."""
        return math.exp(self._joined([token.log_sure for token in tokens]) / self.temperature)

    def _joined(self, logs: Sequence[float]) -> float:
        match self.aggregate:
            case "geometric":
                return sum(logs) / len(logs)
            case "mean":
                return math.log(max(LEAST, sum(map(math.exp, logs)) / len(logs)))
            case "min":
                return min(logs)
            case "product":
                return sum(logs)


PLAIN = ConfidenceConfig()
"""Probabilities as they are."""
