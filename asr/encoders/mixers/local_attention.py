"""Local attention: every frame attends to itself and to the `window` frames before it.

    y_t = W_o softmax(q_t k_s / sqrt(d)) v_s,  t - window <= s <= t      q, k, v = W x, q and k rotated

The attention of Griffin (De et al. 2024) and of Longformer (Beltagy et al. 2020): the recurrences blur what
was said, a window keeps the last seconds exactly. Several query heads share a key and value head (Shazeer
2019, "Fast transformer decoding"); `key_heads` as many as `heads` is ordinary attention. A mixer of its own
and not an option of rg_lru.py: it shares neither a layer nor a state with it, and other recurrences alternate
with attention just as well.

Positions are rotary, of q and k relative to each other only; keys are kept unrotated, so what a frame hears
does not depend on when its stream began. A piece is treated in blocks of at most `window` queries, each
beside the keys that any of them may hear: time and memory are linear in T.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.attention import positions, rotated
from asr.layers.heads import head_width
from asr.layers.window import gather_from
from asr.state import wide

State = tuple[Tensor, Tensor, Tensor]


class LocalAttentionConfig(MixerConfig):
    """Attention to the last frames."""

    kind: Literal["local_attention"] = "local_attention"
    window: int = Field(64, ge=1, le=4096)
    """Frames before its own that a frame hears."""
    heads: int = Field(4, ge=1)
    key_heads: int = Field(1, ge=1)
    """Heads of keys and values, each for as many of the `heads`."""

    @model_validator(mode="after")
    def _shared_evenly(self) -> Self:
        if self.heads % self.key_heads:
            raise ValueError(
                f"expected heads a multiple of key_heads, found {self.heads} and {self.key_heads}"
            )
        return self

    def build(self, dim: int) -> LocalAttention:
        """See MixerConfig.build."""
        head_width(dim, self.heads, even=True)
        return LocalAttention(dim, self.window, self.heads, self.key_heads)


class LocalAttention(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, window: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.window, self.heads, self.key_heads, self.width = window, heads, key_heads, dim // heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * key_heads * self.width)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None, state: State) -> MixerOutput:
        """See Mixer.forward.

        The state is the keys and values of the last frames, the latest last, each (B, window, key_heads, d),
        and how many of them there are (B,).
        """
        T = x.shape[1]
        if T == 0:
            return MixerOutput(x, state)
        keys, values, there = state
        q = self.query(x).view(len(x), T, self.heads, self.width)
        k, v = self.key_value(x).view(len(x), T, 2, self.key_heads, self.width).unbind(2)
        k, v = torch.cat((keys.to(k.dtype), k), dim=1), torch.cat((values.to(v.dtype), v), dim=1)
        y = self._attend(q, k, v, there)
        ends = torch.full_like(there, T) if lengths is None else lengths
        keys, values = self._last(k, ends).to(keys.dtype), self._last(v, ends).to(values.dtype)
        return MixerOutput(self.out(y), (keys, values, (there + ends).clamp(max=self.window)))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """See Mixer.initial_state."""
        nothing = torch.zeros(batch, self.window, self.key_heads, self.width, device=device, dtype=dtype)
        return nothing, nothing, torch.zeros(batch, dtype=torch.int64, device=device)

    def _last(self, frames: Tensor, ends: Tensor) -> Tensor:
        """The `window` frames of each stream before its end."""
        last = gather_from(frames.flatten(2), ends, self.window)
        return last.view(*last.shape[:2], *frames.shape[2:])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
        """(B, T, dim) of T queries, from window + T keys, of the first `window` the last `there` (B,)."""
        B, T, heads, width = q.shape
        # Half precision would round the angles of far positions, and with them the distances.
        like = q.new_empty((), dtype=wide(q.dtype))
        rotation = positions("rotary", heads * width, heads, self.window, T, like).rotation
        assert rotation is not None
        q, k = rotated(q, rotation).to(v.dtype), rotated(k, rotation).to(v.dtype)
        size = min(self.window, T)
        blocks = -(-T // size)
        q, k, v = (functional.pad(z, (0, 0, 0, 0, 0, blocks * size - T)) for z in (q, k, v))
        y = functional.scaled_dot_product_attention(
            q.reshape(B * blocks, size, heads, width).transpose(1, 2),
            self._beside(k, size),
            self._beside(v, size),
            attn_mask=self._mask(there, blocks, size),
            enable_gqa=self.key_heads < heads,
        )
        return y.transpose(1, 2).reshape(B, blocks * size, heads * width)[:, :T]

    def _beside(self, frames: Tensor, size: int) -> Tensor:
        """(B * blocks, key_heads, window + size, d): what the queries of each block may hear."""
        return frames.unfold(1, self.window + size, size).transpose(-1, -2).flatten(0, 1)

    def _mask(self, there: Tensor, blocks: int, size: int) -> Tensor:
        """(B * blocks, 1, size, window + size), True where a query hears a key; always its own."""
        key = torch.arange(self.window + size, device=there.device)
        query, block = key[:size, None], torch.arange(blocks, device=there.device)[:, None]
        near = (key >= query) & (key <= query + self.window)
        begun = block * size + key >= self.window - there[:, None, None]
        return (near & begun[:, :, None]).flatten(0, 1)[:, None]


CONFIG = LocalAttentionConfig
