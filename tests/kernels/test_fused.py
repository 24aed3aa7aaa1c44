"""The loss of a joiner whose logits are never stored, against the loss of the same logits, stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cases
import oracles
import pytest
import torch
from cases import BACKENDS, TOPOLOGIES, Case, agree, make, run, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr_kernels import align, fused_align, fused_rnnt_loss, multi_blank, rnnt_loss, tdt

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


class Joiner(NamedTuple):
    """A float64 joiner and what it reads."""

    encoder: Tensor
    predictor: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, activation: str = "tanh") -> Tensor:
        hidden = ACTIVATIONS[activation](self.encoder[:, :, None] + self.predictor[:, None])
        return hidden @ self.weight.T + self.bias


def joiner_of(case: Case, D: int, seed: int = 0, scale: float = 1.5) -> Joiner:
    return Joiner(*cases.joiner_of(case, D, seed, scale))


def fused(case: Case, blank: int = 0, **options: Any) -> Callable[..., Tensor]:
    """Loss as a function of encoder, predictor, weight and, if given, bias."""

    def op(*inputs: Tensor) -> Tensor:
        bias = inputs[3] if len(inputs) > 3 else None
        return fused_rnnt_loss(*inputs[:3], bias, *case[1:], blank, **options)

    return op


def unfused(case: Case, blank: int = 0, activation: str = "tanh", **options: Any) -> Callable[..., Tensor]:
    """The same through stored logits and the definition of the loss."""

    def op(*inputs: Tensor) -> Tensor:
        bias = inputs[3] if len(inputs) > 3 else inputs[2].new_zeros(len(inputs[2]))
        logits = Joiner(*inputs[:3], bias).logits(activation)
        return rnnt_loss(logits, *case[1:], blank, backend="reference", **options)

    return op


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equals_the_loss_of_stored_logits(name: str, activation: str, criterion: str, backend: str) -> None:
    """Lengths uneven, one utterance without labels, one without frames, one with more labels than frames."""
    topology, rules = TOPOLOGIES[name]
    case = make([(9, 4), (6, 0), (0, 2), (3, 4), (1, 0), (1, 1)], 6, len(rules.durations), seed=1)
    joiner = joiner_of(case, 5, seed=1)
    options = {"topology": topology, "criterion": criterion, "activation": activation}
    options |= {"fastemit": 0.2, "delay_penalty": 0.1}
    wanted = run(unfused(case, **options), joiner)
    assert wanted.losses.isfinite().any()
    assert wanted.losses.isinf().any()
    options |= {"backend": backend, "skip_below": 0.0}
    agree(run(fused(case, **options), joiner), wanted)
    agree(run(fused(case, **options), joiner, torch.float32), wanted, 1e-4)
    agree(run(fused(case, **options), joiner[:3]), run(unfused(case, **options_of(options)), joiner[:3]))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_best_path_is_that_of_stored_logits(name: str, activation: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = make([(9, 4), (6, 0), (0, 2), (3, 4), (1, 0)], 6, len(rules.durations), seed=1)
    joiner = joiner_of(case, 5, seed=1)
    found = fused_align(*joiner, *case[1:], topology=topology, activation=activation)
    wanted = align(joiner.logits(activation), *case[1:], topology=topology)
    assert (found.frames[0] >= 0).all()
    for one, other in zip(found[:2], wanted[:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found.score, wanted.score)


def options_of(options: dict[str, Any]) -> dict[str, Any]:
    """Those that the loss of stored logits knows, too."""
    return {key: value for key, value in options.items() if key not in ("backend", "skip_below")}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equals_the_enumeration_of_all_paths(name: str) -> None:
    topology, rules = TOPOLOGIES[name]
    case = make([(T, U) for T in range(1, 5) for U in range(3)], 3, len(rules.durations), seed=2)
    joiner = joiner_of(case, 3, seed=2)

    def by_enumeration(*inputs: Tensor) -> Tensor:
        utterances = case._replace(logits=Joiner(*inputs).logits()).utterances()
        return torch.stack([oracles.loss(logits, y, 0, rules) for logits, y in utterances])

    agree(run(fused(case, topology=topology, skip_below=0.0), joiner), run(by_enumeration, joiner))


@pytest.mark.parametrize(
    ("B", "T", "U", "V", "D"),
    [
        (1, 1, 0, 2, 1),
        (1, 1, 3, 2, 7),
        (2, 30, 1, 300, 3),
        (3, 40, 14, 5, 70),
        (2, 7, 5, 5001, 4),
        (1, 90, 30, 64, 9),
    ],
)
def test_awkward_sizes(B: int, T: int, U: int, V: int, D: int) -> None:
    case = uneven(B, T, U, V, seed=3)
    joiner = joiner_of(case, D, seed=3, scale=0.7)
    options = {"delay_penalty": 0.01}

    def stored(*inputs: Tensor) -> Tensor:
        return rnnt_loss(Joiner(*inputs).logits(), *case[1:], backend="cpu", **options)

    wanted = run(stored, joiner)
    agree(run(fused(case, skip_below=0.0, **options), joiner), wanted)
    agree(run(fused(case, skip_below=0.0, **options), joiner, torch.float32), wanted, 1e-4)


@given(
    name=st.sampled_from(sorted(TOPOLOGIES)),
    lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=4),
    symbols=st.integers(2, 6),
    D=st.integers(1, 5),
    activation=st.sampled_from(["tanh", "relu"]),
    scale=st.sampled_from([0.5, 2.0, 10.0]),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=40, deadline=None)
def test_any_joiner(
    name: str, lengths: list[tuple[int, int]], symbols: int, D: int, activation: str, scale: float, seed: int
) -> None:
    topology, rules = TOPOLOGIES[name]
    blank = seed % symbols
    case = make(lengths, symbols, len(rules.durations), seed=seed, blank=blank)
    joiner = joiner_of(case, D, seed, scale)
    options = {"topology": topology, "activation": activation}
    wanted = run(unfused(case, blank, **options), joiner)
    agree(run(fused(case, blank, skip_below=0.0, **options), joiner), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bands_around_an_alignment(backend: str) -> None:
    case = uneven(3, 8, 3, 5, seed=4)
    joiner = joiner_of(case, 4, seed=4)
    frames = torch.tensor([[1, 3, 6]]).expand(3, 3)
    options = {"alignment": frames, "alignment_band": 1}
    wanted = run(unfused(case, **options), joiner)
    assert wanted.losses.isfinite().any()
    assert (wanted.losses > run(unfused(case), joiner).losses + 0.1).any()
    agree(run(fused(case, backend=backend, skip_below=0.0, **options), joiner), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradient_is_the_derivative_of_the_loss(activation: str, backend: str) -> None:
    case = uneven(2, 4, 2, 4, 2, seed=5)
    joiner = [x.requires_grad_() for x in joiner_of(case, 3, seed=5)]
    options = {"topology": tdt((1, 2)), "activation": activation, "backend": backend}
    assert torch.autograd.gradcheck(fused(case, skip_below=0.0, **options), joiner)


@pytest.mark.parametrize("needed", range(4))
def test_each_gradient_alone(needed: int) -> None:
    case = uneven(2, 6, 3, 5, seed=6)
    inputs = list(joiner_of(case, 4, seed=6))
    wanted = run(unfused(case), inputs).grads[needed]
    inputs[needed].requires_grad_()
    losses = fused(case, skip_below=0.0)(*inputs)
    weights = torch.arange(1, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad(losses, inputs[needed], weights)
    torch.testing.assert_close(grad, wanted)
    with torch.no_grad():
        assert not fused(case)(*inputs).requires_grad


def sparse_gradients(case: Case, joiner: Joiner, skip_below: float) -> tuple[tuple[Tensor, ...], float]:
    """Gradients if the gradient at the logits is zero wherever a node's occupation, by enumeration, is at
    most skip_below of the largest in its utterance; and the share of nodes that are left."""
    leaves = [x.clone().requires_grad_() for x in joiner]
    logits = Joiner(*leaves).logits()
    at_logits = torch.zeros_like(logits)
    kept = nodes = 0
    for b, (x, y) in enumerate(case._replace(logits=logits).utterances()):
        log_probs = x.detach().log_softmax(-1).requires_grad_()
        loss = oracles.loss_from_log_probs(log_probs, y, 0, oracles.Rules("rnnt"))
        (grad,) = torch.autograd.grad(loss, log_probs)
        occupation = grad.abs().sum(-1)
        live = occupation > skip_below * occupation.max()
        kept, nodes = kept + int(live.sum()), nodes + live.numel()
        z = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(oracles.loss(z, y, 0, oracles.Rules("rnnt")), z)
        at_logits[b, : x.shape[0], : x.shape[1]] = grad * live[..., None]
    return torch.autograd.grad(logits, leaves, at_logits), kept / nodes


@pytest.mark.parametrize("skip_below", [0.0, 1e-4, 1e-2, 0.1])
def test_skips_exactly_the_nodes_below(skip_below: float) -> None:
    """The value stays exact; the gradient is the dense one, of the nodes with more occupation than that."""
    case = make([(7, 3), (6, 2), (3, 3), (5, 0)], 5, seed=7)
    joiner = joiner_of(case, 4, seed=7, scale=2.0)
    wanted, share = sparse_gradients(case, joiner, skip_below)
    assert share == 1.0 if skip_below == 0.0 else share < 1.0
    leaves = [x.clone().requires_grad_() for x in joiner]
    losses = fused(case, skip_below=skip_below)(*leaves)
    dense = unfused(case)(*joiner)
    torch.testing.assert_close(losses, dense, rtol=1e-12, atol=1e-12)
    for found, want in zip(torch.autograd.grad(losses.sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", [(1e-9, 1.0), (1e6, -3.0)])
def test_skipping_does_not_depend_on_the_weight_of_the_loss(weights: tuple[float, float]) -> None:
    case = make([(7, 3), (7, 3)], 5, seed=8)
    joiner = joiner_of(case, 4, seed=8, scale=2.0)
    each = []
    for weight in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor(weights)):
        leaves = [x.clone().requires_grad_() for x in joiner]
        losses = fused(case, skip_below=1e-2)(*leaves)
        each.append(torch.autograd.grad(losses, leaves, weight.double()))
    for first, second, both in zip(*each, strict=True):
        torch.testing.assert_close(both, weights[0] * first + weights[1] * second)


def test_default_skipping_changes_no_gradient_that_counts() -> None:
    case = uneven(3, 40, 10, 30, seed=9)
    joiner = joiner_of(case, 8, seed=9)
    dense, default = run(fused(case, skip_below=0.0), joiner), run(fused(case), joiner)
    assert torch.equal(dense.losses, default.losses)
    for found, wanted in zip(default.grads, dense.grads, strict=True):
        assert (found - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filling", [math.nan, math.inf])
def test_padding_influences_nothing(backend: str, filling: float) -> None:
    case = make([(6, 3), (2, 1), (4, 3), (5, 0), (0, 2)], 5, 2, seed=10)
    joiner = joiner_of(case, 4, seed=10)
    options = {"topology": multi_blank(), "backend": backend}
    wanted = run(fused(case, **options), joiner)
    beyond_frames = torch.arange(6) >= case.logit_lengths[:, None]
    beyond_labels = torch.arange(4) > case.target_lengths[:, None]
    poisoned = case._replace(targets=case.targets.masked_fill(case.beyond(), -5))
    inputs = (
        joiner.encoder.masked_fill(beyond_frames[..., None], filling),
        joiner.predictor.masked_fill(beyond_labels[..., None], filling),
        *joiner[2:],
    )
    found = run(fused(poisoned, **options), inputs)
    agree(found, wanted, 1e-12)
    assert not found.grads[0][beyond_frames].any()
    assert not found.grads[1][beyond_labels].any()
    assert not found.grads[0][-1].any()
    assert not found.grads[1][-1].any()  # no frames: no path


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_utterance(backend: str) -> None:
    case = make([(4, 2), (4, 2)], 5, seed=11)
    joiner = joiner_of(case, 4, seed=11)
    joiner.encoder[0, 2, 1] = math.nan
    found = run(fused(case, backend=backend), joiner)
    assert found.losses.isnan().tolist() == [True, False]
    assert found.grads[0][1].isfinite().all()
    assert found.grads[2].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_bias_may_forbid_symbols(name: str, backend: str) -> None:
    """One that no path needs, then a label: of some utterances, whose loss becomes infinite."""
    topology, rules = TOPOLOGIES[name]
    case = make([(6, 2), (5, 2), (4, 1)], 6, len(rules.durations), seed=15)
    case.targets[:] = torch.tensor([[1, 2], [2, 3], [3, 3]])
    joiner = joiner_of(case, 4, seed=15)
    for column, infinite in ((5, [False] * 3), (1, [True, False, False])):
        joiner.bias[column] = -math.inf
        wanted = run(unfused(case, topology=topology), joiner)
        found = run(fused(case, topology=topology, backend=backend, skip_below=0.0), joiner)
        assert wanted.losses.isinf().tolist() == infinite
        agree(found, wanted)


def test_double_backward_is_refused() -> None:
    case = make([(4, 2)], 5, seed=16)
    joiner = [x.requires_grad_() for x in joiner_of(case, 4, seed=16)]
    for needed in range(4):
        (grad,) = torch.autograd.grad(fused(case)(*joiner).sum(), joiner[needed], create_graph=True)
        with pytest.raises(RuntimeError, match='twice only with backend="reference"'):
            (grad**2).sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_loss_has_no_gradient(backend: str) -> None:
    case = make([(4, 2), (2, 3)], 5, seed=12)
    joiner = joiner_of(case, 4, seed=12)
    options = {"topology": TOPOLOGIES["monotonic"][0], "backend": backend}
    both = run(fused(case, **options), joiner)
    assert both.losses.isinf().tolist() == [False, True]
    one = Case(case.logits[:1], case.targets[:1], case.logit_lengths[:1], case.target_lengths[:1])
    alone = run(fused(one, **options), (joiner.encoder[:1], joiner.predictor[:1], *joiner[2:]))
    torch.testing.assert_close(both.grads[2], alone.grads[2])
    torch.testing.assert_close(both.grads[3], alone.grads[3])
    assert not both.grads[0][1].any()
    assert not both.grads[1][1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_strides_and_reductions(backend: str) -> None:
    case = uneven(3, 10, 4, 9, seed=13)
    joiner = joiner_of(case, 8, seed=13, scale=1.0)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 3e-2)):
        rounded = Joiner(*(x.to(dtype).double() for x in joiner))
        wanted = run(unfused(case), rounded)
        found = run(fused(case, backend=backend), rounded, dtype)
        torch.testing.assert_close(found.losses, wanted.losses, rtol=tolerance, atol=tolerance)
        agree(found._replace(losses=wanted.losses), wanted, tolerance)
    wanted = run(unfused(case), joiner)
    turned = [x.mT.contiguous().mT for x in joiner[:3]]
    assert not turned[0].is_contiguous()
    agree(run(fused(case, backend=backend, skip_below=0.0), (*turned, joiner.bias)), wanted)
    for reduction in ("sum", "mean"):
        found_scalar = fused(case, backend=backend, reduction=reduction)(*joiner)
        torch.testing.assert_close(found_scalar, getattr(wanted.losses, reduction)())


def test_repeats_exactly_and_leaves_its_input_alone() -> None:
    case = uneven(3, 20, 6, 40, seed=14)
    joiner = joiner_of(case, 16, seed=14)
    before = [x.clone() for x in joiner]
    first, second = (run(fused(case), joiner, torch.float32) for _ in range(2))
    assert torch.equal(first.losses, second.losses)
    for one, other in zip(first.grads, second.grads, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(before, joiner, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": torch.zeros(2, 3)}, r"encoder of shape .*found \(2, 3\)"),
        ({"predictor": torch.zeros(2, 3, 6)}, r"predictor of shape .*found \(2, 3, 6\)"),
        ({"predictor": torch.zeros(1, 3, 5)}, r"predictor of shape .*found \(1, 3, 5\)"),
        ({"weight": torch.zeros(4, 6)}, r"weight of shape .*found \(4, 6\)"),
        ({"bias": torch.zeros(5)}, r"bias of shape .*found \(5,\)"),
        ({"weight": torch.zeros(4, 5, dtype=torch.int64)}, "weight of a floating dtype, found torch.int64"),
        ({"targets": torch.tensor([[1, 1], [2, 4]])}, r"targets within \[0, 4\), found 4 at \[1, 1\]"),
        ({"targets": torch.tensor([[1, 1, 1], [2, 2, 2]])}, r"targets of shape .*found \(2, 3\)"),
        ({"logit_lengths": torch.tensor([3, 4])}, r"logit_lengths within \[0, 3\], found 4 for utterance 1"),
        ({"blank": 4}, r"blank within \[-4, 4\), found 4"),
        ({"topology": tdt((0, 1, 2, 3))}, "more than 4 columns"),
        ({"activation": "gelu"}, "activation among .*found 'gelu'"),
        ({"skip_below": -1e-6}, "skip_below .*found -1e-06"),
        ({"skip_below": math.nan}, "skip_below .*found nan"),
        ({"skip_below": 1.0}, "skip_below .*found 1.0"),
        (
            {"weight": torch.zeros(4, 5).double()},
            "weight of the encoder's dtype torch.float32, found torch.float64",
        ),
        ({"criterion": "mean"}, "criterion among sum, max, found 'mean'"),
        ({"reduction": "max"}, "reduction among none, sum, mean, found 'max'"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {
        "encoder": torch.zeros(2, 3, 5),
        "predictor": torch.zeros(2, 3, 5),
        "weight": torch.zeros(4, 5),
        "bias": torch.zeros(4),
        "targets": torch.tensor([[1, 1], [2, 3]]),
        "logit_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
    }
    assert fused_rnnt_loss(**good).isfinite().all()
    with pytest.raises(ValueError, match=message) as error:
        fused_rnnt_loss(**(good | change))
    assert "\n" not in str(error.value)
