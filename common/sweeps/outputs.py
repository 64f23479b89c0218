"""Outputs during training: checkpoints, plots of the metrics, log lines, the progress bar.

Each output has a method `on_validation(trainer, running)`, which is called whenever the trainer has advanced, with the
experiments that are still in training, in the trainer's order. It writes if it is time to.
"""

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from common.cli import printable_lines
from common.files import remove_temporary_files, rename
from common.plotting.metrics import Lines, draw_metrics, end_with_parent, metric_lines
from common.signals import Stop
from common.sweeps.checkpoint import checkpoint_content
from common.sweeps.disk import DiskQueue
from common.sweeps.experiment import Experiment
from common.sweeps.processes import World
from common.training.history import STALLED
from common.training.native_engine import Engine
from common.training.trainer import Trainer

# Up to this many experiments, one process draws the plots; for more, two do.
_ONE_PROCESS_DRAWS = 20
# When this many experiments wait for their plots, training waits.
_MOST_WAITING = 16


def say(line: str) -> None:
    """Prints a line on standard output, above a progress bar. Ignores that standard output was closed."""
    with suppress(OSError):
        tqdm.write(printable_lines(line), file=sys.stdout)
        sys.stdout.flush()


def numbers(metrics: dict[str, float]) -> str:
    """Metrics as text."""
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())


@dataclass
class SweepContext:
    """What the batches of a sweep have in common."""

    num_experiments: int  # in the list, those of other processes included
    sweeps: dict[Path, dict[str, Any]]  # what folders record of the sweep, by output folder
    world: World
    stop: Stop
    output_share: float  # of the time, for checkpoints, plots and logs
    plots: "MetricPlots | None" = None
    failures: list[str] = field(default_factory=list)  # a line for each experiment that failed

    def __post_init__(self) -> None:
        self.disk = DiskQueue(self.stop, self.guard)

    @property
    def making(self) -> str:
        """The hidden name of the folder in an output folder in which new folders are made."""
        return f".making-{self.world.launch}-{self.world.rank}"

    @contextmanager
    def guard(self, experiment: Experiment) -> Iterator[None]:
        """Lets an exception that is raised inside end this experiment, not the others."""
        try:
            yield
        except Exception as error:
            self.fail(experiment, error)

    def fail(self, experiment: Experiment, error: Exception) -> None:
        """Ends an experiment, and records the failure in its folder, as far as that is possible."""
        if experiment.failed:
            return
        experiment.failed, folder = True, experiment.folder
        place = folder.path if folder else experiment.parameters["output_dir"]
        self.failures.append(f"{place}: {type(error).__name__}: {error}")
        say(f"{experiment.number}/{self.num_experiments} failed: {self.failures[-1]}")
        with suppress(Exception):
            # Not those of checkpoints, from which the experiment may be continued
            for directory in (folder.path, folder.path / "plots"):
                remove_temporary_files(directory)
            self.disk.rename_after_sync(experiment, folder.write_parameters(False, "failed", experiment.state.epoch))
            folder.log("failed: " + "".join(traceback.format_exception(error)))
        experiment.release()

    def log(self, experiment: Experiment, *lines: str) -> None:
        """Logs lines to the experiment's file, or to the console if there is only one experiment."""
        experiment.folder.log(*lines)
        if self.num_experiments == 1 and not experiment.parameters["file_log"]:
            say("\n".join(lines))


class Throttle:
    """Limits the time that an output takes to a share of the time since the start."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic):
        self._share, self._clock, self._start = share, clock, clock()
        self._spent = self._last_cost = 0.0

    def allows(self, least: float) -> bool:
        """Whether there is time for another output that takes as long as the last one, and at least `least` seconds."""
        return self._spent + max(self._last_cost, least) <= self._share * (self._clock() - self._start)

    def spend(self, seconds: float) -> None:
        """Records the time that an output took."""
        self._last_cost, self._spent = seconds, self._spent + seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Records the time that the block takes."""
        begin = self._clock()
        yield
        self.spend(self._clock() - begin)


def _due(trainer: Trainer, running: Sequence[Experiment], flag: str) -> list[int]:
    """Returns the indices of the experiments that are due for this output by -save_every_num_val, the longest overdue
    first.
    """
    validations, rest = divmod(trainer.epoch + 1, trainer.validate_every)
    waited = [0 if rest else validations - each.saved_at.get(flag, 0) for each in running]
    due = [i for i, e in enumerate(running) if e.parameters[flag] and waited[i] >= e.parameters["save_every_num_val"]]
    return sorted((index for index in due if not running[index].failed), key=lambda index: -waited[index])


def save_checkpoint(
    context: SweepContext, experiment: Experiment, engine: Engine, index: int, output: Tensor | None = None
) -> None:
    """Writes the checkpoint of an experiment whose parameters are at an index of the engine's batch."""
    folder = experiment.folder
    file = folder.write_checkpoint(checkpoint_content(experiment.state, engine, index, output))
    context.disk.after_syncs(experiment, folder.path, partial(rename, *file), folder.remove_old_checkpoints)


