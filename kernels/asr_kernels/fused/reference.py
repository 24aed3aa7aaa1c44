"""The joiner as it is written: all logits at once, differentiable by autograd.

For every frame t of the encoder and every label count u of the predictor (Graves et al. 2013, "Speech
recognition with deep recurrent neural networks", section 3.2, the output network of the transducer)::

    logits(t, u) = W activation(encoder_t + predictor_u) + bias

(B, T, U+1, V) numbers and as many activations as (B, T, U+1, D): what the fast paths never hold.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def joiner_logits(
    encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """Logits (B, T, U+1, V) of encoder (B, T, D), predictor (B, U+1, D), weight (V, D) and bias (V,).

    A predictor (B, T, W, D), with rows of its own for every frame, gives the logits (B, T, W, V) of a band.
    """
    total = encoder[:, :, None] + (predictor if predictor.ndim == 4 else predictor[:, None])
    hidden = torch.tanh(total) if activation == "tanh" else torch.relu(total)
    return functional.linear(hidden, weight, bias)


def band(predictor: Tensor, first: Tensor, width: int) -> Tensor:
    """Rows first[b, t] to first[b, t] + width - 1 of predictor (B, U+1, D) for every frame: (B, T, width, D).

    Places beyond the last row hold the last row.
    """
    u = (first[..., None] + torch.arange(width, device=first.device)).clamp(0, predictor.shape[1] - 1)
    return predictor[torch.arange(len(predictor), device=first.device)[:, None, None], u]
