"""What a sweep prints and logs, and how often it writes in mid-run."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from tqdm import tqdm

from common.cli import printable_lines
from common.training.trainer import Trainer

# In mid-run, an output is written again after this many times as long as it took, and after this many seconds.
PAUSE_TIMES, PAUSE_SECONDS = 20, 1.0


def say(line: str) -> None:
    """Prints a line on standard output, above a progress bar. Ignores that standard output was closed."""
    with suppress(OSError):
        tqdm.write(printable_lines(line), file=sys.stdout)
        sys.stdout.flush()


def numbers(metrics: Mapping[str, float]) -> str:
    """Metrics as text."""
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())


class Pace:
    """When something is to be done again, so that it takes a small part of the time."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PAUSE_SECONDS

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def took(self, seconds: float) -> None:
        """Records how long it took."""
        self._next = max(self._next, time.monotonic() + max(PAUSE_SECONDS, PAUSE_TIMES * seconds))


class Progress:
    """A progress bar on a terminal, and when to log: the longer the run, the less often.

    The bar counts the epochs of one experiment, or how many of several have ended: few take all of their epochs, so
    epochs would say little about the time.
    """

    def __init__(self, trainer: Trainer, quiet: bool):
        self._begin, self._total, self._first_epoch = time.monotonic(), len(trainer.running), trainer.epoch
        self._next_bar, self._next_log = 0.0, PAUSE_SECONDS
        kind = {"total": self._total, "unit": "experiment", "smoothing": 0}
        if self._total == 1:
            kind = {"total": trainer.running[0].last_epoch - trainer.epoch, "unit": "epoch", "unit_scale": True}
        self._bar = tqdm(**kind, disable=True if quiet else None)

    def show(self, trainer: Trainer) -> None:
        """Moves the bar."""
        elapsed = time.monotonic() - self._begin
        if not self._bar.disable and (elapsed >= self._next_bar or not trainer.running):
            self._next_bar = elapsed + 0.2
            one = self._total == 1
            self._bar.n = trainer.epoch - self._first_epoch if one else self._total - len(trainer.running)
            self._bar.set_postfix({} if one else {"epoch": f"{trainer.epoch + 1:,}"})

    def should_log(self) -> bool:
        """Returns whether to log now, and if so, assumes that it is done."""
        elapsed = time.monotonic() - self._begin
        if elapsed < self._next_log:
            return False
        self._next_log = elapsed + max(PAUSE_SECONDS, elapsed / 10)
        return True

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
