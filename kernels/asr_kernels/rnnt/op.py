"""`rnnt_loss`: checks its inputs, picks a backend and carries the gradient; README.md tells the rest."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from asr_kernels import dispatch
from asr_kernels.rnnt import cpu, reference

_LOGIT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INDEX_DTYPES = (torch.int32, torch.int64)
_REDUCTIONS = ("none", "sum", "mean")


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "none",
    backend: str | None = None,
) -> Tensor:
    """Exact transducer loss, -log P(targets | logits), of raw logits; the log-softmax is fused in.

    Takes what `torchaudio.functional.rnnt_loss` takes; the defaults of `blank` and `reduction` differ.

    Args:
        logits: (B, T, U+1, V) float32, float64, bfloat16 or float16, any strides. Not modified.
        targets: (B, U) int32 or int64; what stands beyond `target_lengths` is ignored, whatever it is.
        logit_lengths: (B,) int32 or int64, frames of each utterance.
        target_lengths: (B,) int32 or int64, labels of each utterance.
        blank: id of blank in [-V, V); negative counts from the end.
        fastemit: lambda of FastEmit: scales the gradient of label emissions by 1 + lambda, not the value.
        delay_penalty: as in k2: adds penalty * ((T-1)/2 - t) to the log-probability of each label at frame t.
        reduction: "none" gives (B,), "sum" and "mean" (over the batch) a scalar.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide.

    Returns:
        The loss, float32 (float64 for float64 logits). An utterance without a path (no frames, or only paths
        through logits of -inf) has infinite loss and zero gradient; NaN logits give a NaN loss. The gradient
        is exactly zero beyond the lengths, even where the logits are NaN or infinite there.

    Raises:
        ValueError: a shape, dtype, length, target or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    _check_options(fastemit, delay_penalty, reduction)
    _check_tensors(logits, targets, logit_lengths, target_lengths)
    V = logits.shape[-1]
    if not -V <= blank < V:
        raise ValueError(f"expected blank within [-{V}, {V}), found {blank}")
    blank %= V
    frames = _checked_lengths(logit_lengths, logits.shape[1], "logit_lengths")
    labels = _checked_lengths(target_lengths, targets.shape[1], "target_lengths")
    # Padding becomes blank here, once, so that no backend ever sees it.
    padding = torch.arange(targets.shape[1]) >= torch.tensor(labels, dtype=torch.int64)[:, None]
    targets = targets.to("cpu", torch.int64).masked_fill(padding, blank)
    _check_targets(targets, V)
    if dispatch.choose(backend, logits.device) == "reference":
        losses = reference.rnnt_loss(logits, targets, frames, labels, blank, fastemit, delay_penalty)
    else:
        options = targets, frames, labels, blank, fastemit, delay_penalty, torch.is_grad_enabled()
        losses = cast(Tensor, _RnntLoss.apply(logits, *options))
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


class _RnntLoss(torch.autograd.Function):
    """Losses (B,) by the fast path; the gradient is formed in the backward pass from what it saved."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        frames: list[int],
        labels: list[int],
        blank: int,
        fastemit: float,
        delay_penalty: float,
        grad_enabled: bool,
    ) -> Tensor:
        needs_grad = grad_enabled and ctx.needs_input_grad[0]
        losses, saved = cpu.forward(
            logits, targets, frames, labels, blank, fastemit, delay_penalty, needs_grad=needs_grad
        )
        if saved is not None:
            ctx.save_for_backward(logits, *saved)
            ctx.lengths = frames, labels
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        logits, *saved = ctx.saved_tensors
        frames, labels = ctx.lengths
        with torch.no_grad():
            grad = cpu.backward(logits, cpu.Saved(*saved), frames, labels, grad_losses)
        if torch.is_grad_enabled():
            grad = _NoSecondDerivative.apply(grad, logits, grad_losses)
        return grad, *(None,) * 7


class _NoSecondDerivative(torch.autograd.Function):
    """The gradient, such that differentiating it again raises (once_differentiable would be silent)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError('rnnt_loss differentiates twice only with backend="reference"')


def _check_options(fastemit: float, delay_penalty: float, reduction: str) -> None:
    if not (math.isfinite(fastemit) and fastemit >= 0):
        raise ValueError(f"expected fastemit finite and at least 0, found {fastemit}")
    if not math.isfinite(delay_penalty):
        raise ValueError(f"expected a finite delay_penalty, found {delay_penalty}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"expected reduction among {', '.join(_REDUCTIONS)}, found {reduction!r}")


def _check_tensors(logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor) -> None:
    if logits.dtype not in _LOGIT_DTYPES:
        raise ValueError(f"expected logits of a floating dtype, found {logits.dtype}")
    if logits.ndim != 4 or 0 in logits.shape[::2] or logits.shape[3] == 0:
        raise ValueError(f"expected logits of shape (B, T, U+1, V) with B, V >= 1, found {_shape(logits)}")
    B, U = logits.shape[0], logits.shape[2] - 1
    expected = {"targets": (B, U), "logit_lengths": (B,), "target_lengths": (B,)}
    found = {"targets": targets, "logit_lengths": logit_lengths, "target_lengths": target_lengths}
    for name, tensor in found.items():
        if tensor.dtype not in _INDEX_DTYPES:
            raise ValueError(f"expected {name} of dtype int32 or int64, found {tensor.dtype}")
        if tensor.shape != expected[name]:
            raise ValueError(
                f"expected {name} of shape {expected[name]} for logits {_shape(logits)}, "
                f"found {_shape(tensor)}"
            )


def _checked_lengths(lengths: Tensor, maximum: int, name: str) -> list[int]:
    values: list[int] = lengths.tolist()
    for b, value in enumerate(values):
        if not 0 <= value <= maximum:
            raise ValueError(f"expected {name} within [0, {maximum}], found {value} for utterance {b}")
    return values


def _check_targets(targets: Tensor, V: int) -> None:
    wrong = (targets < 0) | (targets >= V)
    if wrong.any():
        b, u = wrong.nonzero()[0].tolist()
        raise ValueError(f"expected targets within [0, {V}), found {targets[b, u]} at [{b}, {u}]")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
