"""`simple_rnnt_loss`, `pruning_bounds`, `pruned_rnnt_loss`, `fused_pruned_rnnt_loss`; see README.md."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from asr_kernels import checks, dispatch
from asr_kernels.fused.function import Activation, joiner_scores
from asr_kernels.fused.op import SKIP_BELOW, check_joiner
from asr_kernels.lattice.arcs import LOG_ZERO, Criterion
from asr_kernels.lattice.op import lattice_loss, lattice_loss_and_occupation
from asr_kernels.lattice.topology import RNNT, Topology
from asr_kernels.nodes import Nodes
from asr_kernels.pruned import k2, reference
from asr_kernels.pruned.bounds import first_kept
from asr_kernels.pruned.simple import simple_scores
from asr_kernels.rnnt.function import symbol_scores

Reduction = Literal["none", "sum", "mean"]


class SimpleLoss(NamedTuple):
    """The loss of the linear joiner and where its paths go."""

    loss: Tensor
    """(B,), or a scalar."""
    label_occupation: Tensor
    """(B, T, U): probability that label u is put out at frame t. No gradient."""
    blank_occupation: Tensor
    """(B, T, U+1): probability that frame t ends with u labels out. No gradient."""


@dispatch.entry_point
def simple_rnnt_loss(
    am: Tensor,
    lm: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    am_scale: float = 0.0,
    lm_scale: float = 0.0,
    unigram: Tensor | None = None,
    topology: Topology = RNNT,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    reduction: Reduction = "none",
    backend: str | None = None,
) -> SimpleLoss:
    """Transducer loss of the logits am + lm, which are never stored; smoothed with those of each alone.

    Args:
        am: (B, T, V) float32, float64, bfloat16 or float16: logits by the encoder alone.
        lm: (B, U+1, V), same dtype: logits by the predictor alone.
        targets: as for `rnnt_loss`, and so are the lengths, blank and all options that are not here.
        logit_lengths: (B,).
        target_lengths: (B,).
        blank: id of blank.
        am_scale: share of the log-probabilities by am alone (and the unigram) in the scores.
        lm_scale: share of the log-probabilities by lm alone.
        unigram: (V,) distribution of symbols that `am_scale` works with; None takes the mean of softmax(lm)
            over the label positions within the lengths. (k2's mean includes the padding.)
        topology: RNNT or MONOTONIC.

    Raises:
        ValueError: a shape, dtype, length, target or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    checks.reduction(reduction)
    checks.floats("am", am, "(B, T, V) with B, V >= 1", (None, None, None))
    B, T, V = am.shape
    if B == 0 or V == 0:
        raise ValueError(f"expected am of shape (B, T, V) with B, V >= 1, found {tuple(am.shape)}")
    checks.floats("lm", lm, f"({B}, U+1, {V}) with U >= 0", (B, None, V))
    if lm.shape[1] == 0 or lm.dtype != am.dtype:
        raise ValueError(
            f"expected lm of shape ({B}, U+1, {V}) and dtype {am.dtype}, found {tuple(lm.shape)}, {lm.dtype}"
        )
    if not (am_scale >= 0 and lm_scale >= 0 and am_scale + lm_scale <= 1):
        raise ValueError(
            "expected am_scale and lm_scale of at least 0 and together at most 1, "
            f"found {am_scale}, {lm_scale}"
        )
    if unigram is not None:
        checks.floats("unigram", unigram, f"({V},)", (V,))
    if topology.repeats or topology.extra_columns:
        raise ValueError(f"expected topology RNNT or MONOTONIC for the linear joiner, found {topology.name}")
    problem = checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, lm.shape[1] - 1),
        columns=V,
        device=am.device,
        topology=topology,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
    )
    lattice = problem.lattice
    if backend == k2.NAME:
        if unigram is not None:
            raise ValueError('expected no unigram for backend="k2", which computes its own, found one')
        am, lm = am.to(checks.loss_dtype(am)), lm.to(checks.loss_dtype(am))
        losses, label, by_blank = k2.simple_loss(am, lm, lattice, problem.blank, am_scale, lm_scale)
        return SimpleLoss(checks.reduced(losses, reduction), label, by_blank)
    chosen = dispatch.choose(backend, am, others=(k2.NAME,))
    nodes = Nodes(lattice.frames, lattice.labels, lm.shape[1])
    dtype = checks.loss_dtype(am)
    by_backend = reference.simple_scores if chosen == "reference" else simple_scores
    scores = by_backend(am.to(dtype), lm.to(dtype), problem.symbols, nodes, am_scale, lm_scale, unigram)
    if chosen == "cpu":
        scores = scores.double()
    losses, occupation = lattice_loss_and_occupation(scores, lattice, chosen)
    blank_occupation, label_occupation = occupation.to(dtype).unbind(dim=-1)
    return SimpleLoss(
        checks.reduced(losses.to(dtype), reduction),
        label_occupation[:, :, :-1] / (1 + fastemit),
        blank_occupation,
    )


