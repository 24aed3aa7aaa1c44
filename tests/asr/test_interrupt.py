"""Signals stop long work after the step in hand, and end what only waits at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from asr.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_goes_on_to_its_end(number: signal.Signals) -> None:
    done = []
    with Interrupt() as interrupt:
        for item in interrupt.until(range(10)):
            if item == 3:
                signal.raise_signal(number)
            done.append(item)
    assert done == [0, 1, 2, 3]
    assert interrupt.requested


def test_a_wait_ends_at_once() -> None:
    def slow() -> Iterator[int]:
        yield 1
        time.sleep(60)
        yield 2

    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with Interrupt() as interrupt:
        assert list(interrupt.until(slow())) == [1]
    assert interrupt.requested
    assert time.monotonic() - begun < 30


def test_a_second_signal_stops_work() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupt.requested


def test_items_that_end_by_themselves_and_errors_of_their_source() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with Interrupt() as interrupt:
        assert list(interrupt.until([1, 2])) == [1, 2]
        items = interrupt.until(broken())
        assert next(items) == 1
        with pytest.raises(ValueError, match="broken"):
            next(items)
        # After a wait that failed, a signal is a request again.
        signal.raise_signal(signal.SIGINT)
    assert interrupt.requested
