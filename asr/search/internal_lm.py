"""The language model inside a transducer, to be taken off where another one is added.

With nothing from the encoder the joiner says what labels the predictor expects:
p(label | labels so far) = softmax over labels, without blank, of joiner(0, predictor) (Variani et al. 2020,
hybrid autoregressive transducer; Meng et al. 2021, internal language model estimation, ILME).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asr.search.fusion import Fusion
from asr.transducer import Transducer


@dataclass(frozen=True)
class InternalState:
    """What a hypothesis remembers."""

    predictor: Any
    log_probs: Tensor
    """(N, V) of the next label; 0 for blank."""


class InternalLm:
    """A Scorer (asr.lms.base) from the model's own predictor and joiner; see the module docstring."""

    def __init__(self, model: Transducer) -> None:
        assert model.has_transducer
        self.model, self.vocab_size = model, model.vocab_size

    def of(self, model: Transducer) -> bool:
        """Whether that model, with this or another encoder, has this language model in it."""
        return self.model.predictor is model.predictor and self.model.joiner is model.joiner

    def initial_state(self, batch: int, device: torch.device | None = None) -> InternalState:
        """State of `batch` hypotheses that have said nothing."""
        blanks = torch.full((batch,), self.model.blank, dtype=torch.int64, device=device)
        return self._after(blanks, self.model.predictor.initial_state(batch, device))

    def score(self, state: InternalState) -> Tensor:
        """(N, V)."""
        return state.log_probs

    def advance(self, state: InternalState, labels: Tensor) -> InternalState:
        """State after labels (N,)."""
        return self._after(labels, state.predictor)

    def end(self, state: InternalState) -> Tensor:
        """(N,) zeros: a transducer's labels do not end."""
        return torch.zeros_like(state.log_probs[:, 0])

    def _after(self, labels: Tensor, predictor: Any) -> InternalState:
        y, predictor = self.model.predictor(labels[:, None], predictor)
        projected = self.model.joiner.predictor(y[:, 0])
        return InternalState(
            predictor, internal_log_probs(self.model, projected_silence(self.model), projected)
        )


def projected_silence(model: Transducer) -> Tensor:
    """(J,) what the joiner makes of nothing from the encoder."""
    weight = model.joiner.encoder.weight
    silence: Tensor = model.joiner.encoder(weight.new_zeros(weight.shape[1]))
    return silence


def internal_log_probs(model: Transducer, silence: Tensor, projected: Tensor) -> Tensor:
    """(N, V) of the next label, 0 for blank.

    silence: (J,) of `projected_silence`; projected: (N, J) what the joiner makes of the predictor.
    """
    logits = model.joiner.combine(silence, projected).float()
    log_probs = torch.zeros_like(logits[:, : model.vocab_size])
    log_probs[:, 1:] = logits[:, 1 : model.vocab_size].log_softmax(dim=-1)
    return log_probs


def without_internal(scorer: Fusion, model: Transducer) -> tuple[Fusion, float]:
    """The other scorers, and the weight of the model's own language model; for a search by that model.

    It has the predictor's output of every hypothesis anyway (`internal_log_probs`).
    """
    own = [each for each in scorer.parts if isinstance(each.scorer, InternalLm) and each.scorer.of(model)]
    if not own:
        return scorer, 0.0
    rest = [each for each in scorer.parts if each not in own]
    return Fusion(scorer.vocab_size, rest, scorer.reward), sum(weight for _, weight in own)
