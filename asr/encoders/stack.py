"""What encoders that attend have in common, their sizes, and how a layer of any stack is run in training."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint

from asr.config import Config
from asr.layers.attention import PositionKind
from asr.layers.heads import head_width
from asr.layers.subsampling import SubsamplingConfig


class StackConfig(Config):
    """A stack of layers with self-attention behind a subsampling."""

    dim: int = Field(256, ge=2)
    """Width of the frames."""
    heads: int = Field(4, ge=1)
    layers: int = Field(8, ge=1)
    expansion: int = Field(4, ge=1)
    """Width of the feed-forward modules, in multiples of `dim`."""
    positions: PositionKind = "rotary"
    dropout: float = Field(0.1, ge=0, lt=1)
    pool_after: tuple[int, ...] = ()
    """Layers (counted from 1) behind which the frame rate is halved."""
    checkpointing: bool = False
    """Keep only the layers' inputs in training and compute the rest again: less memory, a third more time."""
    subsampling: SubsamplingConfig = SubsamplingConfig()

    @property
    def pooling(self) -> int:
        """By how much the frames are pooled inside the stack."""
        return int(2 ** len(self.pool_after))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        head_width(self.dim, self.heads, even=True)
        pools = self.pool_after
        if len(set(pools)) < len(pools) or not all(1 <= layer <= self.layers for layer in pools):
            raise ValueError(
                f"expected layers from 1 to {self.layers} in pool_after, each once, found {pools}"
            )
        return self


def run(layer: nn.Module, *inputs: Any, again: bool) -> Any:
    """What the layer gives; with `again`, training keeps only the inputs and computes the rest again."""
    if again and layer.training:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
