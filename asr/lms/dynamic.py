"""Dynamic evaluation: a model that goes on learning from what it has just been asked about.

    w <- w - lr * g                                  + decay           * (w_0 - w)        sgd
    w <- w - lr * g / (sqrt(mean g_0^2) + epsilon)   + decay * r       * (w_0 - w)        rms

after each sentence, which was scored before; g is the gradient of its nats per label, w_0 what was trained.
rms takes the mean square of the gradients over training sentences, g_0^2, and draws those weights back more
that had large gradients: r = sqrt(mean g_0^2) over its mean, at most 1 / decay.

Source: Krause, Kahembwe, Murray and Renals 2018, "Dynamic evaluation of neural sequence models". Departures:
a segment is a sentence, and epsilon stands beside the root as in Adam.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.errors import DataError
from asr.lms.neural import NeuralLm


class DynamicConfig(Config):
    """How a model learns from what it scores."""

    kind: Literal["sgd", "rms"] = "sgd"
    lr: float = Field(0.02, ge=0)
    """rms wants about a thousandth of what sgd does."""
    decay: float = Field(0.0, ge=0, le=1)
    """Share of the way back to the trained weights after each sentence."""
    epsilon: float = Field(1e-3, gt=0)
    """rms: keeps weights with small gradients where they are."""


class DynamicEvaluation:
    """A copy of a model that learns; the model itself stays as it is.

    `mean_squares` are those of `mean_square_gradients`, in whose place sgd needs none.
    """

    def __init__(
        self, model: NeuralLm, config: DynamicConfig, mean_squares: Sequence[Tensor] | None = None
    ) -> None:
        assert config.kind == "sgd" or mean_squares is not None
        self.model, self.config = copy.deepcopy(model).eval(), config
        self._trained = [parameter.detach().clone() for parameter in self.model.parameters()]
        self._scale: list[Tensor] | None = None
        self._pull: list[Tensor] | None = None
        if config.kind == "rms" and mean_squares is not None:
            roots = [square.sqrt() for square in mean_squares]
            mean = sum(float(root.sum()) for root in roots) / sum(root.numel() for root in roots)
            most = 1 / config.decay if config.decay else float("inf")
            self._scale = [1 / (root + config.epsilon) for root in roots]
            self._pull = [(root / max(mean, 1e-30)).clamp(max=most) for root in roots]

    def score(self, labels: Tensor) -> float:
        """Nats of one sentence (U,) int64 and its end, of the model before it learns from it."""
        nats = _gradients(self.model, labels)
        with torch.no_grad():
            for number, parameter in enumerate(self.model.parameters()):
                step = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                back = self._trained[number] - parameter
                if self._scale is not None and self._pull is not None:
                    step, back = step * self._scale[number], back * self._pull[number]
                parameter.add_(self.config.decay * back - self.config.lr * step)
        return nats


def mean_square_gradients(model: NeuralLm, sentences: Iterable[Tensor]) -> list[Tensor]:
    """For each parameter the mean over sentences (U,) of the square of its gradient of nats per label.

    Raises DataError if there is no sentence.
    """
    model = copy.deepcopy(model).eval()
    squares, count = [torch.zeros_like(parameter) for parameter in model.parameters()], 0
    for labels in sentences:
        _gradients(model, labels)
        count += 1
        for square, parameter in zip(squares, model.parameters(), strict=True):
            if parameter.grad is not None:
                square.addcmul_(parameter.grad, parameter.grad)
    if not count:
        raise DataError("dynamic evaluation (rms) needs sentences of the training text, found none")
    return [square / count for square in squares]


def _gradients(model: NeuralLm, labels: Tensor) -> float:
    """Nats of a sentence; leaves the gradients of their mean per label in the model."""
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        nats = model.losses(labels[None], torch.tensor([len(labels)], device=labels.device)).nats.sum()
        (nats / (len(labels) + 1)).backward()  # type: ignore[no-untyped-call]
    return float(nats.detach())
