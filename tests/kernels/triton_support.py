"""What the Triton checks of all ops share; see test_triton.py, which runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from asr_kernels.dispatch import interpreted

INTERPRETED = interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter computes wrongly in bfloat16, by its own fault; there float16 stands for all half precision.
HALF = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory is full of NaN: what a kernel does not write shows."""

    def allocate(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_nan(*args: object, **kwargs: object) -> Tensor:
            result = original(*args, **kwargs)
            return result.fill_(math.nan) if result.is_floating_point() or result.is_complex() else result

        return allocate_nan

    with monkeypatch.context() as patch:
        for name in ("empty", "empty_like", "empty_strided"):
            patch.setattr(torch, name, allocate(getattr(torch, name)))
        patch.setattr(Tensor, "new_empty", allocate(Tensor.new_empty))
        yield
