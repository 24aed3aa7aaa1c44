"""Weights in fewer bytes, and models that come with the package."""

import pytest
import torch
from safetensors.torch import save_file

from asr.errors import ModelError
from asr.weights import pack, read_weights


def stored(tmp_path, weights, storage):
    path = tmp_path / "model.safetensors"
    save_file(pack(weights, storage), path)
    return path


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(12, 300) * torch.logspace(-4, 4, 12)[:, None],
        "kernel": torch.randn(8, 5, 3),
        "view": torch.randn(6, 9).t(),
        "row of zeros": torch.zeros(2, 4),
        "bias": torch.randn(7),
        "count": torch.tensor(123456789),
    }


def test_float32_is_exact(tmp_path, weights):
    read = read_weights(stored(tmp_path, weights, "float32"))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_float16_rounds_to_eleven_bits(tmp_path, weights):
    weights["huge"] = torch.tensor([1e6, -1e6])
    read = read_weights(stored(tmp_path, weights, "float16"))
    assert torch.equal(read.pop("count"), weights["count"])
    assert torch.equal(read.pop("huge"), torch.tensor([65504.0, -65504.0]))
    for name, tensor in read.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, weights[name], rtol=2**-11, atol=2**-24)


def test_int8_is_off_by_half_a_scale_at_most(tmp_path, weights):
    path = stored(tmp_path, weights, "int8")
    read = read_weights(path)
    assert read.keys() == weights.keys()
    for name in ("bias", "count"):
        assert torch.equal(read[name], weights[name])
    for name in ("matrix", "kernel", "view", "row of zeros"):
        largest = weights[name].abs().flatten(1).amax(1)
        off = (read[name] - weights[name]).abs().flatten(1).amax(1)
        assert (off <= largest / 254 * 1.001).all()
        assert (off.sum() > 0) == (name != "row of zeros")
    assert path.stat().st_size < stored(tmp_path, weights, "float32").stat().st_size / 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed.update({"matrix@scale": torch.ones(5)}),
        lambda packed: packed.pop("matrix"),
        lambda packed: packed.update(matrix=packed["matrix"].float()),
    ],
    ids=["another number of rows", "no rows", "rows that are not int8"],
)
def test_scales_that_do_not_fit_are_named(tmp_path, weights, spoil):
    packed = pack(weights, "int8")
    spoil(packed)
    path = tmp_path / "model.safetensors"
    save_file(packed, path)
    with pytest.raises(ModelError, match=r"model\.safetensors: matrix: expected int8 with"):
        read_weights(path)
