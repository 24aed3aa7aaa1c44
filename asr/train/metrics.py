"""What a run writes down while it runs: log.jsonl, tensorboard, and where the time goes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asr.config import write_atomically

LOG = "log.jsonl"


class RunLog:
    """Append-only records {kind, step, ...} in log.jsonl, their numbers also in tensorboard."""

    def __init__(self, directory: Path, step: int) -> None:
        """Open the log of a run that stands at `step`; records of steps that were lost are dropped."""
        # Importing tensorboard costs a second, which only training should pay.
        from torch.utils.tensorboard import SummaryWriter

        self._path = directory / LOG
        kept = [record for record in read_log(directory) if record["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a record of `kind` (train, dev, skip, ...)."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()


class NoLog:
    """The log of a process that writes none."""

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_log(directory: Path) -> list[dict[str, Any]]:
    """All whole records of a run's log; the half line of a crash is left out."""
    path = directory / LOG
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class Stopwatch:
    """Seconds spent in named parts of the loop."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time of the block for `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """Share of each part in the total, largest first."""
        total = sum(self.seconds.values()) or 1.0
        return {k: v / total for k, v in sorted(self.seconds.items(), key=lambda item: -item[1])}
