"""Pictures of experiments' metrics, drawn by a process of their own while the training goes on.

Only that process imports matplotlib, and it does not import torch.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.plotting.thinning import visible_points

if TYPE_CHECKING:
    from common.training.history import History

# Picture → label → epochs (n,) and values (n,).
Lines = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]

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


class PictureProcess:
    """The process that draws. It ends with this one, whatever ends this one, and leaves signals to it."""

    def __init__(self):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        waiting = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.set_blocking(self._process.stdout.fileno(), False)
        self.pending = 0

    def draw(self, lines: Lines, directory: Path) -> None:
        """Has pictures drawn into `directory`, some time soon. Raises OSError where earlier ones failed."""
        try:
            pickle.dump((lines, directory.resolve()), self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        self.pending += 1

    def seconds(self) -> list[float]:
        """How long those took that were done since the last call, one number for each call of `draw()`."""
        answered = self._process.stdout.read() or b""
        costs = [float(line) for line in answered.split()]
        self.pending -= len(costs)
        return costs

    def close(self) -> None:
        """Waits until everything is drawn. Raises OSError where something was not."""
        if self._process.stdin.closed:
            return
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise self._failure()

    def _failure(self) -> OSError:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return OSError(f"drawing failed: {lines[-1] if lines else f'exit status {self._process.returncode}'}")
