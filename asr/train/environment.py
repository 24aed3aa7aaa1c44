"""Where and with what a run was made: for cards, reports and exact repetition."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from asr.config import Config
from asr.train.distributed import World

PACKAGES = ("asr-transducer", "torch", "lhotse", "numpy", "sentencepiece", "soundfile", "soxr")


class Environment(Config):
    """Software, hardware and time of a run."""

    started: str
    """ISO 8601, UTC."""
    commit: str
    """Git commit of the toolkit with `+changes` if the tree was not clean, or `unknown`."""
    python: str
    versions: dict[str, str]
    hardware: str


def describe_environment(world: World) -> Environment:
    """Ask git, the packages and the machine; never fails."""
    return Environment(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        hardware=_hardware(world.device, world.size),
    )


def _commit() -> str:
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware(device: torch.device, processes: int) -> str:
    cpu = f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    if processes > 1:
        cpu = f"{processes} processes, {cpu}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({cpu})"
    return cpu
