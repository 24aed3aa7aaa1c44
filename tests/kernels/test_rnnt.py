"""The exact transducer loss against brute force, torchaudio, stored numbers, its definition and itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_kernels import rnnt_loss, use_backend
from asr_kernels.rnnt import cpu

# "triton" has its own tests (test_triton.py), in the interpreter.
FAST = ["cpu"]
BACKENDS = ["reference", *FAST]
# B, T, U, V: round and awkward (one frame, no labels, more labels than frames, two symbols, odd sizes)
SHAPES = [(1, 1, 1, 2), (2, 1, 0, 3), (3, 1, 4, 5), (2, 6, 0, 7), (2, 3, 7, 5), (4, 8, 5, 33), (5, 5, 4, 2)]


class Case(NamedTuple):
    logits: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor


def make(B: int, T: int, U: int, V: int, seed: int = 0, scale: float = 2.0, blank: int = 0) -> Case:
    """Random logits in float64 and uneven lengths, the first utterance full."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(B, T, U + 1, V, generator=rng, dtype=torch.float64)
    targets = (torch.randint(1, V, (B, U), generator=rng) + blank) % V
    frames = torch.randint(1, T + 1, (B,), generator=rng)
    labels = torch.randint(0, U + 1, (B,), generator=rng)
    frames[0], labels[0] = T, U
    return Case(logits, targets, frames, labels)


