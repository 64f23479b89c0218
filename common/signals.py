"""Signals, which end a run after its state is saved."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INTERRUPTED = "interrupted; what was written so far is kept"
# A launcher may repeat a signal that the terminal has sent: a second one within this many seconds is ignored.
_REPEATED_SIGNAL_SECONDS = 2.5


class Interrupted(BaseException):
    """A signal (number, message) ended the run, and everything was saved. Exit status 128 + the number.

    A BaseException: `except Exception` must not catch it.
    """


class Stop:
    """Whether SIGINT, SIGTERM or SIGHUP was received, its `number`, and when: the `time` on the monotonic clock."""

    number, time, _limit = None, 0.0, None

    def __bool__(self) -> bool:
        return self.number is not None

    def seconds(self) -> float:
        """Returns the seconds since the signal; 0 if there was none."""
        return time.monotonic() - self.time if self else 0.0

    @contextmanager
    def raising(self, after: float = 0.0) -> Iterator[None]:
        """Raises Interrupted in the block, which must write nothing, `after` seconds after a signal."""
        self._limit = after
        try:
            self._raise_if_late()
            yield
        finally:
            self._limit = None
            if self:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _raise_if_late(self) -> None:
        """Raises Interrupted if the block's time is over; otherwise, sets an alarm that calls this again."""
        if self and self._limit is not None:
            left = self._limit - self.seconds()
            if left <= 0:
                raise Interrupted(self.number, INTERRUPTED)
            signal.setitimer(signal.ITIMER_REAL, left)


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Records the first SIGINT, SIGTERM or SIGHUP, so that everything can be saved. A later one ends the process."""
    stop = Stop()

    def note(number: int, _frame: Any) -> None:
        if stop.seconds() > _REPEATED_SIGNAL_SECONDS:
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)
        elif not stop:
            stop.number, stop.time = number, time.monotonic()
            stop._raise_if_late()

    is_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_main else ()
    # A process that a script starts in the background ignores SIGINT, and one that nohup starts SIGHUP.
    handled = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in handled}
    if handled:
        previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: stop._raise_if_late())
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Makes SIGINT, SIGTERM and SIGHUP raise Interrupted inside the block, which must write nothing."""
    with signals_noted() as stop:
        with stop.raising():
            yield
        if stop:  # the block dropped the exception
            raise Interrupted(stop.number, INTERRUPTED)


def end_imports_at_once() -> None:
    """Makes Ctrl-C during an import end the process with one line, unless something else handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt. During an import, ends the process: a large package may crash on an exception, or
    ignore it.
    """
    while frame and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    if not frame:
        raise KeyboardInterrupt
    os.write(sys.stderr.fileno(), f"{Path(sys.argv[0]).name}: {INTERRUPTED}\n".encode())
    os._exit(130)
