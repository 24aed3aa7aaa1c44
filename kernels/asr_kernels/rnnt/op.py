"""`rnnt_loss` and `align`: check the inputs, then a reader and the lattice; README.md tells the rest."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.dispatch import Backend
from asr_kernels.lattice.arcs import Alignment, Criterion
from asr_kernels.lattice.op import best_alignment, lattice_loss
from asr_kernels.lattice.topology import RNNT, Topology
from asr_kernels.nodes import Nodes
from asr_kernels.rnnt.function import symbol_scores


@dispatch.entry_point
def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    topology: Topology = RNNT,
    criterion: Criterion = "sum",
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    alignment: Alignment | Tensor | None = None,
    alignment_band: int = 0,
    reduction: Literal["none", "sum", "mean"] = "none",
    backend: str | None = None,
) -> Tensor:
    """Exact transducer loss, -log P(targets | logits), of raw logits; the log-softmax is fused in.

    Takes what `torchaudio.functional.rnnt_loss` takes; the defaults of `blank` and `reduction` differ.

    Args:
        logits: (B, T, U+1, V) float32, float64, bfloat16 or float16, any strides. Not modified. V counts the
            `topology.extra_columns` at the end, if there are any.
        targets: (B, U) int32 or int64; what stands beyond `target_lengths` is ignored, whatever it is.
        logit_lengths: (B,) int32 or int64, frames of each utterance. With targets and both lengths on
            the CPU, no GPU is waited for.
        target_lengths: (B,) int32 or int64, labels of each utterance.
        blank: id of blank in [-V, V), without the extra columns; negative counts from the end.
        topology: which paths there are: RNNT, MONOTONIC, CTC, tdt(...) or multi_blank(...).
        criterion: "sum" over all paths, or "max": minus the log-probability of the best one.
        fastemit: lambda of FastEmit: scales the gradient of label emissions by 1 + lambda, not the value.
        delay_penalty: as in k2: adds penalty * ((T-1)/2 - t) to the log-probability of each label at frame t.
        alignment: only paths near this one count: what `align` returned, or (B, U) frames of the labels.
        alignment_band: how many frames a label may be away from its frame in the alignment.
        reduction: "none" gives (B,), "sum" and "mean" (over the batch) a scalar.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide.

    Returns:
        The loss, float32 (float64 for float64 logits). An utterance without a path (no frames, too few of
        them for the topology, or only paths through logits of -inf) has infinite loss and zero gradient; NaN
        logits give a NaN loss. The gradient is exactly zero beyond the lengths, even where the logits are NaN
        or infinite there.

    Raises:
        ValueError: a shape, dtype, length, target or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    checks.reduction(reduction)
    problem = _problem(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        topology=topology,
        criterion=criterion,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
        alignment=alignment,
        alignment_band=alignment_band,
    )
    chosen = dispatch.choose(backend, logits)
    losses = lattice_loss(_scores(logits, problem, chosen), problem.lattice, chosen)
    return checks.reduced(losses.to(checks.loss_dtype(logits)), reduction)


@dispatch.entry_point
def align(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    topology: Topology = RNNT,
    delay_penalty: float = 0.0,
    alignment: Alignment | Tensor | None = None,
    alignment_band: int = 0,
    backend: str | None = None,
) -> Alignment:
    """The most probable path through the lattice (Viterbi): where each label is emitted.

    Arguments and errors are those of `rnnt_loss`; there is no gradient.
    """
    problem = _problem(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        topology=topology,
        delay_penalty=delay_penalty,
        alignment=alignment,
        alignment_band=alignment_band,
    )
    chosen = dispatch.choose(backend, logits)
    found = best_alignment(_scores(logits.detach(), problem, chosen), problem.lattice, chosen)
    return found._replace(score=found.score.to(checks.loss_dtype(logits)))


def _problem(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int, **rules: Any
) -> checks.Problem:
    checks.floats("logits", logits, "(B, T, U+1, V) with B, V >= 1", (None, None, None, None))
    if 0 in (logits.shape[0], logits.shape[2], logits.shape[3]):
        raise ValueError(
            f"expected logits of shape (B, T, U+1, V) with B, V >= 1, found {tuple(logits.shape)}"
        )
    B, T, width, columns = logits.shape
    return checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, width - 1),
        columns=columns,
        device=logits.device,
        **rules,
    )


def _scores(logits: Tensor, problem: checks.Problem, backend: Backend) -> Tensor:
    lattice = problem.lattice
    nodes = Nodes(lattice.frames, lattice.labels, logits.shape[2])
    return symbol_scores(logits, problem.symbols[:, None], nodes, problem.vocab, backend)