@dispatch.entry_point
def pruning_bounds(
    label_occupation: Tensor,
    blank_occupation: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    S: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """(B, T, S) int64 label positions to keep at each frame: the band that keeps the most occupation.

    The positions of a frame follow each other; the first of them is 0 at the start, never falls, rises by
    less than S from a frame to the next, and the last valid frame includes position U_b. If T_b is too small
    for that, the band comes as close as it can (and the pruned loss is infinite).

    Args:
        label_occupation: (B, T, U) as `simple_rnnt_loss` returns it.
        blank_occupation: (B, T, U+1) likewise.
        logit_lengths: (B,) int32 or int64, frames of each utterance.
        target_lengths: (B,) int32 or int64, labels of each utterance.
        S: positions to keep, at least 1 (no path has labels with 1); reduced to U+1 where it is larger.

    Raises:
        ValueError: a shape, dtype, length or S that does not fit.
    """
    checks.floats("blank_occupation", blank_occupation, "(B, T, U+1) with U >= 0", (None, None, None))
    B, T, width = blank_occupation.shape
    if width == 0:
        raise ValueError(f"expected blank_occupation of shape (B, T, U+1), found {(B, T, width)}")
    checks.floats("label_occupation", label_occupation, f"({B}, {T}, {width - 1})", (B, T, width - 1))
    checks.integers("logit_lengths", logit_lengths, (B,))
    checks.integers("target_lengths", target_lengths, (B,))
    if not isinstance(S, int) or S < 1:
        raise ValueError(f"expected S, an integer of at least 1, found {S}")
    frames = checks.lengths("logit_lengths", logit_lengths, T)
    labels = checks.lengths("target_lengths", target_lengths, width - 1)
    S = min(S, width)
    if backend == k2.NAME:
        occupations = label_occupation.detach(), blank_occupation.detach()
        return k2.bounds(*occupations, frames, labels, S)
    chosen = dispatch.choose(backend, blank_occupation, others=(k2.NAME,))
    occupation = blank_occupation.detach().clone()
    occupation[:, :, :-1] += label_occupation.detach()
    valid = Nodes(frames, labels, width).valid(T, occupation.device)
    occupation = torch.where(valid, occupation, 0.0).nan_to_num(0.0)
    first = first_kept(occupation, frames, labels, S, chosen)
    return first[..., None] + torch.arange(S, device=first.device)


@dispatch.entry_point
def pruned_rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    ranges: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    topology: Topology = RNNT,
    criterion: Criterion = "sum",
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    reduction: Reduction = "none",
    backend: str | None = None,
) -> Tensor:
    """`rnnt_loss` over the paths within a band: logits (B, T, S, V) at label positions `ranges`.

    Args:
        logits: (B, T, S, V) float32, float64, bfloat16 or float16, any strides: at frame t and label position
            ranges[b, t, s].
        targets: (B, U), as for `rnnt_loss`, and so are the lengths, blank and all options that are not here.
        ranges: (B, T, S) int32 or int64, as `pruning_bounds` returns them: S consecutive positions in [0, U].
        logit_lengths: (B,).
        target_lengths: (B,).
        blank: id of blank.

    Returns:
        The loss as `rnnt_loss` returns it; infinite if no path stays within the band.

    Raises:
        ValueError: a shape, dtype, length, target, range or option that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    checks.reduction(reduction)
    checks.floats("logits", logits, "(B, T, S, V) with B, S, V >= 1", (None, None, None, None))
    B, T, S, columns = logits.shape
    if 0 in (B, S, columns) or targets.ndim != 2:
        raise ValueError(
            "expected logits of shape (B, T, S, V) with B, S, V >= 1 and targets of shape (B, U), "
            f"found {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    U = targets.shape[1]
    problem = checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, U),
        columns=columns,
        device=logits.device,
        topology=topology,
        criterion=criterion,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
    )
    band = _band(ranges, problem, (B, T, S), logits.device)
    if backend == k2.NAME:
        return checks.reduced(_by_k2(logits, band, problem), reduction)
    chosen = dispatch.choose(backend, logits, others=(k2.NAME,))
    scores = symbol_scores(logits, band.symbols, band.nodes, problem.vocab, chosen)
    losses = lattice_loss(_whole(scores, band, U), problem.lattice, chosen)
    return checks.reduced(losses.to(checks.loss_dtype(logits)), reduction)


@dispatch.entry_point
def fused_pruned_rnnt_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ranges: Tensor,
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
    reduction: Reduction = "none",
    backend: str | None = None,
) -> Tensor:
    """`pruned_rnnt_loss` of logits = activation(encoder + predictor) @ weight.T + bias, never stored.

    Arguments, result and errors are those of `fused_rnnt_loss` and, for `ranges`, of `pruned_rnnt_loss`.
    """
    checks.reduction(reduction)
    check_joiner(encoder, predictor, weight, bias, activation, skip_below)
    (B, T, _), U = encoder.shape, predictor.shape[1] - 1
    if ranges.ndim != 3:
        raise ValueError(f"expected ranges of shape ({B}, {T}, S), found {tuple(ranges.shape)}")
    problem = checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, U),
        columns=weight.shape[0],
        device=encoder.device,
        topology=topology,
        criterion=criterion,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
    )
    band = _band(ranges, problem, (B, T, ranges.shape[-1]), encoder.device)
    if backend == k2.NAME:
        # What stands beyond the lengths must not reach the weights; half precision is computed in float32.
        whole = band.nodes._replace(width=U + 1, first=None)
        heard, spoken = reference.within(encoder, predictor, whole)
        dtype = checks.loss_dtype(encoder)
        encoder, predictor = (
            torch.where(valid, x, 0.0).to(dtype) for x, valid in ((encoder, heard), (predictor, spoken))
        )
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        rows = predictor[torch.arange(B, device=encoder.device)[:, None, None], band.ranges]
        hidden = encoder[:, :, None] + rows
        hidden = hidden.tanh() if activation == "tanh" else hidden.relu()
        losses = _by_k2(functional.linear(hidden, weight, bias), band, problem)
        return checks.reduced(losses, reduction)
    chosen = dispatch.choose(backend, encoder, others=(k2.NAME,))
    scores = joiner_scores(
        encoder,
        predictor,
        weight,
        bias,
        band.symbols,
        band.nodes,
        problem.vocab,
        activation,
        skip_below,
        chosen,
    )
    losses = lattice_loss(_whole(scores, band, U), problem.lattice, chosen)
    return checks.reduced(losses.to(checks.loss_dtype(encoder)), reduction)


class _Band(NamedTuple):
    """The part of the lattices that is kept."""

    ranges: Tensor  # (B, T, S) int64, within [0, U]
    symbols: Tensor  # (B, T, S, K) of its nodes
    nodes: Nodes


def _band(
    ranges: Tensor, problem: checks.Problem, shape: tuple[int, int, int], device: torch.device
) -> _Band:
    checks.integers("ranges", ranges, shape)
    lattice, U = problem.lattice, problem.lattice.targets.shape[1]
    ranges = ranges.to(device, torch.int64)
    inside = torch.arange(shape[1], device=device) < torch.tensor(lattice.frames, device=device)[:, None]
    ranges = torch.where(inside[..., None], ranges, torch.arange(shape[2], device=device))
    first = ranges[..., 0]
    fits = (ranges == first[..., None] + torch.arange(shape[2], device=device)).all(dim=-1)
    fits &= (first >= 0) & (first + shape[2] <= U + 1)
    if not bool(fits.all()):
        b, t = (~fits).nonzero()[0].tolist()
        raise ValueError(
            f"expected ranges of {shape[2]} consecutive label positions within [0, {U}], "
            f"found {ranges[b, t].tolist()} at utterance {b}, frame {t}"
        )
    K = problem.symbols.shape[-1]
    index = ranges.flatten(1)[..., None].expand(-1, -1, K)
    symbols = problem.symbols.gather(1, index).view(*shape, K)
    return _Band(ranges, symbols, Nodes(lattice.frames, lattice.labels, shape[2], first))


def _by_k2(logits: Tensor, band: _Band, problem: checks.Problem) -> Tensor:
    """Losses (B,) of logits (B, T, S, V)."""
    wide = logits.to(checks.loss_dtype(logits))
    return k2.pruned_loss(wide, band.ranges, band.nodes, problem.lattice, problem.blank)


def _whole(scores: Tensor, band: _Band, U: int) -> Tensor:
    """Scores (B, T, U+1, K) of the whole lattice, log 0 outside the band."""
    B, T, _, K = scores.shape
    index = band.ranges[..., None].expand(-1, -1, -1, K)
    return scores.new_full((B, T, U + 1, K), LOG_ZERO).scatter(2, index, scores)
