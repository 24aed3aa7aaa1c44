"""Encoders: feature frames to encoder frames, offline and streaming through one contract (`base.py`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asr.encoders.base import Encoder, EncoderOutput
from asr.encoders.chunked import ChunkedEncoder
from asr.encoders.conformer import ConformerEncoder, ConformerEncoderConfig
from asr.encoders.latency import Latency
from asr.encoders.lstm import LstmEncoder, LstmEncoderConfig
from asr.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from asr.encoders.transformer import TransformerEncoder, TransformerEncoderConfig
from asr.encoders.whisper import WhisperEncoder, WhisperEncoderConfig
from asr.encoders.windowed import WindowConfig, WindowedEncoder, windows_suiting

AnyEncoderConfig = (
    LstmEncoderConfig
    | ConformerEncoderConfig
    | TransformerEncoderConfig
    | RecurrentEncoderConfig
    | WhisperEncoderConfig
)
EncoderConfig = Annotated[
    AnyEncoderConfig,
    Field(discriminator="kind"),
]
"""Every encoder's configuration; `kind` tells them apart."""


def build_encoder(config: AnyEncoderConfig, input_dim: int, frame_shift_s: float) -> Encoder:
    """The encoder that `config` describes, for features of `input_dim` bins every `frame_shift_s` seconds."""
    if isinstance(config, ConformerEncoderConfig):
        return ConformerEncoder(config, input_dim, frame_shift_s)
    if isinstance(config, TransformerEncoderConfig):
        return TransformerEncoder(config, input_dim, frame_shift_s)
    if isinstance(config, RecurrentEncoderConfig):
        return RecurrentEncoder(config, input_dim, frame_shift_s)
    if isinstance(config, WhisperEncoderConfig):
        return WhisperEncoder(config, input_dim, frame_shift_s)
    return LstmEncoder(config, input_dim, frame_shift_s)


__all__ = [
    "ChunkedEncoder",
    "ConformerEncoder",
    "ConformerEncoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderOutput",
    "Latency",
    "LstmEncoder",
    "LstmEncoderConfig",
    "RecurrentEncoder",
    "RecurrentEncoderConfig",
    "TransformerEncoder",
    "TransformerEncoderConfig",
    "WhisperEncoder",
    "WhisperEncoderConfig",
    "WindowConfig",
    "WindowedEncoder",
    "build_encoder",
    "windows_suiting",
]
