"""What a frame may attend to: the whole utterance, or its chunk and some chunks before it.

    full      every frame of the utterance                                    chunk None
    chunks    the frames of its own chunk and of the `left_chunks` before     chunk n
    causal    the frames before it and itself                                 chunk 1

In chunks, a frame sees the rest of its chunk and nothing behind it, in every layer, so the lookahead does not
grow with depth (Zhang et al. 2020, "Unified streaming and non-streaming two-pass end-to-end model", WeNet;
Noroozi et al. 2023, "Stateful Conformer with cache-based inference"). One network can be trained with many
contexts, drawn batch by batch, and used with any of them.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from asr.config import Config


class ContextConfig(Config):
    """What attention and convolution see, in encoder frames."""

    chunk: int | None = Field(None, ge=1)
    """Frames that are heard before the first of them is answered; None waits for the whole utterance."""
    left_chunks: int | None = Field(None, ge=0)
    """Chunks of history that are remembered; None remembers all, which takes whole utterances."""

    @model_validator(mode="after")
    def _history_of_chunks(self) -> ContextConfig:
        if self.chunk is None and self.left_chunks is not None:
            raise ValueError(
                f"left_chunks={self.left_chunks} is a history of chunks, and chunk is None (the whole "
                "utterance): set chunk, or left_chunks to None"
            )
        return self

    @property
    def streaming(self) -> bool:
        """Whether live audio can be heard with a state of constant size."""
        return self.chunk is not None and self.left_chunks is not None

    @property
    def history(self) -> int:
        """Frames of history, for streams."""
        assert self.chunk is not None
        assert self.left_chunks is not None
        return self.chunk * self.left_chunks

    def pooled(self, factor: int) -> ContextConfig:
        """The same in frames that are `factor` times as long; the chunk is a multiple of it."""
        if self.chunk is None or factor == 1:
            return self
        assert self.chunk % factor == 0
        return ContextConfig(chunk=self.chunk // factor, left_chunks=self.left_chunks)

    def mask(self, frames: int, device: torch.device | None = None) -> Tensor:
        """(T, T) bool: whether frame i (row) may attend to frame j; True everywhere in full context."""
        if self.chunk is None:
            return torch.ones(frames, frames, dtype=torch.bool, device=device)
        number = torch.arange(frames, device=device) // self.chunk
        behind = number[:, None] - number[None]
        seen = behind >= 0
        return seen if self.left_chunks is None else seen & (behind <= self.left_chunks)
