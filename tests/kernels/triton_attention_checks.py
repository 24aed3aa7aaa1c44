"""The Triton kernels of linear attention against its definition in float64; test_triton.py runs this.

In Triton's interpreter (TRITON_INTERPRET=1 before triton is imported), or, where there is a GPU, on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import FORMS, Inputs, agree, delta, gated, run
from torch import Tensor
from triton_support import DEVICE, HALF, poisoned

from asr_kernels import gated_linear_attention
from asr_kernels.attention import delta_cpu, gpu
from asr_kernels.attention.chain import WIDEST

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

__all__ = ["poisoned"]  # a fixture of every test here


def by_triton(inputs: Inputs, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Tensor]:
    options = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in options.items()}
    return run(inputs, dtype, DEVICE, backend="triton", **options)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_FRAMES", 16)
    monkeypatch.setattr(gpu, "_CHANNELS", 16)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 16, 1, 16, 5), (2, 37, 2, 20, 17)])
def test_equals_the_definition(form: str, shape: tuple[int, ...]) -> None:
    inputs = gated(*shape, form)
    agree(by_triton(inputs), run(inputs, backend="reference"), 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_full_size(form: str) -> None:
    inputs = gated(1, 70, 1, 40, 33, form, strength=0.1)
    agree(by_triton(inputs), run(inputs, backend="reference"), 1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["head", "channel", "channel, bonus"])
@pytest.mark.parametrize("strong", [-50.0, -math.inf])
def test_strong_decays_leave_no_trace(form: str, strong: float) -> None:
    inputs = gated(1, 37, 1, 6, 4, form, strength=0.05)
    hit = torch.rand(inputs["log_decay"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    inputs["log_decay"] = inputs["log_decay"].masked_fill(hit, strong)
    agree(by_triton(inputs), run(inputs, backend="reference"), 1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", FORMS)
def test_padding_influences_nothing(form: str) -> None:
    inputs, lengths = gated(3, 20, 1, 5, 4, form), torch.tensor([20, 7, 0])
    wanted = run(inputs, backend="reference", lengths=lengths)
    beyond = torch.arange(20) >= lengths[:, None]
    for name in ("q", "k", "v", "log_decay"):
        x = inputs[name]
        inputs[name] = x.masked_fill(beyond.view(3, 20, *(1,) * (x.ndim - 2)), math.nan)
    agree(by_triton(inputs, lengths=lengths), wanted, 1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_a_cut_equals_the_whole() -> None:
    inputs = {name: x.float() for name, x in gated(1, 20, 1, 5, 4, "channel, bonus").items()}
    options = {"backend": "triton", "bonus": inputs.pop("bonus").to(DEVICE)}
    frames, state = {name: x.to(DEVICE) for name, x in inputs.items()}, inputs["state"].to(DEVICE)
    del frames["state"]
    whole = gated_linear_attention(**frames, state=state, **options)
    for cut in (1, 16):
        first = gated_linear_attention(**{n: x[:, :cut] for n, x in frames.items()}, state=state, **options)
        rest = {n: x[:, cut:] for n, x in frames.items()}
        second = gated_linear_attention(**rest, state=first.state, **options)
        torch.testing.assert_close(torch.cat((first.y, second.y), dim=1), whole.y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second.state, whole.state, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["head, bonus", "channel"])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_and_strides(form: str, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype).double() for name, x in gated(2, 19, 2, 8, 4, form).items()}
    turned = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()}
    found = by_triton(turned, dtype)
    assert found["y"].dtype == found["grad of log_decay"].dtype == dtype
    assert found["state"].dtype == torch.float32
    agree(found, run(inputs, backend="reference"), 2e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("make", [lambda: gated(2, 0, 3, 4, 5), lambda: delta(2, 0, 3, 4, 5, 2)])
def test_no_frames_at_all(make: Callable[[], Inputs]) -> None:
    inputs = make()
    found = by_triton(inputs)
    assert found["y"].shape == (2, 0, 3, 5)
    torch.testing.assert_close(found["state"], inputs["state"].float())


def test_float64_is_not_for_these_kernels() -> None:
    with pytest.raises(ValueError, match=r'for backend="triton", found torch.float64: leave the choice'):
        by_triton(gated(1, 5, 1, 3, 2), torch.float64)


@pytest.mark.parametrize(
    ("B", "T", "H", "K", "V", "steps"), [(1, 1, 1, 1, 1, 1), (2, 70, 2, 5, 20, 2), (1, 40, 1, 20, 70, 3)]
)
def test_the_delta_rule(B: int, T: int, H: int, K: int, V: int, steps: int) -> None:
    inputs = delta(B, T, H, K, V, steps)
    agree(by_triton(inputs), run(inputs, backend="reference"), 1e-4)


def test_the_delta_rule_in_segments_and_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_cpu, "SEGMENT_ON_GPU", 1)
    inputs, lengths = delta(2, 70, 1, 5, 4, 1), torch.tensor([70, 33])
    wanted = run(inputs, backend="reference", lengths=lengths)
    agree(by_triton(inputs, lengths=lengths), wanted, 1e-4)


def test_heads_too_wide_for_a_chip_take_the_loop() -> None:
    inputs = delta(1, 34, 1, WIDEST + 1, 2, 1)
    agree(by_triton(inputs), run(inputs, backend="reference"), 1e-4)
