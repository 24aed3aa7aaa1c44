"""Random batches for the tests of this folder, how to run them, and how results must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import oracles
import torch
from oracles import Rules
from torch import Tensor

from asr_kernels import CTC, MONOTONIC, RNNT, Topology, multi_blank, simple_rnnt_loss, tdt

# "triton" has tests of its own, in the interpreter.
BACKENDS = ["reference", "cpu"]
# The library's name and the oracles' name of the same thing.
TOPOLOGIES: dict[str, tuple[Topology, Rules]] = {
    "rnnt": (RNNT, Rules("rnnt")),
    "monotonic": (MONOTONIC, Rules("monotonic")),
    "ctc": (CTC, Rules("ctc")),
    "tdt": (tdt(), Rules("tdt", (0, 1, 2, 3, 4))),
    "tdt-1-2": (tdt((1, 2), sigma=0.05), Rules("tdt", (1, 2), 0.05)),
    "tdt-3-0-1": (tdt((3, 0, 1), sigma=0.3), Rules("tdt", (3, 0, 1), 0.3)),
    "multi-blank": (multi_blank(), Rules("multi_blank", (2, 4))),
    "multi-blank-3": (multi_blank((3,), sigma=0.1), Rules("multi_blank", (3,), 0.1)),
}


class Case(NamedTuple):
    """Arguments of the losses, in their order."""

    logits: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor

    def utterances(self) -> list[tuple[Tensor, list[int]]]:
        """Logits (T, U+1, V') and labels of each utterance, without padding."""
        lengths = zip(self.logit_lengths.tolist(), self.target_lengths.tolist(), strict=True)
        return [
            (self.logits[b, :T, : U + 1], self.targets[b, :U].tolist()) for b, (T, U) in enumerate(lengths)
        ]

    def padding(self) -> Tensor:
        """(B, T, U+1): true beyond the lengths."""
        t = torch.arange(self.logits.shape[1])[None, :, None]
        u = torch.arange(self.logits.shape[2])[None, None]
        return (t >= self.logit_lengths[:, None, None]) | (u > self.target_lengths[:, None, None])

    def beyond(self) -> Tensor:
        """(B, U): true beyond the target lengths."""
        return torch.arange(self.targets.shape[1]) >= self.target_lengths[:, None]


def make(
    lengths: Sequence[tuple[int, int]],
    V: int,
    extra: int = 0,
    *,
    seed: int = 0,
    blank: int = 0,
    scale: float = 2.0,
) -> Case:
    """Float64 logits and targets other than blank for utterances of these (T, U), with V symbols."""
    rng = torch.Generator().manual_seed(seed)
    frames, labels = (torch.tensor(x) for x in zip(*lengths, strict=True))
    B, T, U = len(lengths), int(frames.max()), int(labels.max())
    logits = scale * torch.randn(B, T, U + 1, V + extra, generator=rng, dtype=torch.float64)
    targets = (torch.randint(1, V, (B, U), generator=rng) + blank) % V
    return Case(logits, targets, frames, labels)


def uneven(B: int, T: int, U: int, V: int, extra: int = 0, seed: int = 0, scale: float = 2.0) -> Case:
    """Like `make`, of random lengths up to T and U; the first utterance has both."""
    rng = torch.Generator().manual_seed(seed)
    frames = torch.randint(1, T + 1, (B,), generator=rng).tolist()
    labels = torch.randint(0, U + 1, (B,), generator=rng).tolist()
    return make([(T, U), *zip(frames[1:], labels[1:], strict=True)], V, extra, seed=seed, scale=scale)


def am_and_lm(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs of the simple loss, (B, T, V) and (B, U+1, V), with the shapes of the case's logits."""
    rng = torch.Generator().manual_seed(seed)
    B, T, width, columns = case.logits.shape
    am = 2 * torch.randn(B, T, columns, generator=rng, dtype=torch.float64)
    return am, 2 * torch.randn(B, width, columns, generator=rng, dtype=torch.float64)


def joiner_of(case: Case, D: int, seed: int = 0, scale: float = 1.5) -> list[Tensor]:
    """Outputs of encoder and predictor, weight and bias: a random joiner with the shapes of the logits."""
    rng = torch.Generator().manual_seed(seed)
    B, T, width, columns = case.logits.shape
    shapes = (B, T, D), (B, width, D), (columns, D), (columns,)
    return [scale * torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


def occupations_of(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Of labels (B, T, U) and blanks (B, T, U+1), by the simple loss of `am_and_lm`."""
    found = simple_rnnt_loss(*am_and_lm(case, seed), *case[1:])
    return found.label_occupation, found.blank_occupation


class Outcome(NamedTuple):
    """Losses (B,) and the gradients of their sum weighted 1, 2, ..., all in float64."""

    losses: Tensor
    grads: tuple[Tensor, ...]


def run(op: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Outcome:
    """Losses by op(*inputs) and the gradient at each input, which is cast to `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    losses = op(*leaves)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    grads = torch.autograd.grad(losses, leaves, weights)
    assert all(grad.dtype == dtype for grad in grads)
    return Outcome(losses.detach().double(), tuple(grad.double() for grad in grads))


def expected(
    case: Case, rules: Rules, blank: int = 0, options: Callable[[int], Any] = lambda b: {}
) -> Outcome:
    """What `run` should give on the logits of the case, by enumeration; options(b) of oracles.loss."""

    def op(logits: Tensor) -> Tensor:
        utterances = case._replace(logits=logits).utterances()
        return torch.stack(
            [oracles.loss(x, y, blank, rules, **options(b)) for b, (x, y) in enumerate(utterances)]
        )

    return run(op, [case.logits])


def agree(found: Outcome, wanted: Outcome, tolerance: float = 1e-9) -> None:
    """Losses to a relative tolerance, gradients to this share of the utterance's (or tensor's) largest."""
    torch.testing.assert_close(found.losses, wanted.losses, rtol=tolerance, atol=tolerance)
    for grad, want in zip(found.grads, wanted.grads, strict=True):
        assert grad.shape == want.shape
        assert not grad.isnan().any()
        parts = zip(grad, want, strict=True) if len(want) == len(wanted.losses) else [(grad, want)]
        for one, other in parts:
            if one.numel() > 0:
                error, size = float((one - other).abs().max()), float(other.abs().max())
                assert error <= tolerance * (size + 1e-2), f"gradient is off by {error} of {size}"
