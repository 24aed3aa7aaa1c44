"""Linear attention frame by frame, as the papers write it: the definition that every fast path must equal.

The state S of a head is a matrix (K, V): keys in, values out. Reading is ``y = S^T q``, without a scale.

Gated linear attention (Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient
Training") forgets each key channel by its own factor and adds an outer product::

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T              y_t = S_t^T q_t

One g per head makes it RetNet (constant; Sun et al. 2023), Mamba-2 (Dao & Gu 2024) or GateLoop with a real
gate (Katsch 2023); k = 1 - exp(g) is HGRN2 (Qin et al. 2024). RWKV-6 (Peng et al. 2024) reads before
it forgets, and weighs the current frame by a bonus u of its own::

    y_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t

The delta rule (Schlag et al. 2021) first takes away what the state holds under the key; with a gate it is
Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024), with N steps per frame DeltaProduct (Siems et al. 2025)::

    S = exp(g_t) S_{t-1};    for n = 1..N:  S = S - beta_tn k_tn (k_tn^T S - v_tn^T)
    S_t = S;    y_t = S_t^T q_t

These take tensors of one floating dtype, float32 or float64, and are differentiable by autograd (twice, too);
they keep K x V numbers for every frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Attended(NamedTuple):
    """What came out."""

    y: Tensor
    """(B, T, H, V), of the dtype of v."""
    state: Tensor
    """(B, H, K, V) float32 (float64 if any input is), after each stream's last frame."""


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, bonus: Tensor | None
) -> Attended:
    """q, k (B, T, H, K), v (B, T, H, V), log_decay (B, T, H) or (B, T, H, K), state (B, H, K, V)."""
    decay = (log_decay if log_decay.ndim == 4 else log_decay[..., None]).exp()
    outputs = []
    for t in range(q.shape[1]):
        new = k[:, t, :, :, None] * v[:, t, :, None, :]
        after = decay[:, t, :, :, None] * state + new
        seen = after if bonus is None else state + bonus[:, :, None] * new
        outputs.append(_read(seen, q[:, t]))
        state = after
    if not outputs:
        return Attended(v.clone(), state.clone())
    return Attended(torch.stack(outputs, dim=1), state)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> Attended:
    """q (B, T, H, K), k (B, T, N, H, K), v (B, T, N, H, V), beta (B, T, N, H), log_decay (B, T, H)."""
    outputs = []
    for t in range(q.shape[1]):
        if log_decay is not None:
            state = log_decay[:, t, :, None, None].exp() * state
        for n in range(k.shape[2]):
            key, value, rate = k[:, t, n], v[:, t, n], beta[:, t, n, :, None, None]
            wrong = _read(state, key) - value
            state = state - rate * key[..., :, None] * wrong[..., None, :]
        outputs.append(_read(state, q[:, t]))
    if not outputs:
        return Attended(v[:, :, 0].clone(), state.clone())
    return Attended(torch.stack(outputs, dim=1), state)


def _read(state: Tensor, query: Tensor) -> Tensor:
    """(B, H, V): state^T query."""
    return torch.einsum("bhkv,bhk->bhv", state, query)
