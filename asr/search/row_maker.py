"""Rows of texts, made: what the predictor and the scorers say after one label more."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from asr.lms.base import Scorer
from asr.predictors.base import Step
from asr.search.arena import HASH_BASE, NOTHING, Parents, Rows
from asr.search.internal_lm import internal_log_probs, projected_silence
from asr.transducer import Transducer


class RowMaker:
    """Rows by a model with the weights that it has now, so for one call of a search."""

    def __init__(self, model: Transducer, scorer: Scorer, internal_weight: float = 0.0) -> None:
        """`internal_weight` of the model's own language model (asr.search.internal_lm), beside `scorer`."""
        self._model, self._scorer, self._internal_weight = model, scorer, internal_weight
        self._silence = projected_silence(model) if internal_weight else None

    @cached_property
    def _step(self) -> Step:
        return self._model.predictor.stepper()

    def begin(self, scorer: Any, n: int, device: torch.device | None) -> Rows:
        """Rows of N texts without labels, with the scorers' state."""
        model = self._model
        blanks = torch.full((n, 1), model.blank, dtype=torch.int64, device=device)
        y, predictor = model.predictor(blanks, model.predictor.initial_state(n, device))
        projected, hash = model.joiner.predictor(y[:, 0]), torch.zeros_like(blanks[:, 0])
        return Rows(predictor, projected, scorer, self._next(scorer, projected), hash)

    def extend(self, rows: Rows | Parents, label: Tensor) -> Rows:
        """The rows after a label (N,) more."""
        y, predictor = self._step(label[:, None], rows.predictor)
        scorer = self._scorer.advance(rows.scorer, label)
        projected = self._model.joiner.predictor(y[:, 0])
        hash = rows.hash * HASH_BASE + label
        return Rows(predictor, projected, scorer, self._next(scorer, projected), hash)

    def _next(self, scorer: Any, projected: Tensor) -> Tensor:
        """(N, V) what the scorers add to each label; blank is none. projected: (N, J) of the predictor."""
        scores = self._scorer.score(scorer).float()
        if self._silence is None:
            scores = scores.clone()
        else:
            internal = internal_log_probs(self._model, self._silence, projected)
            scores = torch.add(scores, internal, alpha=self._internal_weight)
        scores[:, self._model.blank] = NOTHING
        return scores
