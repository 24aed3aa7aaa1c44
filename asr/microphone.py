"""Samples from a microphone, through PortAudio (extra `mic`: sounddevice).

Blocks are taken from a queue that PortAudio fills from a thread of its own; what a slow reader leaves
there is not lost, up to QUEUE_S seconds, beyond which it is an error and not a silent gap. A device that
gives nothing for SILENT_S seconds is taken to be gone.
"""

from __future__ import annotations

import importlib.util
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from asr.audio import Samples
from asr.errors import AudioError, MissingExtraError
from asr.lengths import seconds_to_samples

QUEUE_S = 30.0
SILENT_S = 3.0


@contextmanager
def microphone(
    sample_rate: int, block_s: float, device: str | int | None = None
) -> Iterator[Iterator[Samples]]:
    """Open an input device; gives mono blocks (N,) of `block_s` seconds until the caller stops.

    device: a number or part of a name, as `devices` lists them; None is the system's choice. Raises
    MissingExtraError without sounddevice, AudioError if PortAudio or a device is missing or does not record
    at this rate; the blocks raise AudioError if the device goes away or the reader is too slow.
    """
    sounddevice = _sounddevice()
    blocks: queue.SimpleQueue[Samples | None] = queue.SimpleQueue()
    most, lost = max(1, round(QUEUE_S / block_s)), False

    def take(samples: Any, frames: int, time: Any, status: Any) -> None:
        nonlocal lost
        if lost:
            return
        lost = bool(status.input_overflow) or blocks.qsize() >= most
        blocks.put(None if lost else samples[:, 0].copy())

    try:
        stream = sounddevice.InputStream(
            samplerate=sample_rate,
            blocksize=seconds_to_samples(block_s, sample_rate),
            device=_number(device),
            channels=1,
            dtype="float32",
            callback=take,
        )
        stream.start()
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(_not_opened(sounddevice, device, sample_rate, error)) from error
    try:
        yield _blocks(blocks)
    finally:
        stream.close()


def devices() -> list[str]:
    """One line for each input device; raises as `microphone` does."""
    return [f"{d['index']}  {d['name']}  ({_rate(d)} Hz)" for d in _inputs(_sounddevice())]


def _blocks(blocks: queue.SimpleQueue[Samples | None]) -> Iterator[Samples]:
    """What the queue brings; None says that something is missing from here on."""
    while True:
        try:
            block = blocks.get(timeout=SILENT_S)
        except queue.Empty:
            raise AudioError(
                f"microphone: no samples for {SILENT_S:g} s; is the device still plugged in?"
            ) from None
        if block is None:
            raise AudioError(
                "microphone: samples were lost: the machine is too slow for this model, or too busy"
            )
        yield np.asarray(block, np.float32)


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
    try:
        return [device for device in sounddevice.query_devices() if device["max_input_channels"] > 0]
    except sounddevice.PortAudioError as error:
        reason = " ".join(str(error).split())
        raise AudioError(f"microphone: PortAudio cannot list the devices ({reason})") from error


def _number(device: str | int | None) -> str | int | None:
    return int(device) if isinstance(device, str) and device.isdigit() else device


def _rate(device: dict[str, Any]) -> str:
    return f"{device['default_samplerate']:.0f}"


def _not_opened(sounddevice: ModuleType, device: str | int | None, sample_rate: int, error: Exception) -> str:
    """What was wanted, what there is, and what to do."""
    wanted = "a microphone" if device is None else f"an input device {device!r}"
    known = [f"{d['index']} {d['name']} ({_rate(d)} Hz)" for d in _inputs(sounddevice)]
    reason = " ".join(str(error).split())
    if "sample rate" in reason.lower():
        advice = "choose one of these rates with --rate, the model takes any"
    elif known:
        advice = "choose one with --device"
    else:
        advice = "plug one in"
    found = ", ".join(known) if known else "no input device at all"
    return f"microphone: expected {wanted} at {sample_rate} Hz, found {found} ({reason}); {advice}"
