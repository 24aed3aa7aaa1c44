"""Self-attention over frames with relative positions, for whole utterances and for chunks with a cache.

    y = W_o softmax((q k^T + position) / sqrt(d)) v          q, k, v = W norm(x)

Positions are relative in the first two, so what a frame hears does not depend on when its stream began:

rotary     q and k are rotated by their position: q_i k_j depends on i - j (Su et al. 2021, RoFormer). No
           parameters, and the fast kernels of scaled_dot_product_attention serve it.
relative   (q_i + u) k_j + (q_i + v) W_p r_{i-j}, r sinusoids of the distance, u and v learnt (Dai et al.
           2019, Transformer-XL; Gulati et al. 2020, Conformer).
none       what is attended to says itself where it is (asr/layers/sinusoids.py).

Dropout acts on what attention gives and not on its weights, which the fast kernels never store.

A chunk attends to the keys of the chunks before it, which are kept unrotated, and to itself; offline is one
large chunk with a mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.layers.dropout import Dropout
from asr.layers.residual import Branch

PositionKind = Literal["rotary", "relative", "none"]


@dataclass(frozen=True)
class AttentionState:
    """Keys and values of the frames before a chunk, the latest last."""

    keys: Tensor
    """(B, L, heads, dim / heads)."""
    values: Tensor


class Attended(NamedTuple):
    """What attention gives."""

    y: Tensor
    """(B, T, dim), without the residual."""
    state: AttentionState | None


class Positions(NamedTuple):
    """Tables of the positions of T queries behind L cached keys, shared by all layers."""

    rotation: tuple[Tensor, Tensor] | None
    """cos and sin (L + T, dim / heads / 2) of positions -L .. T-1."""
    distances: Tensor | None
    """(L + 2 T - 1, dim): sinusoids of the distances L + T - 1 .. 1 - T."""


def positions(kind: PositionKind, dim: int, heads: int, cached: int, frames: int, like: Tensor) -> Positions:
    """The tables for `frames` queries behind `cached` keys, in the dtype and on the device of `like`."""
    if kind == "none":
        return Positions(None, None)
    if kind == "rotary":
        width = dim // heads // 2
        angle = angles(torch.arange(-cached, frames, device=like.device), width)
        return Positions((angle.cos().to(like.dtype), angle.sin().to(like.dtype)), None)
    distance = torch.arange(cached + frames - 1, -frames, -1, device=like.device)
    angle = angles(distance, dim // 2)
    return Positions(None, torch.cat((angle.sin(), angle.cos()), dim=1).to(like.dtype))


class SelfAttention(Branch):
    """Pre-norm multi-head self-attention; see the module docstring."""

    def __init__(self, dim: int, heads: int, kind: PositionKind, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        if kind == "relative":
            self.distance = nn.Linear(dim, dim, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
            self.distance_bias = nn.Parameter(torch.zeros(heads, dim // heads))

    def forward(
        self, x: Tensor, mask: Tensor | None, where: Positions, state: AttentionState | None = None
    ) -> Attended:
        """Attend from x (B, T, dim) to the L cached frames of `state` and to itself.

        mask: (B or 1, T or 1, L + T) bool, True where a frame may attend; every row needs one. None: to all.
        """
        q, k, v = self.project(x)
        if state is not None:
            k, v = torch.cat((state.keys, k), dim=1), torch.cat((state.values, v), dim=1)
            kept = state.keys.shape[1]
            state = AttentionState(k[:, k.shape[1] - kept :], v[:, v.shape[1] - kept :])
        return Attended(self.attend(q, k, v, mask, where), state)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, heads, dim / heads) of x (B, T, dim)."""
        shape = *x.shape[:2], 3, self.heads, x.shape[2] // self.heads
        q, k, v = self.qkv(self.norm(x)).view(shape).unbind(2)
        # The backward needs v; as a view it would keep what q and k were before their rotation.
        return q, k, v.contiguous() if torch.is_grad_enabled() else v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, where: Positions) -> Tensor:
        """(B, T, dim) from T queries, the last of which stands beside the last of the keys; mask as above."""
        T = q.shape[1]
        bias = None if mask is None else mask[:, None]
        if where.rotation is not None:
            q, k = rotated(q, where.rotation), rotated(k, where.rotation)
        elif where.distances is not None:
            far = self.distance(where.distances).view(-1, *q.shape[2:])
            bias = _masked(self._distance_scores(q, far, k.shape[1]), bias)
            q = q + self.content_bias
        y = _attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias)
        y = y.transpose(1, 2).reshape(len(y), T, self.out.in_features)
        out: Tensor = self.dropout(self.out(y))
        return out

    def initial_state(
        self, batch: int, history: int, device: torch.device | None, dtype: torch.dtype
    ) -> AttentionState:
        """Nothing heard: `history` frames that the mask has to hide."""
        width = self.out.in_features // self.heads
        zeros = torch.zeros(batch, history, self.heads, width, device=device, dtype=dtype)
        return AttentionState(zeros, zeros)

    def _distance_scores(self, q: Tensor, far: Tensor, keys: int) -> Tensor:
        """(B, heads, T, keys): (q_i + v) r_{i-j} / sqrt(d), r (distances, heads, d) from the farthest on."""
        T = q.shape[1]
        by_distance = torch.einsum("bthd,rhd->bhtr", q + self.distance_bias, far) / math.sqrt(q.shape[-1])
        # Row i, of T, needs the distances from (keys - T + i) down to (i - T + 1): those from T - 1 - i on.
        padded = functional.pad(by_distance, (0, 1)).flatten(2)
        shifted = padded[..., T - 1 : T - 1 + T * (keys + T - 1)]
        return shifted.view(*q.shape[:1], q.shape[2], T, keys + T - 1)[..., :keys]


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """torch's, with q (B, heads, T, d), or spelt out where that is faster and its scores are few.

    Short utterances in bfloat16 on a CPU: forward and backward of 16 times 63 frames, 4 heads, 64 wide, take
    31 ms with torch's and 6 ms spelt out; beyond 128 frames torch's is no slower.
    """
    short = max(q.shape[2], k.shape[2]) <= 128
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not short or not torch.is_grad_enabled():
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return scores.softmax(-1) @ v


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def angles(position: Tensor, width: int) -> Tensor:
    """(n, width) float64: position / 10000^(i / width). In float32 far positions would lie beside theirs."""
    exponent = torch.arange(width, dtype=torch.float64, device=position.device) / width
    return position[:, None] * torch.exp(-math.log(10000.0) * exponent)


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, T, heads, d) turned by the last T positions of the table, `Positions.rotation`."""
    cos, sin = (table[len(table) - x.shape[1] :, None] for table in rotation)
    return turned(x, cos, sin)


def turned(x: Tensor, cos: Tensor, sin: Tensor, dim: int = -1) -> Tensor:
    """x with the two halves of `dim`, real and imaginary parts, turned by the angles of `cos` and `sin`."""
    a, b = x.chunk(2, dim=dim)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=dim)
