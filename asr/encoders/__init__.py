"""Encoders: feature frames to encoder frames, offline and streaming through one contract (`base.py`)."""

from __future__ import annotations

from asr.encoders.base import Encoder, EncoderOutput
from asr.encoders.lstm import LstmEncoder, LstmEncoderConfig

EncoderConfig = LstmEncoderConfig
"""Every encoder's configuration; `kind` tells them apart."""


def build_encoder(config: EncoderConfig, input_dim: int, frame_shift_s: float) -> Encoder:
    """The encoder that `config` describes, for features of `input_dim` bins every `frame_shift_s` seconds."""
    return LstmEncoder(config, input_dim, frame_shift_s)


__all__ = ["Encoder", "EncoderConfig", "EncoderOutput", "LstmEncoder", "LstmEncoderConfig", "build_encoder"]
