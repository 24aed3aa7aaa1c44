"""`ctc_loss` and `ctc_align`: the CTC topology on logits that do not depend on the labels; see README.md."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.autograd import NoSecondDerivative, weigh
from asr_kernels.ctc import cpu, viterbi
from asr_kernels.lattice.arcs import Alignment, Criterion, Lattice
from asr_kernels.lattice.op import best_alignment, lattice_loss
from asr_kernels.lattice.topology import CTC


@dispatch.entry_point
def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    criterion: Criterion = "sum",
    alignment: Alignment | Tensor | None = None,
    alignment_band: int = 0,
    reduction: Literal["none", "sum", "mean"] = "none",
    backend: str | None = None,
) -> Tensor:
    """CTC loss, -log P(targets | logits), of raw logits; the log-softmax is fused in (Graves et al. 2006).

    Args:
        logits: (B, T, V) float32, float64, bfloat16 or float16, batch first and not normalised.
        targets: (B, U) int32 or int64; what stands beyond `target_lengths` is ignored, whatever it is.
        logit_lengths: (B,) int32 or int64, frames of each utterance.
        target_lengths: (B,) int32 or int64, labels of each utterance.
        blank: id of blank in [-V, V); negative counts from the end.
        criterion: "sum" over all paths, or "max": minus the log-probability of the best one.
        alignment: only paths near this one count: from `ctc_align`, or (B, U) first frames of labels.
        alignment_band: how many frames a label may be away from its frames in the alignment.
        reduction: "none" gives (B,), "sum" and "mean" (over the batch) a scalar.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide.

    Returns:
        The loss, float32 (float64 for float64 logits). Too few frames for the labels and the blanks between
        equal ones give an infinite loss with zero gradient (torch's own: NaN). The gradient is exactly zero
        beyond the lengths, whatever stands there.

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
        criterion=criterion,
        alignment=alignment,
        alignment_band=alignment_band,
    )
    losses = _losses(logits, problem, dispatch.choose(backend, logits))
    return checks.reduced(losses.to(checks.loss_dtype(logits)), reduction)


@dispatch.entry_point
def ctc_align(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    backend: str | None = None,
) -> Alignment:
    """The most probable CTC path: on which frames each label is held.

    Arguments and errors are those of `ctc_loss`; there is no gradient.
    """
    problem = _problem(logits, targets, logit_lengths, target_lengths, blank)
    chosen = dispatch.choose(backend, logits)
    if chosen == "cpu":
        found = _best_paths(logits.detach(), problem)
    else:
        found = best_alignment(_scores(logits.detach(), problem, chosen), problem.lattice, chosen)
    return found._replace(score=found.score.to(checks.loss_dtype(logits)))


def _best_paths(logits: Tensor, problem: checks.Problem) -> Alignment:
    """The best path of every utterance; its memory is that of a byte per state and frame of the longest."""
    lattice = problem.lattice
    frames = torch.full_like(lattice.targets, -1)
    ends, scores = frames.clone(), torch.full((len(frames),), -torch.inf, dtype=torch.float64)
    for b, (T, U) in enumerate(zip(lattice.frames, lattice.labels, strict=True)):
        log_probs = logits[b, :T].to(checks.loss_dtype(logits)).log_softmax(dim=-1).double().cpu().numpy()
        path = viterbi.best_path(log_probs, lattice.targets[b, :U].numpy(), problem.blank)
        scores[b] = path.score
        if len(path.states) and U:
            places = path.label_frames(U)
            frames[b, :U], ends[b, :U] = torch.from_numpy(places[0]), torch.from_numpy(places[1])
    return Alignment(frames.to(logits.device), ends.to(logits.device), scores.to(logits.device))


def _problem(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int, **rules: Any
) -> checks.Problem:
    checks.floats("logits", logits, "(B, T, V) with B, V >= 1", (None, None, None))
    if 0 in (logits.shape[0], logits.shape[2]):
        raise ValueError(f"expected logits of shape (B, T, V) with B, V >= 1, found {tuple(logits.shape)}")
    if targets.ndim != 2:
        raise ValueError(f"expected targets of shape (B, U), found {tuple(targets.shape)}")
    B, T, V = logits.shape
    return checks.problem(
        targets,
        logit_lengths,
        target_lengths,
        blank,
        shape=(B, T, targets.shape[1]),
        columns=V,
        device=logits.device,
        topology=CTC,
        **rules,
    )


