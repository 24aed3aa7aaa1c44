"""The beam search of Graves 2012 ("Sequence transduction with recurrent neural networks", algorithm 1).

As it stands there, for one utterance, best first, in double precision: no bound on labels per frame, no
margin, no scorers. One thing the paper leaves open: y* + k that was a hypothesis before the frame has got its
probability from all its prefixes already, y* among them, and gets no other one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asr.transducer import Transducer

Labels = tuple[int, ...]


class Distributions:
    """log Pr(. | y, t), of an RNN-T."""

    def __init__(self, model: Transducer, frames: Tensor) -> None:
        self.model, self.frames = model, frames
        self.known: dict[tuple[Labels, int], list[float]] = {}

    def __call__(self, y: Labels, t: int) -> list[float]:
        if (y, t) not in self.known:
            said = torch.tensor([y], dtype=torch.int64).reshape(1, -1)
            after = self.model.predictor.whole(said)[:, -1:]
            logits = self.model.joiner(self.frames[t][None, None], after)[0, 0, 0]
            self.known[y, t] = logits.double().log_softmax(-1).tolist()
        return self.known[y, t]


def graves_beam(model: Transducer, frames: Tensor, width: int) -> dict[Labels, float]:
    """log Pr of the `width` most probable sequences of labels that frames (T, E) lead to."""
    log_pr = Distributions(model, frames)
    found: dict[Labels, float] = {(): 0.0}
    for t in range(len(frames)):
        before, found = found, {}
        waiting = {y: _with_prefixes(y, before, log_pr, t) for y in before}
        while True:
            best = max(waiting, key=lambda y: waiting[y])
            if sum(p > waiting[best] for p in found.values()) >= width:
                break
            probability, (blank, *labels) = waiting.pop(best), log_pr(best, t)
            found[best] = probability + blank
            for k, label in enumerate(labels, start=1):
                if (*best, k) not in before:
                    waiting[(*best, k)] = probability + label
        ranked = sorted(found, key=lambda y: -found[y])
        found = {y: found[y] for y in ranked[:width]}
    return found


def _with_prefixes(y: Labels, before: dict[Labels, float], log_pr: Distributions, t: int) -> float:
    """Pr(y) and all that comes to y on this frame from its prefixes that are hypotheses."""
    terms, rest = [before[y]], 0.0
    for n in range(len(y) - 1, -1, -1):
        rest += log_pr(y[:n], t)[y[n]]
        if y[:n] in before:
            terms.append(before[y[:n]] + rest)
    most = max(terms)
    return most + math.log(sum(math.exp(term - most) for term in terms))