class Checkpoints:
    """Writes checkpoints of all experiments at once, so that they can be continued in one batch."""

    def __init__(self, context: SweepContext):
        self._context, self._throttle = context, Throttle(3 / 8 * context.output_share)

    def on_validation(self, trainer: Trainer, running: Sequence[Experiment]) -> None:
        due = _due(trainer, running, "store_checkpoints")
        if due and self._throttle.allows(0.005 * len(due)):
            with self._throttle.spending():
                for index in due:
                    if not self._context.stop:
                        with self._context.guard(running[index]):
                            trainer.sync(index)
                            save_checkpoint(self._context, running[index], trainer.engine, index)
                            running[index].saved_at["store_checkpoints"] = (trainer.epoch + 1) // trainer.validate_every
                self._context.disk.sync()


class MetricPlots:
    """Plots metrics in processes of their own, while the training goes on. They do not import torch."""

    def __init__(self, context: SweepContext, num_experiments: int):
        self._context, self._throttle = context, Throttle(context.output_share / 2)
        self._num_processes = 2 if num_experiments > _ONE_PROCESS_DRAWS else 1
        self._waiting: dict[Future, tuple[Experiment, float, Callable[[], None]]] = {}
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(self._num_processes, multiprocessing.get_context("spawn"), end_with_parent)
        for _ in range(self._num_processes):
            self._submit({}, Path())  # imports matplotlib

    def on_validation(self, trainer: Trainer, running: Sequence[Experiment]) -> None:
        self.collect()
        due = _due(trainer, running, "plot_metrics")
        # One experiment's plots after the other's.
        if due and not self._waiting and self._throttle.allows(0.5):
            index = due[0]
            with self._context.guard(running[index]):
                trainer.sync(index)
                self.draw(running[index])
                running[index].saved_at["plot_metrics"] = (trainer.epoch + 1) // trainer.validate_every

    def draw(self, experiment: Experiment, then: Callable[[], None] = lambda: None) -> None:
        """Starts to plot an experiment's metrics, and calls `then` when that is done."""
        state, history = experiment.state, experiment.state.history
        metrics = {"train": history.train, "validation": history.validation}
        lines = metric_lines(metrics, experiment.problem.figures)
        # A run ends as stalled when no parameter changed since the previous validation.
        stalled = state.epoch - experiment.parameters["validate_every"] if state.stop_reason == STALLED else None
        while len(self._waiting) >= _MOST_WAITING and not self._context.stop:
            self.collect(0.05)
        future = self._submit(lines, experiment.folder.plots().resolve(), stalled)
        self._waiting[future] = experiment, time.monotonic(), then

    def _submit(self, lines: Lines, directory: Path, stalled: int | None = None) -> Future:
        # A process that is started here inherits the blocked signals: they are for the process that trains.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            return self._pool.submit(draw_metrics, lines, directory, stalled)
        except BrokenProcessPool:  # a process was killed, as for its memory
            self._start()
            return self._pool.submit(draw_metrics, lines, directory, stalled)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def collect(self, seconds: float = 0.0) -> None:
        """Handles the finished plots, after waiting up to `seconds` seconds for one."""
        done, _ = wait(self._waiting, seconds, FIRST_COMPLETED)
        for future in done:
            experiment, begin, then = self._waiting.pop(future)
            with self._context.guard(experiment):
                future.result()
                self._throttle.spend(time.monotonic() - begin)
                then()
        self._context.disk.sync_if_due()

    def close(self) -> None:
        """Waits until everything is plotted. After a signal, the rest is left to a resumed run."""
        while self._waiting and not self._context.stop:
            self.collect(0.05)
        if self._context.stop:
            for process in multiprocessing.active_children():
                process.kill()
        self._pool.shutdown(wait=not self._context.stop, cancel_futures=True)


class Progress:
    """Logs metrics to files, or to the console if there is one experiment, and shows a progress bar on a terminal.

    The longer the run, the less often metrics are logged. The bar counts the epochs of one experiment, or how many of
    several have ended: few take all of their epochs, so epochs would say little about the time.
    """

    def __init__(self, context: SweepContext, trainer: Trainer):
        self._context, self._throttle = context, Throttle(context.output_share / 8)
        self._start, self._next_log, self._next_bar = time.monotonic(), 1.0, 0.0
        self._total, self._begin = len(trainer.running), trainer.epoch
        kind = {"total": self._total, "unit": "experiment", "smoothing": 0}
        if self._total == 1:
            kind = {"total": trainer.running[0].last_epoch - trainer.epoch, "unit": "epoch", "unit_scale": True}
        self._bar = tqdm(**kind, disable=True if context.world.rank else None)

    def on_validation(self, trainer: Trainer, running: Sequence[Experiment]) -> None:
        elapsed = time.monotonic() - self._start
        if not self._bar.disable and (elapsed >= self._next_bar or not running):
            self._next_bar = elapsed + 0.2
            self._bar.n = self._total - len(running) if self._total > 1 else trainer.epoch - self._begin
            self._bar.set_postfix({"epoch": f"{trainer.epoch + 1:,}"} if self._total > 1 else {})
        if elapsed < self._next_log or not self._throttle.allows(1e-3):
            return
        self._next_log = elapsed + max(1.0, elapsed / 10)
        with self._throttle.spending():
            for index, experiment in enumerate(running):
                with self._context.guard(experiment):
                    if (experiment.parameters["file_log"] or self._total == 1) and (metrics := trainer.latest(index)):
                        self._context.log(experiment, f"epoch {trainer.epoch:,}: {numbers(metrics)}")

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
