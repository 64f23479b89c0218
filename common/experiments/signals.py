"""Signals that end a run: what is running is saved first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.cli import Interrupted

# A launcher may pass on what the terminal has sent already: for so many seconds a second signal changes nothing.
_PATIENCE = 2.5


class Stop:
    """Whether SIGINT or SIGTERM has come: its `number`, and the `time` on the monotonic clock."""

    number: int | None = None
    time = 0.0
    _raises = False

    def __bool__(self) -> bool:
        return self.number is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal end what is inside, which must write nothing, with Interrupted."""
        self._raises = True
        try:
            if self:
                raise Interrupted(self.number)
            yield
        finally:
            self._raises = False


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Notes the first SIGINT or SIGTERM, so that what is running can be saved; a later one ends the process."""
    stop = Stop()
    previous = {}

    def note(number: int, _frame: Any) -> None:
        if stop and time.monotonic() > stop.time + _PATIENCE:
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)
        elif not stop:
            stop.number, stop.time = number, time.monotonic()
            if stop._raises:
                raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # Who starts it in the background may have it ignore what the terminal sends.
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
