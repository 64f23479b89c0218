"""Pictures of experiments' metrics, drawn by processes of their own while the training goes on.

Only these import matplotlib, and they do not import torch.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.plotting.thinning import visible_points

if TYPE_CHECKING:
    from common.training.history import History

# Picture → label → epochs (n,) and values (n,).
Lines = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
Then = Callable[[OSError | None], None]

_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from common.plotting.metrics import main; main()"


def metric_lines(history: "History", pictures: Mapping[str, str]) -> Lines:
    """What is drawn of a history, thinned to what can be seen: the metrics of `pictures` (picture → pattern of their
    names) together, each of the others in a picture of its own name.
    """
    lines: Lines = {}
    for kind, metrics in (("train", history.train), ("validation", history.validation)):
        for metric, series in metrics.items():
            name = next((name for name, pattern in pictures.items() if re.fullmatch(pattern, metric)), metric)
            finite = np.isfinite(series.values)
            epochs, values = series.epochs[finite], series.values[finite].astype(np.float64)
            shown = visible_points(epochs, values)
            lines.setdefault(name, {})[f"{kind}_{metric}"] = epochs[shown], values[shown]
    return lines


class PictureProcesses:
    """`number` processes that draw. They end with this one, whatever ends this one, and leave signals to it."""

    def __init__(self, number: int = 1):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the processes)
        # A new process inherits the signals that are held back.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        command = [sys.executable, "-c", _COMMAND]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        try:
            self._processes = [subprocess.Popen(command, **pipes) for _ in range(number)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for process in self._processes:
            os.set_blocking(process.stdout.fileno(), False)
        # Of each process, what to do after each of its pictures that are not drawn yet, and what it said since.
        self._waiting: dict[subprocess.Popen, deque[Then]] = {process: deque() for process in self._processes}
        self._begun = dict.fromkeys(self._processes, b"")
        self._turns = cycle(self._processes)

    @property
    def pending(self) -> int:
        """How many calls of `draw()` are not done."""
        return sum(map(len, self._waiting.values()))

    def draw(self, lines: Lines, directory: Path, then: Then = lambda error: None) -> None:
        """Has pictures drawn into `directory`, some time soon. After that, `seconds()` or `close()` calls `then` with
        None, or with the OSError that says why they could not be drawn.
        """
        process = next(self._turns)
        self._waiting[process].append(then)
        # It may not be able to say what it has done until somebody listens, nor, until then, to take more.
        self._listen(process)
        with suppress(BrokenPipeError):  # `seconds()` sees that the process has ended
            pickle.dump((lines, directory.resolve()), process.stdin)
            process.stdin.flush()

    def seconds(self) -> list[float]:
        """How long those took that were done since the last call, one number for each call of `draw()`."""
        costs = []
        for process in self._processes:
            ended = self._listen(process)
            *lines, self._begun[process] = self._begun[process].split(b"\n")
            for line in lines:
                cost, _, problem = line.decode(errors="replace").partition(" ")
                costs.append(float(cost))
                self._waiting[process].popleft()(OSError(f"drawing failed: {problem}") if problem else None)
            if ended and self._waiting[process]:
                error = self._failure(process)
                while self._waiting[process]:
                    self._waiting[process].popleft()(error)
        return costs

    def _listen(self, process: subprocess.Popen) -> bool:
        """Notes what a process says. Whether its output is closed."""
        answer = process.stdout.read()
        self._begun[process] += answer or b""
        return answer == b""

    def close(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Waits until everything is drawn, or until `give_up()` holds; then what is left is not drawn, and its `then`
        not called.
        """
        while self.pending and not give_up():
            self.seconds()
            time.sleep(0.01)
        for process in self._processes:
            if self._waiting[process]:
                process.kill()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()

    def _failure(self, process: subprocess.Popen) -> OSError:
        process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return OSError(f"drawing failed: {lines[-1] if lines else f'exit status {process.returncode}'}")
