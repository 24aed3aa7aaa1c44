"""`gated_linear_attention` and `delta_rule`: check the inputs, hide what is padding, run; see README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from asr_kernels import checks, dispatch
from asr_kernels.attention import function
from asr_kernels.attention.reference import Attended

FEW = 4
"""Frames of all streams, of a call without gradients, that go by the definition."""


@dispatch.entry_point
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Attended:
    """Linear attention whose matrix state forgets: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, y_t = S_t^T q_t.

    Retention, Mamba-2, GateLoop (real), GLA and HGRN2 by their q, k and g; RWKV-6 with a `bonus`.

    Args:
        q: (B, T, H, K) float32, float64, bfloat16 or float16, any strides. Not scaled here.
        k: (B, T, H, K).
        v: (B, T, H, V).
        log_decay: g, (B, T, H) per head or (B, T, H, K) per channel, at most 0; -inf forgets everything.
        state: (B, H, K, V), what an earlier call returned; None is zeros.
        bonus: u, (H, K): y_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t, with S_t as before.
        lengths: (B,) int32 or int64, frames of each stream: those beyond leave its state alone and give
            y = 0, and no gradient, whatever stands there.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide.

    Returns:
        y (B, T, H, V) in v's dtype, and the state (B, H, K, V) float32, or float64 if any input is. What is
        added up is added up in the dtype of the state. All floating inputs are differentiable, also through
        the state. Any cutting in time, with the state passed on, gives what the whole gives.

    Raises:
        ValueError: a shape, dtype, length or backend that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    checks.floats("q", q, "(B, T, H, K)", (None,) * 4)
    B, T, H, K = q.shape
    checks.floats("k", k, f"(B, T, H, K) = {(B, T, H, K)} as q", (B, T, H, K))
    checks.floats("v", v, f"(B, T, H, V) = ({B}, {T}, {H}, any) beside q", (B, T, H, None))
    shape = (B, T, H, K) if log_decay.ndim == 4 else (B, T, H)
    expected = f"{(B, T, H)} per head or {(B, T, H, K)} per channel"
    checks.floats("log_decay", log_decay, expected, shape)
    if bonus is not None:
        checks.floats("bonus", bonus, f"(H, K) = {(H, K)}", (H, K))
    _sizes(q, v)
    frames, first = (q, k, v, log_decay), _state(state, q, v)
    checks.same_device("q", q, k=k, v=v, log_decay=log_decay, bonus=bonus, state=state)
    chosen, dtype = _choose(backend, *frames, first, bonus)
    if B * T <= FEW:
        chosen = dispatch.choose_few(chosen, backend, *frames, first, bonus)
    valid = checks.valid_frames(lengths, q)
    q_shown, k_shown, v_shown, gate = (_cast(_shown(x, valid), dtype, chosen) for x in frames)
    weight = None if bonus is None else bonus.to(dtype)
    found = function.gated(q_shown, k_shown, v_shown, gate, first.to(dtype), weight, chosen)
    return Attended(_shown(found.y, valid).to(v.dtype), found.state)


@dispatch.entry_point
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Attended:
    """Linear attention that overwrites: N times per frame S = S - beta k (k^T S - v^T), after S = exp(g) S.

    N = 1 is DeltaNet, with `log_decay` Gated DeltaNet; more are DeltaProduct's Householder steps.

    Args:
        q: (B, T, H, K) float32, float64, bfloat16 or float16, any strides. y_t = S_t^T q_t, not scaled here.
        k: (B, T, N, H, K). Normalise it: the state may grow without bound where beta |k|^2 is beyond [0, 2].
        v: (B, T, N, H, V).
        beta: (B, T, N, H), rates: 0 keeps what is under the key, 1 replaces it, 2 mirrors it.
        log_decay: g, (B, T, H), at most 0, applied before the steps of the frame; None is no decay.
        state: (B, H, K, V), what an earlier call returned; None is zeros.
        lengths: (B,) int32 or int64, frames of each stream: those beyond leave its state alone and give
            y = 0, and no gradient, whatever stands there.
        backend: one of `asr_kernels.backends()`; None lets `use_backend` or the device decide.

    Returns:
        y (B, T, H, V) in v's dtype, and the state (B, H, K, V) float32, or float64 if any input is. What is
        added up is added up in the dtype of the state. All floating inputs are differentiable, also through
        the state. Any cutting in time, with the state passed on, gives what the whole gives.

    Raises:
        ValueError: a shape, dtype, length or backend that does not fit.
        RuntimeError: on double backward, except with backend="reference".
    """
    checks.floats("q", q, "(B, T, H, K)", (None,) * 4)
    B, T, H, K = q.shape
    checks.floats("k", k, f"(B, T, N, H, K) = ({B}, {T}, any, {H}, {K}) beside q", (B, T, None, H, K))
    N = k.shape[2]
    checks.floats("v", v, f"(B, T, N, H, V) = ({B}, {T}, {N}, {H}, any) beside k", (B, T, N, H, None))
    checks.floats("beta", beta, f"(B, T, N, H) = {(B, T, N, H)} beside k", (B, T, N, H))
    if log_decay is not None:
        checks.floats("log_decay", log_decay, f"(B, T, H) = {(B, T, H)} per head", (B, T, H))
    _sizes(q, v)
    frames, first = (q, k, v, beta), _state(state, q, v)
    checks.same_device("q", q, k=k, v=v, beta=beta, log_decay=log_decay, state=state)
    chosen, dtype = _choose(backend, *frames, first, log_decay)
    if B * T <= FEW:
        chosen = dispatch.choose_few(chosen, backend, *frames, first, log_decay)
    valid = checks.valid_frames(lengths, q)
    q_shown, k_shown, v_shown, rates = (_shown(x, valid).to(dtype) for x in frames)
    gate = None if log_decay is None else _shown(log_decay, valid).to(dtype)
    found = function.delta(q_shown, k_shown, v_shown, rates, gate, first.to(dtype), chosen)
    return Attended(_shown(found.y, valid).to(v.dtype), found.state)


def _sizes(q: Tensor, v: Tensor) -> None:
    """Only T may be 0."""
    if 0 in (q.shape[0], *q.shape[2:], *v.shape[2:]):
        raise ValueError(
            f"expected at least one stream, step, head and channel, found q of shape {tuple(q.shape)} and "
            f"v of shape {tuple(v.shape)}"
        )


def _state(state: Tensor | None, q: Tensor, v: Tensor) -> Tensor:
    """The first state, zeros if there is none."""
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[-1])
    if state is None:
        return q.new_zeros(shape)
    checks.floats("state", state, f"(B, H, K, V) = {shape}, the state of the call before", shape)
    return state


def _choose(backend: str | None, *inputs: Tensor | None) -> tuple[dispatch.Backend, torch.dtype]:
    """The backend and the dtype of the state."""
    found = [x for x in inputs if x is not None]
    wide = next((x for x in found if x.dtype == torch.float64), None)
    dtype = torch.float32 if wide is None else torch.float64
    return dispatch.choose_narrow(backend, found[0] if wide is None else wide, dtype), dtype


def _shown(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T, ...), with zeros, which neither read, forget nor add, where a frame does not count."""
    return x if valid is None else torch.where(valid.view(*valid.shape, *(1,) * (x.ndim - 2)), x, 0.0)


def _cast(x: Tensor, dtype: torch.dtype, backend: dispatch.Backend) -> Tensor:
    """For the backend; kernels widen half precision as they load it."""
    return x if backend == "triton" else x.to(dtype)
