"""Whisper's encoder against Whisper's own equations, its front end, and the readers of its weights."""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from asr.encoders import WhisperEncoder, WhisperEncoderConfig, build_encoder
from asr.encoders.whisper_weights import load_whisper, read_whisper, whisper_size
from asr.errors import ModelError
from asr.features.fbank import Fbank, FbankConfig
from asr.features.logmel import FULL_SCALE, WHISPER_MEAN, WHISPER_STD, hann_window, mel_filters
from asr.layers.context import ContextConfig
from asr.layers.sinusoids import PERIOD, sinusoids

BINS, DIM, HEADS, LAYERS = 5, 16, 2, 2


def build(**options: Any) -> WhisperEncoder:
    torch.manual_seed(0)
    sizes = {"dim": DIM, "heads": HEADS, "layers": LAYERS, "dropout": 0.0}
    encoder = build_encoder(WhisperEncoderConfig(**{**sizes, **options}), BINS, 0.01)
    assert isinstance(encoder, WhisperEncoder)
    return encoder.eval()


def hugging_face(bins: int = BINS, dim: int = DIM, layers: int = LAYERS) -> dict[str, Tensor]:
    """Random weights by the names under which Whisper's are given out."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 4

    weights = {
        "conv1.weight": random(dim, bins, 3),
        "conv1.bias": random(dim),
        "conv2.weight": random(dim, dim, 3),
        "conv2.bias": random(dim),
        "layer_norm.weight": 1 + random(dim),
        "layer_norm.bias": random(dim),
    }
    for number in range(layers):
        at = f"layers.{number}."
        for name in ("q", "k", "v", "out"):
            weights[f"{at}self_attn.{name}_proj.weight"] = random(dim, dim)
            if name != "k":
                weights[f"{at}self_attn.{name}_proj.bias"] = random(dim)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            weights |= {f"{at}{name}.weight": 1 + random(dim), f"{at}{name}.bias": random(dim)}
        weights |= {f"{at}fc1.weight": random(4 * dim, dim), f"{at}fc1.bias": random(4 * dim)}
        weights |= {f"{at}fc2.weight": random(dim, 4 * dim), f"{at}fc2.bias": random(dim)}
    return {f"model.encoder.{name}": tensor for name, tensor in weights.items()}


def written(weights: dict[str, Tensor], path: Path, name: str = "WhisperSpec") -> Path:
    """A CTranslate2 file of them in float16, with a tensor of the decoder and one in int8 among them."""
    at = "model.encoder."
    tensors = {}
    for conv in ("conv1", "conv2"):
        tensors |= {f"encoder/{conv}/{kind}": weights[f"{at}{conv}.{kind}"] for kind in ("weight", "bias")}
    norms = {"encoder/layer_norm": f"{at}layer_norm"}
    for number in range(LAYERS):
        ours, theirs = f"{at}layers.{number}.", f"encoder/layer_{number}"
        norms[f"{theirs}/self_attention/layer_norm"] = f"{ours}self_attn_layer_norm"
        norms[f"{theirs}/ffn/layer_norm"] = f"{ours}final_layer_norm"
        parts = [weights[f"{ours}self_attn.{name}_proj.weight"] for name in "qkv"]
        tensors[f"{theirs}/self_attention/linear_0/weight"] = torch.cat(parts)
        q, v = (weights[f"{ours}self_attn.{name}_proj.bias"] for name in "qv")
        tensors[f"{theirs}/self_attention/linear_0/bias"] = torch.cat((q, torch.zeros_like(q), v))
        for kind in ("weight", "bias"):
            tensors[f"{theirs}/self_attention/linear_1/{kind}"] = weights[f"{ours}self_attn.out_proj.{kind}"]
            tensors[f"{theirs}/ffn/linear_0/{kind}"] = weights[f"{ours}fc1.{kind}"]
            tensors[f"{theirs}/ffn/linear_1/{kind}"] = weights[f"{ours}fc2.{kind}"]
    for theirs, ours in norms.items():
        tensors |= {f"{theirs}/gamma": weights[f"{ours}.weight"], f"{theirs}/beta": weights[f"{ours}.bias"]}
    tensors["decoder/embeddings/weight"] = torch.randn(7, DIM)

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text(name) + struct.pack("<II", 3, len(tensors) + 1)
    data += text("encoder/num_heads") + struct.pack("<BBI", 0, 1, 1) + b"\2"
    for key, tensor in tensors.items():
        content = tensor.half().numpy().tobytes()
        data += text(key) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        data += struct.pack("<BI", 4, len(content)) + content
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.bin").write_bytes(data)
    return path


def whole(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Whisper's encoder as the paper and its model card describe it; x (T, bins) -> (ceil(T / 2), dim)."""
    w = {name.removeprefix("model.encoder."): tensor.double() for name, tensor in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"])

    y = functional.gelu(functional.conv1d(x.double().T[None], w["conv1.weight"], w["conv1.bias"], padding=1))
    y = functional.gelu(functional.conv1d(y, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1))[0].T
    step = math.log(10000) / (DIM // 2 - 1)
    angle = torch.arange(len(y))[:, None] * torch.exp(-step * torch.arange(DIM // 2).double())
    y = y + torch.cat((angle.sin(), angle.cos()), dim=1)
    for number in range(LAYERS):
        at = f"layers.{number}."
        z = norm(y, f"{at}self_attn_layer_norm")
        heads = [
            linear(z, f"{at}self_attn.{name}_proj").view(len(y), HEADS, -1).transpose(0, 1) for name in "qkv"
        ]
        q, k, v = heads
        attended = ((q @ k.transpose(1, 2)) / math.sqrt(DIM // HEADS)).softmax(-1) @ v
        y = y + linear(attended.transpose(0, 1).reshape(len(y), DIM), f"{at}self_attn.out_proj")
        hidden = functional.gelu(linear(norm(y, f"{at}final_layer_norm"), f"{at}fc1"))
        y = y + linear(hidden, f"{at}fc2")
    return norm(y, "layer_norm")


def original_sinusoids(position: Tensor, dim: int) -> Tensor:
    exponent = torch.arange(dim // 2).double() / (dim // 2 - 1)
    angle = position[..., None] * torch.exp(-math.log(10000) * exponent)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


@pytest.mark.parametrize("form", ["hugging face", "ctranslate2"])
def test_full_context_is_whisper(form: str, tmp_path: Path) -> None:
    weights = hugging_face()
    if form == "ctranslate2":
        weights = {name: tensor.half().float() for name, tensor in weights.items()}
        written(weights, tmp_path)
    else:
        save_file(
            {**weights, "model.decoder.layer_norm.weight": torch.ones(DIM)}, tmp_path / "model.safetensors"
        )
    encoder = build()
    load_whisper(encoder, read_whisper(tmp_path))
    x = torch.randn(40, BINS)
    # Silence behind it, as Whisper has it: our encoder hears that a signal ends.
    x[30:] = 0
    with torch.no_grad():
        y = encoder(x[None], torch.tensor([40])).y[0]
    assert torch.allclose(y.double(), whole(weights, x), atol=1e-5)


def test_sinusoids_are_those_of_whisper_and_begin_anew() -> None:
    place = torch.arange(PERIOD)
    assert torch.allclose(sinusoids(place, 384), original_sinusoids(place, 384).float())
    assert torch.equal(sinusoids(place + 7 * PERIOD, 384), sinusoids(place, 384))


def test_a_stream_goes_on_beyond_the_last_position() -> None:
    """Frame by frame it equals an encoder that was told where to begin."""
    encoder = build(contexts=(ContextConfig(chunk=2, left_chunks=1),))
    x, before = torch.randn(1, 24, BINS), 2 * PERIOD - 6
    state = encoder.initial_state(1)
    entrance = dataclasses.replace(state.entrance, position=torch.tensor([before]))
    with torch.no_grad():
        live = encoder(x, torch.tensor([24]), dataclasses.replace(state, entrance=entrance))
        places = torch.arange(before, before + 12)
        assert not torch.allclose(sinusoids(places, DIM), sinusoids(torch.arange(12), DIM))
        padded, begin = functional.pad(x, (0, 0, 0, 2)), torch.tensor([before])
        expected = encoder.entrance(padded, torch.tensor([26]), None, begin).x
        frames = encoder.entrance(x, torch.tensor([24]), entrance)
    count = int(frames.x_lengths)
    assert torch.allclose(frames.x[:, :count], expected[:, :count], atol=1e-6)
    assert int(live.state.entrance.position) == (before + count) % PERIOD


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_training_begins_anywhere_and_use_at_the_beginning(share: float) -> None:
    encoder = build(contexts=(ContextConfig(),), anywhere=share)
    x, lengths = torch.randn(2, 30, BINS), torch.tensor([30, 20])
    with torch.no_grad():
        used = encoder(x, lengths).y
        assert torch.equal(encoder(x, lengths).y, used)
        steps = [encoder.at_step(step)(x, lengths).y for step in (1, 1, 2)]
    assert torch.equal(steps[0], steps[1])
    assert torch.allclose(steps[0], steps[2], atol=1e-5) == (share == 0)
    assert torch.allclose(steps[0], used, atol=1e-5) == (share == 0)


def test_the_front_end_is_whispers() -> None:
    """Against its definition in float64: Hann, FFT of 400, filters of area 1, log10, and a quarter of it."""
    config = FbankConfig.whisper()
    wave = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    features = Fbank(config)(wave[None], torch.tensor([16000])).features[0]
    heard = (features - WHISPER_MEAN) / WHISPER_STD
    # Frame 10 begins 120 samples before 1600.
    frame = wave[1480:1880].double() * (0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(400) / 400))
    power = torch.fft.rfft(frame).abs().square()
    energy = slaney_filters() @ power.numpy()
    expected = (np.log10(np.maximum(energy, 10**-7.5)) + 4) / 4
    assert np.abs(heard[10].numpy() - expected).max() < 1e-4
    silence = Fbank(config)(torch.zeros(1, 1600), torch.tensor([1600])).features
    assert torch.allclose((silence - WHISPER_MEAN) / WHISPER_STD, torch.tensor((4 - 7.5) / 4), atol=1e-5)
    assert config.fft_size == 400
    assert float(hann_window(400)[0]) == 0.0
    assert FULL_SCALE == 32768


def slaney_filters() -> np.ndarray[Any, np.dtype[np.float64]]:
    """(80, 201), corner by corner: 66.7 Hz apart up to 1 kHz, by a constant ratio beyond."""

    def mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000, 6.4)

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    corners = [hertz(i * mel(8000) / 81) for i in range(82)]
    filters = np.zeros((80, 201))
    for m in range(80):
        left, centre, right = corners[m : m + 3]
        for k in range(201):
            rising, falling = (40 * k - left) / (centre - left), (right - 40 * k) / (right - centre)
            filters[m, k] = max(0.0, min(rising, falling)) * 2 / (right - left)
    return filters


def test_slaney_filters() -> None:
    ours = mel_filters(FbankConfig.whisper()).T.double().numpy()
    assert np.abs(ours - slaney_filters()[:, :200]).max() < 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "rotary"}, "a Whisper encoder has positions of its own: leave positions out"),
        ({"lookahead": 2, "contexts": (ContextConfig(chunk=4, left_chunks=1),)}, "has lookahead of its own"),
        ({"subsampling": {"factor": 4}}, "leave subsampling out"),
        ({"dim": 2, "heads": 1}, "greater than or equal to 4"),
    ],
)
def test_refused_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_what_is_no_whisper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected model.safetensors or model.bin of a Whisper model"):
        read_whisper(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"expected the weights of Whisper, found no encoder.conv1.weight"):
        read_whisper(tmp_path)
    other = written(hugging_face(), tmp_path / "other", name="TransformerSpec")
    with pytest.raises(ModelError, match="found another model"):
        read_whisper(other)
    good = written(hugging_face(), tmp_path / "good")
    data = (good / "model.bin").read_bytes()
    (good / "model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"not a readable CTranslate2 model \(it ends too early\)"):
        read_whisper(good)
    (good / "model.bin").write_bytes(b"\1\2")
    with pytest.raises(ModelError, match="not a readable CTranslate2 model"):
        read_whisper(good)


def test_an_encoder_of_another_size_is_refused(tmp_path: Path) -> None:
    save_file(hugging_face(), tmp_path / "model.safetensors")
    weights = read_whisper(tmp_path)
    assert whisper_size(weights) == (BINS, DIM, 1, LAYERS)
    with pytest.raises(ModelError, match=r"Whisper has \(16, 5, 3\), the encoder \(20, 5, 3\): set dim"):
        load_whisper(build(dim=20), weights)
    with pytest.raises(ModelError, match=r"layers.1.*the encoder nothing"):
        load_whisper(build(layers=1), weights)


def test_layers_that_whisper_lacks_stay(tmp_path: Path) -> None:
    save_file(hugging_face(), tmp_path / "model.safetensors")
    encoder = build(layers=3)
    before = encoder.layers[2].feed_forward.up.weight.clone()
    load_whisper(encoder, read_whisper(tmp_path))
    assert torch.equal(encoder.layers[2].feed_forward.up.weight, before)
    expected = hugging_face()["model.encoder.layers.1.fc1.weight"]
    assert torch.equal(encoder.layers[1].feed_forward.up.weight, expected)