def _losses(logits: Tensor, problem: checks.Problem, backend: dispatch.Backend) -> Tensor:
    rules = problem.lattice.rules
    if backend == "reference" or rules.criterion == "max" or rules.band is not None:
        return lattice_loss(_scores(logits, problem, backend), problem.lattice, backend)
    each = _frame_scores(logits, problem, backend)
    solve = torch.is_grad_enabled() and each.requires_grad
    losses, sure = _TrellisLoss.apply(each, problem.lattice, backend, solve)
    again = [] if sure is None else (~sure).nonzero().squeeze(-1).tolist()
    if again:
        mended = lattice_loss(_at_nodes(each[again]), problem.lattice.part(again), backend)
        losses = losses.index_put((torch.tensor(again, device=losses.device),), mended)
    return cast(Tensor, losses)


def _scores(logits: Tensor, problem: checks.Problem, backend: dispatch.Backend) -> Tensor:
    """(B, T, U+1, 3): at every label count, blank, the next label and the last one of that frame."""
    return _at_nodes(_frame_scores(logits, problem, backend))


def _at_nodes(each: Tensor) -> Tensor:
    """The same from (B, T, U+1), blank and every label."""
    blank, labels = each[..., :1], each[..., 1:]
    following, last = torch.cat((labels, blank), dim=-1), torch.cat((blank, labels), dim=-1)
    return torch.stack((blank.expand_as(each), following, last), dim=-1)


def _frame_scores(logits: Tensor, problem: checks.Problem, backend: dispatch.Backend) -> Tensor:
    """Log-probabilities (B, T, U+1) of blank and of every label at each frame; zero beyond the frames."""
    frames = torch.tensor(problem.lattice.frames, device=logits.device)
    # Column 0 is blank, column u the label u.
    columns = torch.cat((problem.symbols[:, :1, 0], problem.symbols[:, :-1, 1]), dim=1)
    if backend != "reference":
        each = cast(Tensor, _FrameScores.apply(logits, columns, frames))
        return each.double() if backend == "cpu" else each
    valid = torch.arange(logits.shape[1], device=logits.device)[:, None] < frames[:, None, None]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = torch.where(valid, wide, 0.0).log_softmax(dim=-1)
    return log_probs.gather(-1, columns[:, None].expand(-1, logits.shape[1], -1))


class _TrellisLoss(torch.autograd.Function):
    """Losses (B,) of frame scores (B, T, U+1), over all paths; and (B,) which are true, None for all."""

    @staticmethod
    def forward(
        ctx: Any, each: Tensor, lattice: Lattice, backend: dispatch.Backend, solve: bool
    ) -> tuple[Tensor, Tensor | None]:
        sure = None
        if backend == "triton":
            from asr_kernels.ctc import gpu  # triton is imported where it is used

            log_total, gradient = gpu.forward_backward(each, lattice, gradient=solve)
        else:
            found = cpu.forward_backward(each.cpu().numpy(), lattice)
            log_total, gradient, sure = (torch.from_numpy(x).to(each.device) for x in found)
            ctx.mark_non_differentiable(sure)
        if solve:
            ctx.save_for_backward(each, gradient)
        return -log_total, sure

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        each, gradient = ctx.saved_tensors
        weighted = weigh(gradient, grad_losses)
        if torch.is_grad_enabled():
            weighted = NoSecondDerivative.apply(weighted, each, grad_losses)
        return weighted, None, None, None


class _FrameScores(torch.autograd.Function):
    """Log-probabilities (B, T, U+1) of the `columns` (B, U+1) of logits (B, T, V); zero beyond the frames."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, columns: Tensor, frames: Tensor) -> Tensor:
        valid = torch.arange(logits.shape[1], device=logits.device) < frames[:, None]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        log_norm = wide.logsumexp(dim=-1)
        log_norm = torch.where(log_norm == torch.inf, torch.nan, log_norm)  # as a softmax has it
        index = columns[:, None].expand(-1, logits.shape[1], -1)
        scores = torch.where(valid[..., None], wide.gather(-1, index) - log_norm[..., None], 0.0)
        ctx.save_for_backward(logits, log_norm, index, valid)
        return scores

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        logits, log_norm, index, valid = ctx.saved_tensors
        with torch.no_grad():
            gamma = -grad_scores.sum(dim=-1, keepdim=True)
            grad = torch.sub(logits.to(log_norm.dtype), log_norm[..., None]).exp_().mul_(gamma)
            grad.scatter_add_(-1, index, grad_scores).masked_fill_(~valid[..., None], 0.0)
            # An utterance that does not count gives no gradient, not even where it is NaN.
            grad = torch.where(gamma == 0, 0.0, grad).to(logits.dtype)
        if torch.is_grad_enabled():
            grad = NoSecondDerivative.apply(grad, logits, grad_scores)
        return grad, None, None
