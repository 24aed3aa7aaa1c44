"""`fused_rnnt_loss` and `fused_align`: exact loss and best path from the joiner's inputs; see README.md."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.fused.function import Activation, joiner_scores
from asr_kernels.lattice.arcs import Alignment, Criterion
from asr_kernels.lattice.op import best_alignment, lattice_loss
from asr_kernels.lattice.topology import RNNT, Topology
from asr_kernels.nodes import Nodes

SKIP_BELOW = 1e-8
"""Default of `skip_below`; README.md has the evidence."""


@dispatch.entry_point
def fused_rnnt_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    activation: Activation = "tanh",
    skip_below: float = SKIP_BELOW,
    topology: Topology = RNNT,
    criterion: Criterion = "sum",
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    alignment: Alignment | Tensor | None = None,
    alignment_band: int = 0,
    reduction: Literal["none", "sum", "mean"] = "none",
    backend: str | None = None,
) -> Tensor:
    """`rnnt_loss` of logits = activation(encoder + predictor) @ weight.T + bias, which are never stored.

    The loss is exact. Memory is that of a few numbers per node (B, T, U+1) and of one chunk, whatever V is.

    Args:
        encoder: (B, T, D) float32, float64, bfloat16 or float16: projected encoder frames.
        predictor: (B, U+1, D), same dtype: projected predictor outputs.
        weight: (V, D), same dtype: the joiner's output layer; V counts the `topology.extra_columns`.
        bias: (V,), same dtype, or None.
        targets: as for `rnnt_loss`, and so are the lengths, blank and all options that are not here.
        logit_lengths: (B,).
        target_lengths: (B,).
        blank: id of blank.
        activation: "tanh" or "relu".
        skip_below: the backward pass leaves out nodes of the lattice whose occupation (the probability that a
            path comes by) is at most this share of the largest of the utterance; 0 only those that float32
            sums cannot hold, of 1e-16 and less.

    Returns:
        The loss as `rnnt_loss` returns it, differentiable in encoder, predictor, weight and bias.

    Raises:
        ValueError: a shape, dtype, length, target or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    checks.reduction(reduction)
    scores, problem, chosen = _read(
        (encoder, predictor, weight, bias),
        targets,
        logit_lengths,
        target_lengths,
        blank,
        activation,
        skip_below,
        backend,
        topology=topology,
        criterion=criterion,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
        alignment=alignment,
        alignment_band=alignment_band,
    )
    losses = lattice_loss(scores, problem.lattice, chosen)
    return checks.reduced(losses.to(checks.loss_dtype(encoder)), reduction)


@dispatch.entry_point
@torch.no_grad()
def fused_align(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    activation: Activation = "tanh",
    topology: Topology = RNNT,
    backend: str | None = None,
) -> Alignment:
    """`align` of logits = activation(encoder + predictor) @ weight.T + bias, which are never stored.

    Arguments and errors are those of `fused_rnnt_loss`; there is no gradient.
    """
    scores, problem, chosen = _read(
        (encoder, predictor, weight, bias),
        targets,
        logit_lengths,
        target_lengths,
        blank,
        activation,
        SKIP_BELOW,
        backend,
        topology=topology,
    )
    found = best_alignment(scores, problem.lattice, chosen)
    return found._replace(score=found.score.to(checks.loss_dtype(encoder)))


def _read(
    joiner: tuple[Tensor, Tensor, Tensor, Tensor | None],
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    activation: Activation,
    skip_below: float,
    backend: str | None,
    **rules: Any,
) -> tuple[Tensor, checks.Problem, dispatch.Backend]:
    """Scores (B, T, U+1, K) of the symbols, what they are scores of, and the backend for the rest."""
    check_joiner(*joiner, activation, skip_below)
    encoder, predictor, weight, _ = joiner
    B, T, _ = encoder.shape
    problem = checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, predictor.shape[1] - 1),
        columns=weight.shape[0],
        device=encoder.device,
        **rules,
    )
    lattice, chosen = problem.lattice, dispatch.choose(backend, encoder)
    nodes = Nodes(lattice.frames, lattice.labels, predictor.shape[1])
    symbols = problem.symbols[:, None]
    scores = joiner_scores(*joiner, symbols, nodes, problem.vocab, activation, skip_below, chosen)
    return scores, problem, chosen


def check_joiner(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Any,
    skip_below: float,
) -> None:
    """Check what the joiner is given. Raises ValueError."""
    checks.floats("encoder", encoder, "(B, T, D) with B, D >= 1", (None, None, None))
    B, _, D = encoder.shape
    if B == 0 or D == 0:
        raise ValueError(f"expected encoder of shape (B, T, D) with B, D >= 1, found {tuple(encoder.shape)}")
    checks.floats("predictor", predictor, f"({B}, U+1, {D}) with U >= 0", (B, None, D))
    if predictor.shape[1] == 0:
        raise ValueError(
            f"expected predictor of shape ({B}, U+1, {D}) with U >= 0, found {tuple(predictor.shape)}"
        )
    checks.floats("weight", weight, f"(V, {D})", (None, D))
    if bias is not None:
        checks.floats("bias", bias, f"({weight.shape[0]},)", (weight.shape[0],))
    others = {"predictor": predictor, "weight": weight, "bias": bias}
    for name, tensor in others.items():
        if tensor is not None and tensor.dtype != encoder.dtype:
            raise ValueError(f"expected {name} of the encoder's dtype {encoder.dtype}, found {tensor.dtype}")
    if activation not in ("tanh", "relu"):
        raise ValueError(f"expected activation among tanh, relu, found {activation!r}")
    if not 0 <= skip_below < 1:
        raise ValueError(f"expected skip_below within [0, 1), found {skip_below}")
