"""Which implementation of an op runs: the definition or a fast path.

The order of precedence is the op's `backend=` argument, then the innermost `use_backend` block, then the
fastest path for the device of the input.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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


def choose(backend: str | None, scored: torch.Tensor, *, others: tuple[str, ...] = ()) -> Backend:
    """The backend for this input. Raises ValueError if `backend` names none, or one that cannot run here.

    `others` are what the op knows beside, for the message.
    """
    # The "cpu" path serves tensors on every device, and is the one that has all digits of float64.
    fast = scored.is_cuda and scored.dtype not in (torch.float64, torch.complex128) and _has_triton()
    chosen = _forced.get() if backend is None else _known(backend, others)
    chosen = chosen or ("triton" if fast else "cpu")
    if chosen == "triton" and not scored.is_cuda and not interpreted():
        raise ValueError(
            f'expected tensors on a GPU for backend="triton", found {scored.device.type}: move them, '
            "or set TRITON_INTERPRET=1 before Python starts to try the kernels without one"
        )
    return chosen


def choose_narrow(backend: str | None, scored: torch.Tensor, wide: torch.dtype) -> Backend:
    """`choose` for kernels that compute in float32, where `wide` is what the op promises to compute in.

    Raises ValueError if `backend` asks for them and they would not keep the promise.
    """
    chosen = choose(backend, scored)
    if chosen != "triton" or wide in (torch.float32, torch.complex64):
        return chosen
    if backend == "triton":
        raise ValueError(
            f'expected float32 or less for backend="triton", found {wide}: leave the choice to backend=None'
        )
    return "cpu"


def choose_few(chosen: Backend, backend: str | None, *inputs: torch.Tensor | None) -> Backend:
    """For frames so few that a loop over them takes less than the preparations of "cpu": the definition.

    A free choice, of live streams: where gradients are wanted or a backend is named, it stays as chosen.
    """
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return "reference" if chosen == "cpu" and backend is None and not forced() and not learning else chosen


def forced() -> bool:
    """Whether a `use_backend` block decides."""
    return _forced.get() is not None


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def entry_point(op: Callable[P, R]) -> Callable[P, R]:
    """The op as users call it.

    Without autocast, which would round what it computes, and with the GPU of its first tensor as the current
    one: that is where Triton launches kernels (autograd sees to this in the backward pass). Tensors that lie
    in memory with the other sign (the imaginary part of a conjugate) are put right, for kernels read memory.
    """

    @functools.wraps(op)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        args, kwargs = tuple(map(_plain, args)), {name: _plain(x) for name, x in kwargs.items()}  # type: ignore[assignment]
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        if first is None:
            return op(*args, **kwargs)
        current = torch.cuda.device(first.device) if first.is_cuda else nullcontext()
        with current, torch.autocast(first.device.type, enabled=False):
            return op(*args, **kwargs)

    return guarded


def _plain(x: object) -> object:
    return x.resolve_neg() if isinstance(x, torch.Tensor) else x


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _known(name: str, others: tuple[str, ...] = ()) -> Backend:
    if name not in backends():
        raise ValueError(f"expected a backend among {', '.join((*backends(), *others))}, found {name!r}")
    return name
