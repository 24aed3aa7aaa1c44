"""Linear attention against sums over all pairs of frames, finite differences and its float64 definition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import (
    FORMS,
    Inputs,
    agree,
    delta,
    delta_by_matrices,
    gated,
    gated_by_pairs,
    op_of,
    rand,
    run,
)
from torch import Tensor

from asr_kernels import Attended, delta_rule, gated_linear_attention
from asr_kernels.attention import cpu

# "triton" has tests of its own, in the interpreter.
BACKENDS = ["reference", "cpu"]
# B, T, H, K, V: one frame, less than a chunk, chunks and a rest, several segments.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 2, 5, 3), (3, 64, 1, 4, 7), (2, 150, 3, 8, 5)]


@contextmanager
def small_segments(elements: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SEGMENT", elements)
        yield


# -- The definition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_gated_equals_the_sum_over_pairs(backend: str, form: str) -> None:
    for shape in [(1, 1, 1, 1, 1), (2, 20, 2, 5, 3), (1, 67, 1, 3, 2)]:
        inputs = gated(*shape, form)
        for found, wanted in zip(run(inputs, backend=backend).values(), gated_by_pairs(inputs), strict=False):
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("N", [1, 2, 3])
def test_delta_equals_householder_matrices(backend: str, N: int) -> None:
    for shape in [(1, 1, 1, 1, 1), (2, 20, 2, 5, 3), (1, 67, 1, 3, 2)]:
        inputs = delta(*shape, N)
        wanted = delta_by_matrices(inputs)
        for found, expected in zip(run(inputs, backend=backend).values(), wanted, strict=False):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_a_softmax_free_sum_that_one_can_do_by_hand() -> None:
    """Two frames, one channel, decay 1/2: states 2 then 2/2 + 3, read by 1 and 10."""
    q, k, v = (torch.tensor(x).view(1, 2, 1, 1) for x in ([1.0, 10.0], [1.0, 1.0], [2.0, 3.0]))
    y, state = gated_linear_attention(q, k, v, torch.full((1, 2, 1), math.log(0.5)))
    torch.testing.assert_close(y.flatten(), torch.tensor([2.0, 40.0]))
    torch.testing.assert_close(state.flatten(), torch.tensor([4.0]))
    # with a bonus of 7 the frame's own pair counts 7 times, and the state not yet halved
    y, _ = gated_linear_attention(
        q, k, v, torch.full((1, 2, 1), math.log(0.5)), bonus=torch.full((1, 1), 7.0)
    )
    torch.testing.assert_close(y.flatten(), torch.tensor([14.0, 230.0]))
    # a rate of 1 replaces what is under the key
    y, state = delta_rule(q, k[:, :, None], v[:, :, None], torch.ones(1, 2, 1, 1))
    torch.testing.assert_close(y.flatten(), torch.tensor([2.0, 30.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_gated_gradients_are_derivatives(backend: str, form: str) -> None:
    inputs = gated(2, 5, 1, 2, 3, form)
    names = list(inputs)
    leaves = tuple(x.requires_grad_() for x in inputs.values())

    def op(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(gated_linear_attention(**dict(zip(names, x, strict=True)), backend=backend))

    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("N", [1, 2])
def test_delta_gradients_are_derivatives(backend: str, N: int) -> None:
    inputs = delta(2, 4, 1, 2, 3, N)
    names = list(inputs)
    leaves = tuple(x.requires_grad_() for x in inputs.values())

    def op(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(delta_rule(**dict(zip(names, x, strict=True)), backend=backend))

    assert torch.autograd.gradcheck(op, leaves)


# -- Fast paths against it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("segment", [1, 1 << 18])
def test_gated_by_chunks(form: str, shape: tuple[int, ...], segment: int) -> None:
    inputs = gated(*shape, form)
    wanted = run(inputs, backend="reference")
    with small_segments(segment):
        agree(run(inputs), wanted)
        agree(run(inputs, torch.float32), wanted, 1e-5)


@pytest.mark.parametrize("N", [1, 2, 3, 70])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("segment", [1, 1 << 18])
def test_delta_by_chunks(N: int, shape: tuple[int, ...], segment: int) -> None:
    B, T, *sizes = shape
    inputs = delta(B, min(T, 5) if N == 70 else T, *sizes, N)
    wanted = run(inputs, backend="reference")
    with small_segments(segment):
        agree(run(inputs), wanted, 1e-9)
        agree(run(inputs, torch.float32), wanted, 1e-4)


def test_no_decay_is_a_decay_of_nothing() -> None:
    inputs = delta(2, 9, 2, 4, 3, 2)
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    wanted = run(inputs, backend="reference")
    del wanted["grad of log_decay"], inputs["log_decay"]
    for backend in BACKENDS:
        agree(run(inputs, backend=backend), wanted)


def test_a_decay_per_head_is_one_that_all_channels_share() -> None:
    inputs = gated(2, 70, 2, 4, 3, "head, bonus")
    spread = inputs | {"log_decay": inputs["log_decay"][..., None].expand(-1, -1, -1, 4)}
    wanted = run(inputs)
    found = run(spread)
    found["grad of log_decay"] = found["grad of log_decay"].sum(dim=-1)
    agree(found, wanted)


def test_orthogonal_keys_of_rate_one_never_overwrite() -> None:
    """With unit keys along the axes the delta rule is the plain sum, read back exactly."""
    keys = torch.eye(8, dtype=torch.float64).view(1, 8, 1, 8)
    values = rand(1, 8, 1, 3, seed=0)
    plain = gated_linear_attention(keys, keys, values, torch.zeros(1, 8, 1))
    found = delta_rule(keys, keys[:, :, None], values[:, :, None], torch.ones(1, 8, 1, 1))
    torch.testing.assert_close(found.state, plain.state)
    torch.testing.assert_close(found.y, values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make", [lambda: gated(3, 140, 2, 5, 4, "channel, bonus"), lambda: delta(3, 140, 2, 5, 4, 2)]
)
@pytest.mark.parametrize("cuts", [[1], [64], [139], [3, 4, 70, 71]])
def test_any_cutting_equals_the_whole(backend: str, make: Callable[[], Inputs], cuts: list[int]) -> None:
    inputs = make()
    whole = run(inputs)

    def pieces(**x: Tensor) -> Attended:
        fixed = {name: x.pop(name) for name in ("bonus",) if name in x}
        state, outputs = x.pop("state"), []
        for start, stop in zip([0, *cuts], [*cuts, 140], strict=True):
            part = {name: value[:, start:stop] for name, value in x.items()}
            y, state = op_of(inputs)(**part, **fixed, state=state, backend=backend)
            outputs.append(y)
        return Attended(torch.cat(outputs, dim=1), state)

    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, state = pieces(**leaves)
    torch.autograd.backward((y, state), (rand(*y.shape, seed=99), rand(*state.shape, seed=98)))
    found = {"y": y, "state": state} | {f"grad of {name}": x.grad for name, x in leaves.items()}
    agree({name: x.detach() for name, x in found.items()}, whole, 1e-9)


# -- What may go wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strong", [-50.0, -1000.0, -math.inf])
def test_strong_decays_leave_no_trace(backend: str, form: str, strong: float) -> None:
    """Strong ones among weak ones: what has been forgotten is forgotten, what has not keeps its digits."""
    inputs = gated(2, 130, 2, 6, 4, form, strength=0.05)
    hit = rand(*inputs["log_decay"].shape, seed=20) > 0.3
    inputs["log_decay"] = inputs["log_decay"].masked_fill(hit, strong)
    wanted = run(inputs, backend="reference")
    assert all(x.isfinite().all() for x in wanted.values())
    agree(run(inputs, torch.float32, backend=backend), wanted, 1e-5)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], strong)
    wanted = run(inputs, backend="reference")
    agree(run(inputs, torch.float32, backend=backend), wanted, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strong", [-50.0, -math.inf])
def test_strong_decays_of_the_delta_rule(backend: str, strong: float) -> None:
    inputs = delta(2, 130, 2, 6, 4, 2, strength=0.05)
    hit = rand(*inputs["log_decay"].shape, seed=20) > 0.3
    inputs["log_decay"] = inputs["log_decay"].masked_fill(hit, strong)
    wanted = run(inputs, backend="reference")
    agree(run(inputs, torch.float32, backend=backend), wanted, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_keys_do_not_explode(backend: str) -> None:
    """The triangular system at its worst: every key the same, every rate 1 or nearly 2."""
    for rate in (1.0, 1.95):
        inputs = delta(1, 128, 1, 8, 4)
        inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).clone()
        inputs["beta"] = torch.full_like(inputs["beta"], rate)
        inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
        wanted = run(inputs, backend="reference")
        agree(run(inputs, torch.float32, backend=backend), wanted, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: gated(4, 70, 2, 5, 4, "head, bonus"),
        lambda: gated(4, 70, 2, 5, 4),
        lambda: delta(4, 70, 2, 5, 4, 2),
    ],
)
@pytest.mark.parametrize("filling", [math.nan, math.inf])
def test_padding_influences_nothing(backend: str, make: Callable[[], Inputs], filling: float) -> None:
    inputs, lengths = make(), torch.tensor([70, 33, 1, 0])
    beyond = torch.arange(70) >= lengths[:, None]
    padded = {
        name: x.masked_fill(beyond.view(4, 70, *(1,) * (x.ndim - 2)), filling)
        if x.shape[:2] == (4, 70)
        else x
        for name, x in inputs.items()
    }
    found = run(padded, lengths=lengths, backend=backend)
    assert not found["y"][beyond].any()
    bonus = 0.0
    for b, T in enumerate(lengths.tolist()):
        alone = {
            name: x if name == "bonus" else x[b : b + 1] if name == "state" else x[b : b + 1, :T]
            for name, x in inputs.items()
        }
        # what `run` weighs the outputs by, of this stream
        leaves = {name: x.clone().requires_grad_() for name, x in alone.items()}
        y, state = op_of(inputs)(**leaves)
        weights = (
            rand(*found["y"].shape, seed=99)[b : b + 1, :T],
            rand(*found["state"].shape, seed=98)[b : b + 1],
        )
        torch.autograd.backward((y, state), weights)
        torch.testing.assert_close(found["y"][b : b + 1, :T], y)
        torch.testing.assert_close(found["state"][b : b + 1], state)
        for name, x in leaves.items():
            grad = found[f"grad of {name}"]
            if name == "bonus":
                bonus = bonus + x.grad
            elif name == "state":
                torch.testing.assert_close(grad[b : b + 1], x.grad)
            else:
                torch.testing.assert_close(grad[b : b + 1, :T], x.grad)
                assert not grad[b, T:].any()
    if "bonus" in inputs:
        torch.testing.assert_close(found["grad of bonus"], bonus)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_gradient_at_padding_stays_there(backend: str) -> None:
    inputs, lengths = gated(2, 6, 1, 3, 2), torch.tensor([6, 2])
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, _ = gated_linear_attention(**leaves, lengths=lengths, backend=backend)
    grad = torch.ones_like(y)
    grad[1, 2:] = math.nan
    y.backward(grad)
    assert all(x.grad.isfinite().all() for x in leaves.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [lambda: gated(2, 0, 3, 4, 5), lambda: delta(2, 0, 3, 4, 5, 2)])
def test_no_frames_at_all(backend: str, make: Callable[[], Inputs]) -> None:
    inputs = make()
    found = run(inputs, backend=backend)
    assert found["y"].shape == (2, 0, 3, 5)
    torch.testing.assert_close(found["state"], inputs["state"])
    torch.testing.assert_close(found["grad of state"], rand(2, 3, 4, 5, seed=98))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: gated(2, 70, 2, 8, 4, "head"),
        lambda: gated(2, 70, 2, 8, 4, "channel, bonus"),
        lambda: delta(2, 70, 2, 8, 4, 2),
    ],
)
def test_dtypes_and_strides(backend: str, make: Callable[[], Inputs]) -> None:
    inputs = make()
    turned = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()}
    assert not turned["q"].is_contiguous()
    agree(run(turned, backend=backend), run(inputs, backend="reference"), 1e-9)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        rounded = {name: x.to(dtype).double() for name, x in inputs.items()}
        found = run(rounded, dtype, backend=backend)
        assert found["y"].dtype == found["grad of q"].dtype == dtype
        assert found["state"].dtype == torch.float32
        wanted = run(rounded, backend="reference")
        agree(found, wanted, tolerance)
        torch.testing.assert_close(found["state"].double(), wanted["state"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: gated(2, 20, 2, 8, 4), lambda: delta(2, 20, 2, 8, 4, 2)])
def test_autocast_changes_nothing(backend: str, dtype: torch.dtype, make: Callable[[], Inputs]) -> None:
    """Nor the backward pass under it, which PyTorch advises against; the reference's is autograd's own."""
    inputs = make()
    without = run(inputs, dtype, backend=backend)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    with torch.autocast("cpu", torch.bfloat16):
        found = run(inputs, dtype, backend=backend)
    if backend == "reference":
        found, without = ({name: x[name] for name in ("y", "state")} for x in (found, without))
    agree(found, without, tolerance)


def test_float64_anywhere_is_float64_all_over() -> None:
    inputs = gated(2, 5, 2, 3, 4)
    mixed = {name: x if name == "log_decay" else x.float() for name, x in inputs.items()}
    y, state = gated_linear_attention(**mixed)
    assert (y.dtype, state.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(state, gated_linear_attention(**inputs).state)


@pytest.mark.parametrize("make", [lambda: gated(1, 4, 1, 2, 2), lambda: delta(1, 4, 1, 2, 2)])
def test_double_backward_is_refused(make: Callable[[], Inputs]) -> None:
    leaves = {name: x.requires_grad_() for name, x in make().items()}
    y, _ = op_of(leaves)(**leaves)
    (grad,) = torch.autograd.grad(y.sum(), leaves["q"], create_graph=True)
    with pytest.raises(RuntimeError, match='twice only with backend="reference"'):
        (grad**2).sum().backward()


@pytest.mark.parametrize("make", [lambda: gated(1, 256, 1, 16, 16), lambda: delta(1, 256, 1, 16, 16)])
def test_a_state_per_chunk_is_kept_and_none_per_frame(make: Callable[[], Inputs]) -> None:
    leaves = {name: x.requires_grad_() for name, x in make().items()}
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        op_of(leaves)(**leaves)
    assert sum(kept) <= sum(x.numel() for x in leaves.values()) + 5 * 16 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 4)}, r"expected q of shape \(B, T, H, K\), found \(2, 3, 4\)"),
        ({"k": torch.zeros(2, 3, 1, 5)}, r"expected k of shape .*\(2, 3, 1, 4\) as q, found \(2, 3, 1, 5\)"),
        (
            {"k": torch.zeros(2, 3, 1, 4, dtype=torch.int64)},
            "expected k of a floating dtype, found torch.int64",
        ),
        ({"v": torch.zeros(2, 2, 1, 5)}, r"expected v of shape .* beside q, found \(2, 2, 1, 5\)"),
        (
            {"log_decay": torch.zeros(2, 3, 2)},
            r"log_decay of shape \(2, 3, 1\) per head or .* per channel, found",
        ),
        ({"log_decay": torch.zeros(2, 3, 1, 5)}, r"log_decay of shape .*found \(2, 3, 1, 5\)"),
        (
            {"state": torch.zeros(2, 1, 5, 4)},
            r"state of shape \(B, H, K, V\) = \(2, 1, 4, 5\).*found \(2, 1, 5, 4\)",
        ),
        ({"bonus": torch.zeros(4)}, r"bonus of shape \(H, K\) = \(1, 4\), found \(4,\)"),
        ({"lengths": torch.tensor([3, 4])}, r"lengths within \[0, 3\], found 4 for utterance 1"),
        ({"lengths": torch.tensor([3.0, 3.0])}, "lengths of dtype int32 or int64, found torch.float32"),
        ({"lengths": torch.tensor([3])}, r"lengths of shape \(2,\), found \(1,\)"),
        ({"lengths": [3, 3]}, r"lengths as a tensor of shape \(2,\), found list"),
        ({"v": torch.zeros(2, 3, 1, 0)}, "at least one stream, step, head and channel"),
        ({"backend": "cuda"}, "a backend among reference, cpu, triton, found 'cuda'"),
        ({"backend": "triton"}, "tensors on a GPU"),
    ],
)
def test_wrong_inputs_of_gated_attention(change: dict[str, Any], message: str) -> None:
    right = {
        name: torch.zeros(2, 3, 1, size) for name, size in (("q", 4), ("k", 4), ("v", 5), ("log_decay", 4))
    }
    with pytest.raises(ValueError, match=message) as error:
        gated_linear_attention(**(right | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 3, 1, 4)}, r"expected k of shape \(B, T, N, H, K\).*found \(2, 3, 1, 4\)"),
        ({"v": torch.zeros(2, 3, 1, 1, 5)}, r"expected v of shape .*\(2, 3, 2, 1, any\) beside k, found"),
        ({"beta": torch.zeros(2, 3, 1, 2)}, r"beta of shape .*\(2, 3, 2, 1\) beside k, found \(2, 3, 1, 2\)"),
        (
            {"log_decay": torch.zeros(2, 3, 1, 4)},
            r"log_decay of shape \(B, T, H\) = \(2, 3, 1\) per head, found",
        ),
        ({"state": torch.zeros(1, 1, 4, 5)}, r"state of shape .*found \(1, 1, 4, 5\)"),
        ({"lengths": torch.tensor([-1, 3])}, r"lengths within \[0, 3\], found -1 for utterance 0"),
    ],
)
def test_wrong_inputs_of_the_delta_rule(change: dict[str, Any], message: str) -> None:
    right = {
        "q": torch.zeros(2, 3, 1, 4),
        "k": torch.zeros(2, 3, 2, 1, 4),
        "v": torch.zeros(2, 3, 2, 1, 5),
        "beta": torch.zeros(2, 3, 2, 1),
    }
    with pytest.raises(ValueError, match=message) as error:
        delta_rule(**(right | change))
    assert "\n" not in str(error.value)
