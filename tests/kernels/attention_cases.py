"""Random inputs of linear attention, how to run the ops, how results must agree, and oracles in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr_kernels import Attended, delta_rule, gated_linear_attention

FORMS = ["head", "head, bonus", "channel", "channel, bonus"]
Inputs = dict[str, Tensor]


def rand(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    # values of float32, so that its paths see the same numbers as the float64 reference
    return torch.randn(*shape, generator=rng).double()


def gated(
    B: int, T: int, H: int, K: int, V: int, form: str = "channel", *, strength: float = 0.3, seed: int = 0
) -> Inputs:
    """Inputs of `gated_linear_attention`; some decays are none at all."""
    decay = -strength * rand(B, T, H, *((K,) if "channel" in form else ()), seed=seed).abs()
    inputs = {
        "q": rand(B, T, H, K, seed=seed + 1),
        "k": rand(B, T, H, K, seed=seed + 2),
        "v": rand(B, T, H, V, seed=seed + 3),
        "log_decay": decay.masked_fill(rand(*decay.shape, seed=seed + 4) > 1, 0.0),
        "state": rand(B, H, K, V, seed=seed + 5),
    }
    return inputs | ({"bonus": rand(H, K, seed=seed + 6)} if "bonus" in form else {})


def delta(
    B: int, T: int, H: int, K: int, V: int, N: int = 1, *, strength: float = 0.3, seed: int = 0
) -> Inputs:
    """Inputs of `delta_rule`: unit keys, rates from 0 to 2, less if many steps would leave nothing."""
    keys = torch.nn.functional.normalize(rand(B, T, N, H, K, seed=seed + 2), dim=-1).float().double()
    return {
        "q": rand(B, T, H, K, seed=seed + 1),
        "k": keys,
        "v": rand(B, T, N, H, V, seed=seed + 3),
        "beta": (min(2, 8 / N) * rand(B, T, N, H, seed=seed + 4).sigmoid()).float().double(),
        "log_decay": -strength * rand(B, T, H, seed=seed).abs(),
        "state": rand(B, H, K, V, seed=seed + 5),
    }


def op_of(inputs: Inputs) -> Callable[..., Attended]:
    return delta_rule if "beta" in inputs else gated_linear_attention


def run(
    inputs: Inputs, dtype: torch.dtype = torch.float64, device: str = "cpu", **options: Any
) -> dict[str, Tensor]:
    """y, state, and the gradients of a random weighing of both at every input, by name."""
    leaves = {name: x.to(device, dtype).detach().requires_grad_() for name, x in inputs.items()}
    y, state = op_of(inputs)(**leaves, **options)
    weights = rand(*y.shape, seed=99).to(y), rand(*state.shape, seed=98).to(state)
    torch.autograd.backward((y, state), weights)
    grads = {f"grad of {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {name: x.detach().cpu() for name, x in {"y": y, "state": state, **grads}.items()}


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Every tensor to `tolerance` of its own largest number."""
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        difference = (found[name].double() - expected.double()).abs()
        assert found[name].shape == expected.shape, name
        assert not expected.numel() or float(difference.max()) <= tolerance * scale, (name, difference.max())


def gated_by_pairs(x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """No recursion: every frame reads every earlier one, and the first state, through the decays between."""
    q, k, v, g, state = (x[name].numpy() for name in ("q", "k", "v", "log_decay", "state"))
    (B, T, H, _), bonus = q.shape, x["bonus"].numpy() if "bonus" in x else None
    a = np.exp(np.broadcast_to(g if g.ndim == 4 else g[..., None], q.shape))
    y, last = np.zeros(v.shape), np.zeros(state.shape)
    for b, h in np.ndindex(B, H):
        for t in range(T):
            end = t + 1 if bonus is None else t
            for s in range(end):
                kept = a[b, s + 1 : end, h].prod(axis=0)
                y[b, t, h] += (q[b, t, h] * k[b, s, h] * kept).sum() * v[b, s, h]
            if bonus is not None:
                y[b, t, h] += (q[b, t, h] * bonus[h] * k[b, t, h]).sum() * v[b, t, h]
            y[b, t, h] += (q[b, t, h] * a[b, :end, h].prod(axis=0)) @ state[b, h]
            last[b, h] += np.outer(k[b, t, h] * a[b, t + 1 :, h].prod(axis=0), v[b, t, h])
        last[b, h] += a[b, :, h].prod(axis=0)[:, None] * state[b, h]
    return y, last


def delta_by_matrices(x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Householder matrices written out: S = (I - beta k k^T) S + beta k v^T."""
    q, k, v, beta, g, state = (x[name].numpy() for name in ("q", "k", "v", "beta", "log_decay", "state"))
    B, T, N, H, K = k.shape
    y, last = np.zeros((B, T, H, v.shape[-1])), state.copy()
    for b, h in np.ndindex(B, H):
        for t in range(T):
            last[b, h] *= math.exp(g[b, t, h])
            for n in range(N):
                rate, key = beta[b, t, n, h], k[b, t, n, h]
                last[b, h] = (np.eye(K) - rate * np.outer(key, key)) @ last[b, h]
                last[b, h] += rate * np.outer(key, v[b, t, n, h])
            y[b, t, h] = last[b, h].T @ q[b, t, h]
    return y, last
