"""What a sweep prints, and how often it writes in mid-run."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from common.cli import print_line

# In mid-run, an output is written again after this many times as long as it took, and after this many seconds.
PAUSE_TIMES, PAUSE_SECONDS = 20, 1.0


def say(line: str) -> None:
    """Prints a line on standard output, above a progress bar."""
    with tqdm.external_write_mode(sys.stdout):
        print_line(line)


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
