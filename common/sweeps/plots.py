"""Plots of the metrics, drawn in processes of their own while training goes on."""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from common.plotting.metrics import draw_metrics, metric_lines
from common.sweeps.experiment import Experiment
from common.sweeps.progress import say
from common.training.history import STALLED

_PROJECT = Path(__file__).parents[2]
_MOST_PROCESSES = 2
# When this many experiments wait for their plots, training waits.
_MOST_WAITING = 16


class MetricPlots:
    """Draws the plots of experiments in turn. What no other process can draw is drawn in this one; what cannot be drawn
    costs a line.
    """

    def __init__(self, num_experiments: int):
        num_processes = min(_MOST_PROCESSES, num_experiments)
        self._threads = ThreadPoolExecutor(max(1, num_processes))
        self._own = threading.local()  # the process of each thread
        self._processes: list[subprocess.Popen] = []
        self.waiting: dict[Future, tuple[Experiment, tuple, Callable[[float], Any]]] = {}
        for _ in range(num_processes):
            self._threads.submit(self._draw_elsewhere, ({}, Path(), None))  # imports matplotlib

    def draw(self, experiment: Experiment, then: Callable[[float], Any]) -> None:
        """Starts to draw an experiment's metrics. When that is done, a later `collect` calls `then` with the seconds
        that it took.
        """
        history = experiment.history
        lines = metric_lines({"train": history.train, "validation": history.validation}, experiment.problem.figures)
        # A run ends as stalled when no parameter changed since the previous validation.
        is_stalled = experiment.stop_reason == STALLED
        stalled = experiment.epoch - experiment.parameters["validate_every"] if is_stalled else None
        # An earlier drawing of the experiment would overwrite this one.
        while len(self.waiting) >= _MOST_WAITING or any(each is experiment for each, *_ in self.waiting.values()):
            self.collect(1.0)
        drawing = lines, (experiment.folder.path / "plots").resolve(), stalled, os.getpid()
        self.waiting[self._threads.submit(self._draw_elsewhere, drawing)] = experiment, drawing, then

    def _draw_elsewhere(self, drawing: tuple) -> float:
        """Lets this thread's process draw. Returns the seconds that it took."""
        begin, process = time.monotonic(), getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            # In a session of its own, it gets no signals from the terminal. It ends when its input ends.
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            command = [sys.executable, "-m", "common.plotting.metrics"]
            process = subprocess.Popen(command, **options, cwd=_PROJECT, start_new_session=True)
            self._own.process = process
            self._processes.append(process)
        pickle.dump(drawing, process.stdin)
        process.stdin.flush()
        if process.stdout.read(1) != b"\n":
            raise RuntimeError("the process ended")
        return time.monotonic() - begin

    def collect(self, seconds: float = 0.0) -> None:
        """Handles the finished plots, after waiting up to `seconds` seconds for one."""
        for future in wait(self.waiting, seconds, FIRST_COMPLETED).done:
            experiment, drawing, then = self.waiting.pop(future)
            begin = time.monotonic()
            if future.exception():
                try:
                    draw_metrics(*drawing)
                except Exception as error:
                    say(f"{experiment.folder.path / 'plots'}: not drawn: {type(error).__name__}: {error}")
            then(time.monotonic() - begin if future.exception() else future.result())

    def close(self) -> None:
        """Waits until everything is drawn."""
        while self.waiting:
            self.collect(1.0)
        self._threads.shutdown()
        for process in self._processes:
            process.communicate()  # its input may be closed already
