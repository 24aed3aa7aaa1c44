"""Ctrl-C and SIGTERM ask a long job to stop after the step in hand; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")


class Interrupt:
    """Context manager: `requested` turns True on the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():
            return self  # signals reach the main thread only; whoever works elsewhere stops it there
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """The items until the first signal; it ends a wait for the next item, but no work on the last one."""
        iterator = iter(items)
        try:
            while not self.requested:
                self._waiting = True
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                self._waiting = False
                yield item
        except KeyboardInterrupt:
            self.requested = True
        finally:
            self._waiting = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again or self._waiting:
            raise KeyboardInterrupt
