"""`fused_rnnt_loss`: the exact transducer loss from the joiner's inputs; README.md tells the rest."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.fused.function import Activation, joiner_scores
from asr_kernels.lattice.arcs import Alignment, Criterion
from asr_kernels.lattice.op import lattice_loss
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
    check_joiner(encoder, predictor, weight, bias, activation, skip_below)
    B, T, _ = encoder.shape
    problem = checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, predictor.shape[1] - 1),
        columns=weight.shape[0],
        device=encoder.device,
        topology=topology,
        criterion=criterion,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
        alignment=alignment,
        alignment_band=alignment_band,
    )
    lattice, chosen = problem.lattice, dispatch.choose(backend, encoder)
    scores = joiner_scores(
        encoder,
        predictor,
        weight,
        bias,
        problem.symbols[:, None],
        Nodes(lattice.frames, lattice.labels, predictor.shape[1]),
        problem.vocab,
        activation,
        skip_below,
        chosen,
    )
    losses = lattice_loss(scores, lattice, chosen)
    return checks.reduced(losses.to(checks.loss_dtype(encoder)), reduction)


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