def run(case: Case, dtype: torch.dtype = torch.float32, **options: object) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their sum weighted 1, 2, ..., in float64."""
    logits = case.logits.to(dtype).requires_grad_()
    losses = rnnt_loss(logits, *case[1:], **options)
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    (grad,) = torch.autograd.grad(losses, logits, weights)
    return losses.detach().double(), grad.double()


def agree(
    found: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    tolerance: float = 1e-4,
    per_node: bool = True,
) -> None:
    """Losses to a relative tolerance; gradients to the same share of the largest of their node, or of all.

    Per node for exact expectations; the peers' own float32 lattices are an order less exact than ours.
    """
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=tolerance, atol=tolerance)
    node = expected[1].double().abs().amax(-1, keepdim=True) if per_node else expected[1].abs().max()
    error = (found[1].double() - expected[1].double()).abs()
    assert not error.isnan().any()
    assert (error <= tolerance * node + 1e-2 * tolerance).all()


def enumerate_paths(logits: Tensor, targets: list[int], blank: int) -> float:
    """-log of the sum over every order of T-1 blanks and U labels before the last blank."""
    T, U = logits.shape[0], len(targets)
    log_probs = logits.log_softmax(-1)
    scores = []
    for label_steps in itertools.combinations(range(T - 1 + U), U):
        t = u = 0
        score = 0.0
        for step in range(T - 1 + U):
            if step in label_steps:
                score += float(log_probs[t, u, targets[u]])
                u += 1
            else:
                score += float(log_probs[t, u, blank])
                t += 1
        scores.append(score + float(log_probs[t, u, blank]))
    return -math.log(math.fsum(math.exp(s) for s in scores))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("blank", [0, 2, -1])
def test_equals_the_sum_over_all_paths(backend: str, blank: int) -> None:
    case = make(6, 4, 3, 5, blank=blank)
    losses = rnnt_loss(*case, blank, backend=backend)
    for b, (T, U) in enumerate(zip(case.logit_lengths.tolist(), case.target_lengths.tolist(), strict=True)):
        expected = enumerate_paths(case.logits[b, :T, : U + 1], case.targets[b, :U].tolist(), blank % 5)
        assert losses[b].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 40, 12, 129)])
def test_equals_torchaudio(backend: str, shape: tuple[int, int, int, int]) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    case = make(*shape)
    # torchaudio needs the longest of each length in the batch to fill the tensor: the first one does
    logits = case.logits.float().requires_grad_()
    index = [x.to(torch.int32) for x in case[1:]]
    losses = torchaudio.functional.rnnt_loss(logits, *index, blank=0, reduction="none")
    (grad,) = torch.autograd.grad(losses, logits, torch.arange(1.0, len(losses) + 1))
    agree(run(case._replace(targets=index[0]), backend=backend), (losses.detach(), grad), per_node=False)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"fastemit": 0.3}, {"delay_penalty": 0.05, "fastemit": 0.01}])
def test_equals_the_definition(
    backend: str, shape: tuple[int, int, int, int], options: dict[str, float]
) -> None:
    case = make(*shape)
    expected = run(case, torch.float64, backend="reference", **options)
    agree(run(case, torch.float64, backend=backend, **options), expected, tolerance=1e-9)
    agree(run(case, torch.float32, backend=backend, **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delay_penalty", [0.0, 0.1])
def test_gradient_is_the_derivative_of_the_loss(backend: str, delay_penalty: float) -> None:
    case = make(3, 4, 3, 4)
    logits = case.logits.requires_grad_()
    options = {"delay_penalty": delay_penalty, "backend": backend}
    assert torch.autograd.gradcheck(lambda x: rnnt_loss(x, *case[1:], **options), logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fastemit_scales_label_gradients_and_keeps_the_value(backend: str) -> None:
    """On log-probabilities, whose gradient through the fused log-softmax sums to zero over V."""
    case = make(1, 5, 3, 6)
    plain, scaled = (run(case, torch.float64, fastemit=x, backend=backend) for x in (0.0, 0.5))
    assert torch.equal(plain[0], scaled[0])
    probs = case.logits.softmax(-1)
    node = torch.zeros(1, 5, 4, dtype=torch.float64)  # extra label occupation, 0.5 o_y, read off the change
    change = scaled[1] - plain[1]
    for u in range(3):
        symbol = case.targets[0, u]
        node[..., u] = -change[..., u, symbol] / (1 - probs[..., u, symbol])
    torch.testing.assert_close(node.sum((1, 2)), torch.tensor([1.5], dtype=torch.float64))  # 0.5 per label
    others = torch.ones(6, dtype=torch.bool)
    for u in range(3):
        mask = others.clone()
        mask[case.targets[0, u]] = False
        torch.testing.assert_close(change[0, :, u, mask], node[0, :, u, None] * probs[0, :, u, mask])
    assert change[0, :, 3].abs().max() < 1e-12


@pytest.mark.parametrize("backend", FAST)
def test_matches_when_one_node_exceeds_a_piece(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(2, 5, 4, 50)
    expected = run(case, torch.float64, backend="reference")
    for piece in (1, 60, 130, 600):
        monkeypatch.setattr(cpu, "_PIECE", piece)
        agree(run(case, backend=backend), expected)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_is_accumulated_in_float32(
    backend: str, dtype: torch.dtype, tolerance: float, offset: float
) -> None:
    case = make(3, 20, 6, 17)
    case = case._replace(logits=case.logits + offset)
    case = case._replace(logits=case.logits.to(dtype).double())
    losses, grad = run(case, dtype, backend=backend)
    assert rnnt_loss(case.logits.to(dtype), *case[1:], backend=backend).dtype == torch.float32
    exact = run(case, torch.float64, backend="reference")
    torch.testing.assert_close(losses, exact[0], rtol=1e-5, atol=1e-5)  # rounded nowhere
    agree((exact[0], grad), exact, tolerance)  # rounded once


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("offset", [0.0, 60.0, 1e4, -1e4])
def test_extreme_logits_keep_their_precision(backend: str, offset: float) -> None:
    """A constant changes no probability; powers of two round nothing away in float32."""
    case = make(3, 6, 4, 9)
    case = case._replace(logits=(case.logits * 64).round() / 64)
    expected = run(case, torch.float64, backend="reference")
    agree(run(case._replace(logits=case.logits + offset), backend=backend), expected)


@pytest.mark.parametrize("backend", FAST)
def test_sure_models_match_the_definition(backend: str) -> None:
    case = make(3, 9, 6, 5, scale=40.0)
    agree(run(case, backend=backend), run(case, torch.float64, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filling", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("piece", [1 << 18, 40])  # all utterances at once; two frames at a time
def test_padding_influences_nothing(
    backend: str, filling: float, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_PIECE", piece)
    case = make(4, 6, 5, 4, seed=3)
    expected = run(case, torch.float64, backend=backend)
    logits, targets = case.logits.clone(), case.targets.clone()
    padding = torch.ones_like(logits, dtype=torch.bool)
    for b, (T, U) in enumerate(zip(case.logit_lengths.tolist(), case.target_lengths.tolist(), strict=True)):
        padding[b, :T, : U + 1] = False
        targets[b, U:] = [-1, 4, 1 << 40, -(1 << 40)][b]
    assert padding.any()
    logits[padding] = filling
    found = run(case._replace(logits=logits, targets=targets), torch.float64, backend=backend)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert not found[1][padding].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_path_the_loss_is_infinite_and_the_gradient_zero(backend: str) -> None:
    case = make(4, 5, 3, 4)
    logits, targets = case.logits.clone(), torch.ones_like(case.targets)
    logits[1, 2, :, 0] = -math.inf  # blank cannot leave frame 2
    logits[2, :, 1, 1] = -math.inf  # the second label cannot be emitted
    frames, labels = torch.tensor([5, 5, 5, 0]), torch.tensor([3, 3, 3, 0])
    losses, grad = run(Case(logits, targets, frames, labels), backend=backend)
    assert losses[0].isfinite()
    assert losses[1:].tolist() == [math.inf] * 3
    assert grad[0].any()
    assert not grad[1:].any()
    assert not grad.isnan().any()
    x = logits.requires_grad_()
    rnnt_loss(x, targets, frames, labels, backend=backend, reduction="sum").backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_loss_infinite_is_still_differentiable(backend: str) -> None:
    x = torch.zeros(2, 0, 3, 4, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.int64)
    losses = rnnt_loss(x, torch.zeros(2, 2, dtype=torch.int64), zero, zero, backend=backend)
    losses.sum().backward()
    assert losses.tolist() == [math.inf, math.inf]
    assert x.grad is not None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("backend", FAST)
def test_impossible_arcs_leave_the_other_paths(backend: str) -> None:
    case = make(2, 5, 3, 4)
    case.logits[0, 1, 2, 0] = -math.inf
    case.logits[0, 3, :, 3] = -math.inf
    agree(run(case, backend=backend), run(case, torch.float64, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_not_hidden(backend: str, value: float) -> None:
    case = make(2, 4, 2, 5)
    case.logits[0, 2, 1, 3] = value
    losses, grad = run(case, backend=backend)
    assert losses[0].isnan()
    assert losses[1].isfinite()
    assert grad[0].isnan().any()
    assert grad[1].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_any_strides(backend: str) -> None:
    case = make(3, 6, 4, 5)
    expected = run(case, backend=backend)
    turned = case.logits.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert not turned.is_contiguous()
    agree(run(case._replace(logits=turned), backend=backend), expected, 1e-6)
    wide = torch.zeros(6, 6, 5, 10, dtype=torch.float64)[::2, :, :, ::2]
    wide.copy_(case.logits)
    agree(run(case._replace(logits=wide), backend=backend), expected, 1e-6)
    one_for_all = case._replace(logits=case.logits[:1, :1].expand(3, 6, 5, 5))
    agree(run(one_for_all, backend=backend), run(one_for_all, torch.float64, backend="reference"))


@pytest.mark.parametrize("backend", FAST)
def test_every_output_is_written(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_nan(*args: object, **kwargs: object) -> Tensor:
            result = allocate(*args, **kwargs)
            return result.fill_(math.nan) if result.is_floating_point() else result

        return allocate_nan

    def numpy_poisoned(*args: object, **kwargs: object) -> np.ndarray:
        result = numpy_empty(*args, **kwargs)
        result.fill(255)  # as bytes, NaN of every float dtype
        return result

    case = make(4, 7, 5, 6)
    expected = run(case, backend=backend)
    numpy_empty = np.empty
    monkeypatch.setattr(np, "empty", numpy_poisoned)
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    found = run(case, backend=backend)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("backend", FAST)
def test_repeats_exactly_and_leaves_its_input_alone(backend: str) -> None:
    case = make(4, 30, 10, 40)
    before = case.logits.clone()
    first, second = run(case, backend=backend), run(case, backend=backend)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(case.logits, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_may_be_the_blank_id(backend: str) -> None:
    case = make(2, 4, 3, 5)
    case.targets[0, 1] = 0
    losses = rnnt_loss(*case, backend=backend)
    expected = enumerate_paths(case.logits[0], case.targets[0].tolist(), 0)
    assert losses[0].item() == pytest.approx(expected, rel=1e-10)
    options = {"fastemit": 0.2, "backend": backend}
    reference = run(case, torch.float64, fastemit=0.2, backend="reference")
    agree(run(case, torch.float64, **options), reference, 1e-9)


@pytest.mark.parametrize("backend", FAST)
def test_gradient_weights_of_any_sign(backend: str) -> None:
    case = make(4, 6, 3, 7)
    weights = torch.tensor([-2.0, 0.0, 1e-3, 3e4], dtype=torch.float64)
    grads = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        logits = case.logits.to(dtype).requires_grad_()
        losses = rnnt_loss(logits, *case[1:], backend=name)
        grads.append(torch.autograd.grad(losses, logits, weights.to(dtype))[0].double())
    for found, expected, weight in zip(*grads, weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * abs(float(weight)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_and_integer_dtypes(backend: str) -> None:
    case = make(3, 5, 2, 4)
    losses = rnnt_loss(*case, backend=backend)
    index = [x.to(torch.int32) for x in case[1:]]
    assert torch.equal(rnnt_loss(case.logits, *index, backend=backend), losses)
    assert rnnt_loss(*case, reduction="sum", backend=backend) == losses.sum()
    assert rnnt_loss(*case, reduction="mean", backend=backend) == losses.mean()
    with torch.no_grad():
        assert torch.equal(rnnt_loss(case.logits.requires_grad_(), *case[1:], backend=backend), losses)


def test_double_backward_is_refused() -> None:
    case = make(1, 3, 2, 4)
    logits = case.logits.requires_grad_()
    (grad,) = torch.autograd.grad(rnnt_loss(logits, *case[1:]).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiates twice only with backend="reference"'):
        (grad**2).sum().backward()
    loss = rnnt_loss(logits, *case[1:], backend="reference").sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad((grad**2).sum(), logits)
    assert second.any()


def test_backends_are_chosen_by_argument_then_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(1, 2, 1, 3)
    called: list[str] = []
    read = cpu.read
    monkeypatch.setattr(cpu, "read", lambda *a, **k: called.append("cpu") or read(*a, **k))
    rnnt_loss(*case)
    with use_backend("reference"):
        rnnt_loss(*case)
        rnnt_loss(*case, backend="cpu")
        with use_backend(None):
            rnnt_loss(*case)
    rnnt_loss(*case, backend="reference")
    assert called == ["cpu"] * 3
    with pytest.raises(ValueError, match="found 'fpga'"):
        rnnt_loss(*case, backend="fpga")
    with pytest.raises(ValueError, match="expected a backend among reference, cpu"), use_backend("fpga"):
        pass
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match='on a GPU for backend="triton", found cpu: move them'):
        rnnt_loss(*case, backend="triton")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 3)}, r"expected logits of shape \(B, T, U\+1, V\).*found \(2, 3, 3\)"),
        ({"logits": torch.zeros(2, 3, 3, 4, dtype=torch.int64)}, "floating dtype, found torch.int64"),
        ({"logits": torch.zeros(2, 3, 4, 4)}, r"expected targets of shape \(2, 3\).*found \(2, 2\)"),
        ({"targets": torch.zeros(2, 2)}, "targets of dtype int32 or int64, found torch.float32"),
        ({"targets": torch.tensor([[1, 1], [2, 4]])}, r"targets within \[0, 4\), found 4 at \[1, 1\]"),
        ({"targets": torch.tensor([[-1, 1], [2, 1]])}, r"targets within \[0, 4\), found -1 at \[0, 0\]"),
        ({"logit_lengths": torch.tensor([3, 4])}, r"logit_lengths within \[0, 3\], found 4 for utterance 1"),
        ({"logit_lengths": torch.tensor([-1, 3])}, "found -1 for utterance 0"),
        ({"logit_lengths": torch.tensor([3])}, r"logit_lengths of shape \(2,\).*found \(1,\)"),
        (
            {"target_lengths": torch.tensor([2, 3])},
            r"target_lengths within \[0, 2\], found 3 for utterance 1",
        ),
        ({"blank": 4}, r"integer blank within \[-4, 4\), found 4"),
        ({"blank": -5}, "found -5"),
        ({"blank": 1.5}, r"integer blank within \[-4, 4\), found 1.5"),
        ({"logit_lengths": [3, 2]}, r"logit_lengths as a tensor of shape \(2,\), found list"),
        ({"topology": "rnnt"}, "a Topology such as asr_kernels.RNNT, found 'rnnt'"),
        ({"reduction": "max"}, "reduction among none, sum, mean, found 'max'"),
        ({"fastemit": -0.1}, "fastemit finite and at least 0, found -0.1"),
        ({"delay_penalty": math.nan}, "finite delay_penalty, found nan"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "logits": torch.zeros(2, 3, 3, 4),
        "targets": torch.tensor([[1, 1], [2, 3]]),
        "logit_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
    }
    assert rnnt_loss(**good).isfinite().all()
    with pytest.raises(ValueError, match=message) as error:
        rnnt_loss(**(good | change))
    assert "\n" not in str(error.value)
