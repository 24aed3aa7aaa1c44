"""Samples from a microphone, through PortAudio (extra `mic`: sounddevice).

Blocks are taken from a queue that PortAudio fills from a thread of its own; what a slow reader leaves
there is not lost, up to QUEUE_S seconds, beyond which it is an error and not a silent gap.
"""

from __future__ import annotations

import importlib.util
import queue
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from asr.audio import Samples
from asr.errors import AudioError, MissingExtraError
from asr.lengths import seconds_to_samples

QUEUE_S = 30.0


def microphone(sample_rate: int, block_s: float, device: str | int | None = None) -> Iterator[Samples]:
    """Mono blocks (N,) of `block_s` seconds until the caller stops.

    device: a number or part of a name, as `devices` lists them; None is the system's choice. Raises
    MissingExtraError without sounddevice, AudioError if PortAudio or a device is missing or the reader
    is too slow.
    """
    sounddevice = _sounddevice()
    blocks: queue.Queue[Samples | str] = queue.Queue(maxsize=max(1, round(QUEUE_S / block_s)))

    def take(samples: Any, frames: int, time: Any, status: Any) -> None:
        try:
            if status.input_overflow:
                raise queue.Full
            blocks.put_nowait(samples[:, 0].copy())
        except queue.Full:
            blocks.queue.clear()
            blocks.put_nowait("samples were lost: the machine is too slow for this model, or too busy")

    try:
        stream = sounddevice.InputStream(
            samplerate=sample_rate,
            blocksize=seconds_to_samples(block_s, sample_rate),
            device=_number(device),
            channels=1,
            dtype="float32",
            callback=take,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(_no_device(sounddevice, device, error)) from error
    with stream:
        while True:
            block = blocks.get()
            if isinstance(block, str):
                raise AudioError(f"microphone: {block}")
            yield np.asarray(block, np.float32)


def devices() -> list[str]:
    """One line for each input device; raises as `microphone` does."""
    sounddevice = _sounddevice()
    return [f"{d['index']}  {d['name']}  ({d['default_samplerate']:.0f} Hz)" for d in _inputs(sounddevice)]


def _sounddevice() -> ModuleType:
    if importlib.util.find_spec("sounddevice") is None:
        raise MissingExtraError("the microphone", "mic")
    try:
        import sounddevice
    except OSError as error:  # the library itself is not there
        raise AudioError(
            "microphone: expected the PortAudio library, found none; install it "
            "(Debian, Ubuntu: apt install libportaudio2; Fedora: dnf install portaudio)"
        ) from error
    module: ModuleType = sounddevice
    return module


def _inputs(sounddevice: ModuleType) -> list[dict[str, Any]]:
    return [device for device in sounddevice.query_devices() if device["max_input_channels"] > 0]


def _number(device: str | int | None) -> str | int | None:
    return int(device) if isinstance(device, str) and device.isdigit() else device


def _no_device(sounddevice: ModuleType, device: str | int | None, error: Exception) -> str:
    wanted = "a microphone" if device is None else f"an input device {device!r}"
    known = [f"{d['index']} {d['name']}" for d in _inputs(sounddevice)]
    found = ", ".join(known) if known else "no input device at all"
    reason = " ".join(str(error).split())
    return (
        f"microphone: expected {wanted}, found {found} ({reason}); choose one with --device, or plug one in"
    )
