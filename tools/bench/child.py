"""A recogniser in a process of its own, so that its memory and its computing time are its own.

The child first writes a line about itself, then answers recording by recording:

    to it:   {"samples": N, "state": "..."}, a line, and N float32 samples behind it
    from it: {"text": ..., "first_word_s": ..., "state": ..., "cpu_s": ..., "wall_s": ..., "peak_mib": ...}

The audio is decoded by the parent: neither its time nor its libraries count. The peak is VmHWM, because
getrusage's maximum begins with what the parent had when it made the child. Ctrl-C does not reach a child,
which is in a process group of its own: the parent lets it answer, and it ends when its input does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from asr.errors import AsrError

if TYPE_CHECKING:
    from recognisers import Recogniser

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Ready(NamedTuple):
    """What a child says of itself once its model is loaded."""

    sample_rate: int
    streaming: bool
    load_s: float
    """Seconds until the model could be used, imports included."""


class Answer(NamedTuple):
    """One recording: what was heard, and what it cost."""

    text: str
    first_word_s: float | None
    """Seconds of audio fed when a word was first shown."""
    state: str
    cpu_s: float
    """Computing time of all threads of the process."""
    wall_s: float
    peak_mib: float
    """Resident memory at most, since the process began."""


class Child:
    """Context manager: the parent's side."""

    def __init__(self, command: list[str], name: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            process_group=0,
        )

    def __enter__(self) -> Self:
        try:
            self.ready = Ready(**self._read())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hear(self, samples: npt.NDArray[np.float32], state: str) -> Answer:
        """One recording, (N,) samples in -1..1. Raises AsrError if the child gives it up."""
        assert self._process.stdin is not None
        head = json.dumps({"samples": len(samples), "state": state}) + "\n"
        with suppress(BrokenPipeError):  # how it ended is said below
            self._process.stdin.write(head.encode() + samples.astype("<f4").tobytes())
            self._process.stdin.flush()
        return Answer(**self._read())

    def close(self) -> None:
        """Let the child end; a busy one is stopped."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            status = self._process.wait()
            raise AsrError(f"{self._name}: ended without an answer (exit status {status}); see above for why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise AsrError(answer["error"])
        return answer


def serve(load: Callable[[], Recogniser]) -> None:
    """The child's side: load a recogniser and answer until the input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        begun = time.perf_counter()
        recogniser = load()
        ready = Ready(recogniser.sample_rate, recogniser.streaming, time.perf_counter() - begun)
        _say(answers, ready._asdict())
        while head := sys.stdin.buffer.readline():
            _say(answers, _answer(recogniser, json.loads(head))._asdict())
    except AsrError as error:
        _say(answers, {"error": str(error)})


def _answer(recogniser: Recogniser, head: dict[str, Any]) -> Answer:
    samples = np.frombuffer(sys.stdin.buffer.read(4 * head["samples"]), "<f4")
    wall, cpu = time.perf_counter(), time.process_time()
    heard = recogniser.hear(samples, head["state"])
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    return Answer(heard.text, heard.first_word_s, heard.state, cpu_s, wall_s, peak_mib())


def peak_mib() -> float:
    """Resident memory of this process at most, in MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
