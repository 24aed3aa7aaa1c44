"""Weights of Whisper's encoder, from the two forms in which they are given out; neither can run code.

`model.safetensors`   as Hugging Face has them (openai/whisper-tiny.en and its sisters)
`model.bin`           as CTranslate2 has them (faster-whisper): little-endian, a header, then tensors by name

Layout of model.bin: uint32 version, name, uint32 revision, uint32 number of tensors; each tensor: name, uint8
rank, uint32 sizes, uint8 dtype, uint32 bytes, the numbers; a name is its uint16 length and as many bytes, the
last of which is 0.

Only the encoder is read. The keys' bias is zero, because Whisper's keys have none.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from asr.encoders.whisper import WhisperEncoder
from asr.errors import ModelError
from asr.weights import read_weights

WEIGHTS, CTRANSLATE2 = "model.safetensors", "model.bin"
HEAD_WIDTH = 64
"""Of every size of Whisper."""
MOST_TENSORS, MOST_BYTES = 10_000, 1 << 32
DTYPES = {0: torch.float32, 4: torch.float16, 5: torch.bfloat16}
"""CTranslate2's numbers of those that hold weights as they are."""

LAYER = {
    "self_attn_layer_norm": "attention.norm",
    "self_attn.out_proj": "attention.out",
    "final_layer_norm": "feed_forward.norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.out",
}
"""Modules of a layer, in Hugging Face's names and in ours."""
CTRANSLATE2_LAYER = {
    "self_attention/layer_norm": "attention.norm",
    "self_attention/linear_0": "attention.qkv",
    "self_attention/linear_1": "attention.out",
    "ffn/layer_norm": "feed_forward.norm",
    "ffn/linear_0": "feed_forward.up",
    "ffn/linear_1": "feed_forward.out",
}
AROUND = {
    "conv1": "entrance.first.convolution",
    "conv2": "entrance.second.convolution",
    "layer_norm": "norm",
}


def read_whisper(path: Path | str) -> dict[str, Tensor]:
    """Weights of the encoder, float32, in the names of `WhisperEncoder`; `path` is a file or its directory.

    Raises ModelError if there is no Whisper model.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (WEIGHTS, CTRANSLATE2) if (path / name).is_file()]
        if not found:
            raise ModelError(f"{path}: expected {WEIGHTS} or {CTRANSLATE2} of a Whisper model, found neither")
        path = found[0]
    try:
        if path.suffix == ".bin":
            return _from_ctranslate2(_read_ctranslate2(path))
        return _from_hugging_face(read_weights(path))
    except KeyError as error:
        raise ModelError(f"{path}: expected the weights of Whisper, found no {error.args[0]}") from error


class WhisperSize(NamedTuple):
    """What tells the sizes of Whisper apart."""

    bins: int
    """Of the features: 80, or 128 of the largest."""
    dim: int
    heads: int
    layers: int


def whisper_size(weights: dict[str, Tensor]) -> WhisperSize:
    """The size of what `read_whisper` gave."""
    dim, bins, _ = weights["entrance.first.convolution.weight"].shape
    layers = _count(weights, "layers.", ".feed_forward.up.weight")
    return WhisperSize(bins, dim, max(1, dim // HEAD_WIDTH), layers)


@torch.no_grad()
def load_whisper(encoder: WhisperEncoder, weights: dict[str, Tensor]) -> None:
    """Fill `encoder` with what `read_whisper` gave; layers that Whisper lacks stay as they are.

    Raises ModelError if its width, its features or its layers differ.
    """
    own = encoder.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            found = tuple(own[name].shape) if name in own else "nothing"
            raise ModelError(
                f"{name}: Whisper has {tuple(tensor.shape)}, the encoder {found}: "
                "set dim, layers and num_mel_bins to those of this size of Whisper"
            )
        own[name].copy_(tensor)


def _from_hugging_face(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """In our names, of tensors in theirs."""
    prefix = "model.encoder." if "model.encoder.conv1.weight" in weights else "encoder."
    taken: dict[str, Tensor] = {}
    for theirs, ours in AROUND.items():
        taken |= {f"{ours}.{kind}": weights[f"{prefix}{theirs}.{kind}"] for kind in ("weight", "bias")}
    for number in range(_count(weights, prefix + "layers.", ".fc1.weight")):
        source, target = f"{prefix}layers.{number}.", f"layers.{number}."
        for theirs, ours in LAYER.items():
            for kind in ("weight", "bias"):
                taken[f"{target}{ours}.{kind}"] = weights[f"{source}{theirs}.{kind}"]
        q, k, v = (f"{source}self_attn.{name}_proj" for name in "qkv")
        taken[f"{target}attention.qkv.weight"] = torch.cat([weights[f"{name}.weight"] for name in (q, k, v)])
        biases = weights[f"{q}.bias"], torch.zeros_like(weights[f"{q}.bias"]), weights[f"{v}.bias"]
        taken[f"{target}attention.qkv.bias"] = torch.cat(biases)
    return taken


def _from_ctranslate2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """In our names, of tensors in theirs; queries, keys and values are one tensor there too."""
    taken: dict[str, Tensor] = {}
    for theirs, ours in AROUND.items():
        _take(weights, f"encoder/{theirs}", taken, ours)
    for number in range(_count(weights, "encoder/layer_", "/ffn/linear_0/weight")):
        for theirs, ours in CTRANSLATE2_LAYER.items():
            _take(weights, f"encoder/layer_{number}/{theirs}", taken, f"layers.{number}.{ours}")
    return taken


def _take(weights: dict[str, Tensor], theirs: str, taken: dict[str, Tensor], ours: str) -> None:
    kinds = ("gamma", "beta") if theirs.endswith("layer_norm") else ("weight", "bias")
    taken[f"{ours}.weight"], taken[f"{ours}.bias"] = (weights[f"{theirs}/{kind}"] for kind in kinds)


def _count(weights: dict[str, Tensor], before: str, behind: str) -> int:
    """Layers: names from `before0behind` on."""
    number = 0
    while f"{before}{number}{behind}" in weights:
        number += 1
    return number


def _read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The tensors of the encoder, float32; raises ModelError if the file is something else or cut short."""
    weights: dict[str, Tensor] = {}
    with path.open("rb") as file:
        try:
            _number(file, "I")
            if _name(file) != "WhisperSpec":
                raise ModelError(f"{path}: expected CTranslate2's form of Whisper, found another model")
            _number(file, "I")
            for _ in range(min(_number(file, "I"), MOST_TENSORS)):
                name = _name(file)
                sizes = [_number(file, "I") for _ in range(_number(file, "B"))]
                dtype, size = _number(file, "B"), _number(file, "I")
                if not name.startswith("encoder/") or dtype not in DTYPES:
                    file.seek(size, 1)
                    continue
                data = _bytes(file, min(size, MOST_BYTES))
                numbers = torch.frombuffer(bytearray(data), dtype=DTYPES[dtype])
                weights[name] = numbers.view(sizes).float()
        except (struct.error, UnicodeDecodeError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path}: not a readable CTranslate2 model ({error}); copy it again") from error
    return weights


def _number(file: BinaryIO, kind: str) -> int:
    value: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]
    return value


def _name(file: BinaryIO) -> str:
    return _bytes(file, _number(file, "H")).rstrip(b"\0").decode()


def _bytes(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it ends too early")
    return data
