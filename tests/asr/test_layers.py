"""Layers with fast paths of their own on a CPU, against torch's and against double precision."""

import pytest
import torch
from torch.nn import functional

from asr.layers.attention import _attention, _masked
from asr.layers.depthwise import depthwise
from asr.layers.dropout import Dropout


@pytest.mark.parametrize(("batch", "length", "dim", "size"), [(3, 12, 8, 5), (1, 9, 3, 9), (2, 7, 1, 1)])
def test_depthwise_is_torchs(batch, length, dim, size):
    x, weight = torch.randn(batch, dim, length).transpose(1, 2), torch.randn(dim, 1, size)  # x is a view
    given = [t.requires_grad_() for t in (x, weight, torch.randn(dim))]
    y = depthwise(*given)
    wide = [t.detach().double().requires_grad_() for t in given]
    expected = functional.conv1d(wide[0].transpose(1, 2), *wide[1:], groups=dim).transpose(1, 2)
    torch.testing.assert_close(y, expected.float())
    down = torch.randn_like(y)
    y.backward(down)
    expected.backward(down.double())
    for ours, theirs in zip(given, wide, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.float())
    with torch.no_grad():
        torch.testing.assert_close(depthwise(*given), expected.float())


def test_depthwise_in_double_precision_and_of_nothing():
    x, weight, bias = torch.randn(2, 9, 3), torch.randn(3, 1, 4), torch.randn(3)
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(depthwise, inputs)
    assert depthwise(inputs[0][:0], *inputs[1:]).shape == (0, 6, 3)


def test_depthwise_sums_bfloat16_in_float32():
    x = torch.randn(4, 40, 16, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.ones(16, 1, 33, requires_grad=True), torch.zeros(16)
    y = depthwise(x, weight, bias)
    exact = functional.conv1d(x.double().transpose(1, 2), weight.double(), bias.double(), groups=16)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact.transpose(1, 2), rtol=2**-8, atol=1e-6)
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_depthwise_says_that_it_has_no_second_derivative():
    x = torch.randn(1, 5, 2, requires_grad=True)
    (first,) = torch.autograd.grad(
        depthwise(x, torch.randn(2, 1, 3), torch.randn(2)).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_and_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(3, 7, 50_003, requires_grad=True)
    y = Dropout(p)(x)
    dropped = (y == 0).float().mean()
    assert dropped.item() == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-3, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_draws_every_number_anew_and_by_the_seed():
    layer, x = Dropout(0.5), torch.ones(2, 4, 4096)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(first, layer(x))
    kept = torch.stack([*first.reshape(8, -1), *second.reshape(8, -1)]) != 0
    # Rows, and the four numbers of a draw, know nothing of each other.
    assert torch.corrcoef(kept.float()).fill_diagonal_(0).abs().max() < 5 / 4096**0.5
    assert torch.corrcoef(kept.reshape(-1, 4).t().float()).fill_diagonal_(0).abs().max() < 5 / 16384**0.5


def test_dropout_is_off_when_it_should_be():
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5)(x[:0]).shape == (0, 5)
    assert not Dropout(1.0)(x).any()
    assert torch.isfinite(Dropout(0.999999)(x)).all()
    assert Dropout(0.3)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_dropout_has_gradients_of_gradients():
    x = torch.randn(50, dtype=torch.double, requires_grad=True)

    def dropped(x):
        torch.manual_seed(2)
        return Dropout(0.4)(x).square()

    assert torch.autograd.gradcheck(dropped, x)
    assert torch.autograd.gradgradcheck(dropped, x)


@pytest.mark.parametrize("kind", ["none", "mask", "bias"])
@pytest.mark.parametrize("frames", [1, 63, 128])
def test_attention_in_bfloat16_is_that_of_double_precision(frames, kind):
    torch.manual_seed(0)
    shape, visible = (2, 3, frames, 16), torch.rand(2, 1, frames, frames) < 0.6
    visible[..., 0] = True
    bias = {
        "none": None,
        "mask": visible,
        "bias": _masked(torch.randn(2, 3, frames, frames), visible).bfloat16(),
    }[kind]
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y = _attention(*inputs, bias)
    exact = _attention(*wide, bias.double() if kind == "bias" else bias)
    down = torch.randn(shape)
    y.backward(down.bfloat16())
    exact.backward(down.bfloat16().double())
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.02)
    for ours, theirs in zip(inputs, wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.05, atol=0.05)
