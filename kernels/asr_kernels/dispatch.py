"""Which implementation of an op runs: the definition or a fast path.

The order of precedence is the op's `backend=` argument, then the innermost `use_backend` block, then the
fastest path for the device of the input.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, ParamSpec, TypeVar, get_args

import torch

Backend = Literal["reference", "cpu", "triton"]

P = ParamSpec("P")
R = TypeVar("R")

_forced: ContextVar[Backend | None] = ContextVar("asr_kernels_backend", default=None)


def backends() -> tuple[Backend, ...]:
    """Names that `backend=` and `use_backend` accept, slowest first."""
    return get_args(Backend)


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Run the block with this backend wherever none is given; None restores the free choice.

    Holds for the current thread or task only. Raises ValueError if there is no such backend.
    """
    token = _forced.set(None if backend is None else _known(backend))
    try:
        yield
    finally:
        _forced.reset(token)


def choose(backend: str | None, device: torch.device, *, also: str | None = None) -> Backend:
    """The backend for an input on `device`. Raises ValueError if `backend` names none.

    `also` is one more that the op has, beside this choice.
    """
    if backend is not None:
        return _known(backend, also)
    # The "cpu" path is written in torch operations that every device has, so it serves them all.
    return _forced.get() or ("triton" if device.type == "cuda" and _has_triton() else "cpu")


def on_its_device(op: Callable[P, R]) -> Callable[P, R]:
    """The op, with the GPU of its first tensor as the current one: that is where Triton launches kernels.

    (Autograd sees to this in the backward pass.)
    """

    @functools.wraps(op)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        if first is None or not first.is_cuda:
            return op(*args, **kwargs)
        with torch.cuda.device(first.device):
            return op(*args, **kwargs)

    return guarded


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _known(name: str, also: str | None = None) -> Backend:
    if name not in backends():
        names = [*backends(), *([also] if also else [])]
        raise ValueError(f"expected a backend among {', '.join(names)}, found {name!r}")
    return name
