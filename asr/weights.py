"""Weights in safetensors files: as they are, in half the bytes, or in a quarter of them.

float32   as trained
float16   every number rounded to 11 significant bits
int8      matrices and kernels row by row, W[i] = scale[i] * q[i] with q in -127..127 and scale[i] the largest
          magnitude over 127, so that no number is off by more than half a scale; `NAME@scale` is stored
          beside `NAME`. Biases, norms and feature statistics stay as they are: they are few

What is read is float32 again, whatever it was stored as: a network computes the same way with all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asr.errors import ModelError

Storage = Literal["float32", "float16", "int8"]
SCALE = "@scale"
LEVELS = 127


def pack(weights: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """What is written for `weights`, float32 tensors by name."""
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if storage == "float16" and tensor.is_floating_point():
            packed[name] = tensor.clamp(-65504, 65504).half()  # what is larger would come back infinite
        elif storage == "int8" and tensor.is_floating_point() and tensor.dim() > 1:
            packed[name], packed[name + SCALE] = _rows_in_int8(tensor)
        else:
            packed[name] = tensor
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating-point ones in float32; raises ModelError naming it."""
    try:
        stored: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    scales = {name.removesuffix(SCALE): stored.pop(name) for name in list(stored) if name.endswith(SCALE)}
    for name, scale in scales.items():
        rows = stored.get(name)
        if rows is None or rows.dtype != torch.int8 or scale.shape != rows.shape[:1]:
            found = "nothing" if rows is None else f"{rows.dtype} {tuple(rows.shape)}"
            raise ModelError(
                f"{path}: {name}: expected int8 with {scale.numel()} rows, found {found}; copy it again"
            )
        stored[name] = rows.float() * _by_row(scale, rows)
    return {name: tensor.float() if _rounded(tensor) else tensor for name, tensor in stored.items()}


def weighted_mean(members: Iterable[tuple[Mapping[str, Tensor], float]]) -> dict[str, Tensor]:
    """Mean of weights of the same names, each with how much it counts; accumulated in float64, float32."""
    totals: dict[str, Tensor] = {}
    whole = 0.0
    for weights, count in members:
        whole += count
        for name, tensor in weights.items():
            part = tensor.double() * count
            totals[name] = totals[name] + part if name in totals else part
    return {name: (total / whole).float() for name, total in totals.items()}


def _rows_in_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    largest = tensor.abs().flatten(1).amax(1)
    scale = torch.where(largest > 0, largest / LEVELS, torch.ones_like(largest))
    return (tensor / _by_row(scale, tensor)).round().to(torch.int8), scale


def _by_row(scale: Tensor, rows: Tensor) -> Tensor:
    """(N,) scales in as many dimensions as `rows`, (N, ...)."""
    return scale.view(-1, *[1] * (rows.dim() - 1))


def _rounded(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)
