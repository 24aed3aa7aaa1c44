"""What the ops' autograd functions share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class NoSecondDerivative(torch.autograd.Function):
    """apply(gradient, *sources): the gradient, such that differentiating it again raises.

    For the backward of functions whose gradient is not itself differentiable (once_differentiable would
    be silent: it takes the gradient for a constant).
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        """The gradient itself."""
        return grad

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        """Raises RuntimeError."""
        raise RuntimeError('this op differentiates twice only with backend="reference"')


def once(grads: Iterable[Tensor | None], *sources: Tensor | None) -> list[Tensor | None]:
    """The gradients, such that differentiating them again raises.

    `sources` are all that they were made of, inputs too: where the incoming gradient is a constant, only
    those remember.
    """
    if not torch.is_grad_enabled():
        return list(grads)
    present = [source for source in sources if source is not None]
    return [None if grad is None else NoSecondDerivative.apply(grad, *present) for grad in grads]


def weigh(gradient: Tensor, grad_losses: Tensor) -> Tensor:
    """The gradient (B, ...) of losses (B,), with that of what was made of them.

    An utterance that does not count gives no gradient, not even where it is NaN.
    """
    weights = grad_losses.to(gradient.dtype).view(-1, *(1,) * (gradient.ndim - 1))
    with torch.no_grad():
        return torch.where(weights == 0, 0.0, gradient * weights)
