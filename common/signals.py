"""Signals, which end a run after its state is saved."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A launcher may repeat a signal that the terminal has sent: a second one within this many seconds is ignored.
_REPEATED_SIGNAL_SECONDS = 1


class Interrupted(BaseException):
    """A signal (number, message) ended the run, and everything was saved. Exit status 128 + the number.

    A BaseException: `except Exception` must not catch it.
    """


class Stop:
    """Whether SIGINT, SIGTERM or SIGHUP was received, and its `number`."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Records the first SIGINT, SIGTERM or SIGHUP, so that everything can be saved. A later one ends the process."""
    stop, noted = Stop(), 0.0

    def note(number: int, _frame: Any) -> None:
        nonlocal noted
        if not stop:
            stop.number, noted = number, time.monotonic()
        elif time.monotonic() - noted > _REPEATED_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # A process that a script starts in the background ignores SIGINT, and one that nohup starts SIGHUP.
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    previous = {number: signal.signal(number, note) for number in signals if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
