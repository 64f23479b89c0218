"""A batch of experiments in training, with their folders."""

import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from common.cli import Interrupted
from common.experiments.checkpoint import checkpoint_state
from common.experiments.experiment import Experiment
from common.experiments.folder import host_facts, new_folder, taken_up
from common.experiments.signals import Stop
from common.files import save_json, utc_time
from common.plotting.pictures import PictureProcesses, metric_lines
from common.tensor_files import save_tensors
from common.training.engines import Engine, Kernel
from common.training.lockstep import DIVERGED, EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, LockstepTrainer

FAILED = "failed"
_REASONS = {
    ZERO_LOSS: "zero loss",
    DIVERGED: "diverged",
    STALLED: "stalled: a step changes no parameter any more",
    EPOCHS: "all epochs done",
    INTERRUPTED: "interrupted",
}
# Seconds from a signal on in which what is running is saved: the launcher, or the user, may not wait for long.
_SAVING_TIME = 1.2


@dataclass(frozen=True)
class Surroundings:
    """What the batches of a sweep have in common: the problem, the processes that draw, what is recorded of the sweep,
    the id and rank of this process, the signal that may come; and a line for each experiment that failed.
    """

    problem: ModuleType
    pictures: PictureProcesses | None
    sweep: dict[str, Any]
    process: str
    rank: int
    stop: Stop
    failures: list[str] = field(default_factory=list)


class _Budget:
    """Bounds what outputs along the way cost to a share of the time since the start."""

    def __init__(self, share: float = 0.05):
        self._share, self._start, self._spent = share, time.monotonic(), 0.0
        self._last_cost = 0.0

    def affords(self, least: float) -> bool:
        """Whether another output may be written, if it costs as much as the last one and at least `least` seconds."""
        return self._spent + max(self._last_cost, least) <= self._share * (time.monotonic() - self._start)

    def spend(self, seconds: float) -> None:
        """Notes what an output cost."""
        self._last_cost = seconds
        self._spent += seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Notes what the output made inside costs."""
        begin = time.monotonic()
        yield
        self.spend(time.monotonic() - begin)


class _Progress:
    """The bar on a terminal: epochs of one experiment, or how many of several have ended.

    Few take all of their epochs, so that these would say little about the time that is left to several.
    """

    def __init__(self, trainer: LockstepTrainer, shown: bool):
        self._trainer, self._many = trainer, len(trainer.running)
        self._next = 0.0
        disable = None if shown else True
        if self._many > 1:
            self._bar = tqdm(total=self._many, unit="experiment", smoothing=0, disable=disable)
        else:
            self._bar = tqdm(total=trainer.running[0].num_epochs, unit="epoch", unit_scale=True, disable=disable)
            self._begin = trainer.epoch

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self) -> None:
        """Shows where the trainer is, several times a second, and at the end."""
        if self._bar.disable or (time.monotonic() < self._next and self._trainer.running):
            return
        self._next = time.monotonic() + 0.2
        if self._many > 1:
            self._bar.n = self._many - len(self._trainer.running)
            self._bar.set_postfix(epoch=f"{self._trainer.epoch + 1:,}")
        else:
            self._bar.n = self._trainer.epoch - self._begin
            self._bar.refresh()


class Batch:
    """Experiments of equal shape at the same epoch, to be trained side by side. Where they have ended in an earlier
    run, what is left is to write their results.

    What goes wrong with one of them ends that one.
    """

    def __init__(
        self, experiments: Sequence[Experiment], device: torch.device, kernel: Kernel | None, about: Surroundings
    ):
        self._experiments, self._device, self._about = list(experiments), device, about
        self._problem, self._pictures = about.problem, about.pictures
        parameters = experiments[0].parameters
        self._validate_every = parameters["validate_every"]
        self._engine = self._problem.stack(self._experiments, device, kernel)
        # The console has room for the progress of one experiment.
        self._log_to_console = about.sweep["experiments"] == 1 and not parameters["file_log"]
        self._checkpoint_budget, self._picture_budget, self._log_budget = _Budget(0.03), _Budget(0.04), _Budget(0.01)
        self._start = time.monotonic()
        self._next_report = 1.0

    def run(self) -> None:
        """Trains until every experiment has ended, or a signal came."""
        ended_before = self._experiments[0].stop_reason is not None
        try:
            for experiment in self._experiments:
                if self._about.stop:
                    return
                with self._guarded(experiment):
                    self._begin(experiment)
            if not ended_before:
                self._train()
                return
            for experiment in self._experiments:
                if experiment.stop_reason != FAILED and not self._about.stop:
                    self._finish(experiment, experiment.final_output)
        except Exception as error:
            for experiment in self._experiments:
                if experiment.folder is not None and experiment.stop_reason is None:
                    self._fail(experiment, error)
            raise

    def _train(self) -> None:
        begun = [place for place, each in enumerate(self._experiments) if each.stop_reason != FAILED]
        if not begun:
            return
        engine = self._engine.select(torch.tensor(begun)) if len(begun) < len(self._experiments) else self._engine
        running = [self._experiments[place] for place in begun]
        max_zero_losses = self._problem.MAX_ZERO_LOSS_VALIDATIONS
        self._trainer = trainer = LockstepTrainer(
            engine, running, self._validate_every, max_zero_losses, lambda: bool(self._about.stop)
        )
        with _Progress(trainer, shown=self._about.rank == 0) as progress:
            while trainer.running and not self._about.stop:
                for ended in trainer.advance():
                    if self._out_of_time():
                        break  # the others go on from older checkpoints
                    experiment, output = ended.run, torch.from_numpy(ended.output)
                    if experiment.parameters["store_checkpoints"]:
                        with self._guarded(experiment):
                            self._save_checkpoint(experiment, ended.engine, ended.position, output)
                    if experiment.stop_reason != FAILED:
                        self._finish(experiment, output)
                trainer.drop_ended()
                self._save_along_the_way()
                self._report_along_the_way()
                progress.report()
        if trainer.running:
            self._interrupt()

    @contextmanager
    def _guarded(self, experiment: Experiment) -> Iterator[None]:
        """Lets what goes wrong inside end this experiment, not the others."""
        try:
            yield
        except Exception as error:
            self._fail(experiment, error)

    def _fail(self, experiment: Experiment, error: Exception) -> None:
        """Ends an experiment, and records the failure in its folder, as far as that still works."""
        experiment.stop_reason = FAILED
        folder = experiment.folder
        place = experiment.parameters["output_dir"] if folder is None else folder.path
        self._about.failures.append(f"{place}: {type(error).__name__}: {error}")
        say(f"{experiment.number}/{self._about.sweep['experiments']} failed: {self._about.failures[-1]}")
        with suppress(Exception):
            folder.write_parameters(False, FAILED, experiment.epoch)
            if experiment.parameters["file_log"]:
                folder.log("failed: " + "".join(traceback.format_exception(error)))
        experiment.release()

    def _begin(self, experiment: Experiment) -> None:
        about = {
            **host_facts(self._device, self._engine.name),
            "process": self._about.process,
            "inputs_sha256": experiment.inputs_sha256,
            "start_time": utc_time(),
            "sweep": {**self._about.sweep, "experiment": experiment.number},
        }
        if experiment.earlier is None:
            experiment.folder = new_folder(experiment.parameters, about, experiment.epoch)
            for name, value in experiment.parameters.items():
                self._log(experiment, f"{name}: {value}")
            num_parameters = sum(factor.numel() for factor in experiment.factors)
            self._log(experiment, f"model parameters: {num_parameters}, device: {self._device}")
            return
        before = experiment.earlier.provenance
        about |= {
            "start_time": before.get("start_time"),
            "sweep": before["sweep"],
            "resumed": _count(before) + 1,
            "before": _hosts_before(before, about),
        }
        experiment.folder = taken_up(experiment.earlier.path, experiment.parameters, about)
        experiment.folder.write_parameters(False, None, experiment.epoch)
        where = f"after epoch {experiment.epoch:,}" if experiment.epoch >= 0 else "from the beginning"
        self._log(experiment, f"resumed {where}, device: {self._device}")

    def _finish(self, experiment: Experiment, output: torch.Tensor) -> None:
        """Writes what there is of an experiment that ended, its last checkpoint apart."""
        with self._guarded(experiment):
            try:
                with self._about.stop.at_once():
                    results = self._problem.results(experiment, output)
            except Interrupted:
                # The checkpoint has it all; without one it begins anew.
                return
            self._write_results(experiment, results)
            last_values = experiment.history.last_values() | results.told
            if experiment.parameters["plot_metrics"]:
                lines = metric_lines(experiment.history, self._problem.PICTURES)
                self._pictures.draw(lines, experiment.folder.plots, lambda error: self._close(experiment, error))
            experiment.release_state()
            end = f"{_REASONS[experiment.stop_reason]}, epoch {experiment.epoch:,}"
            seconds = time.monotonic() - self._start
            if experiment.parameters["file_log"]:
                experiment.folder.log(f"{end}, after {seconds:.1f} s: {_numbers(last_values)}")
            self._say_end(experiment, end, last_values)
            if not experiment.parameters["plot_metrics"]:
                self._close(experiment)

    def _close(self, experiment: Experiment, error: OSError | None = None) -> None:
        """Says in its folder, now that all of it is there, that an experiment is finished."""
        if experiment.stop_reason == FAILED:
            return
        with self._guarded(experiment):
            if error is not None:
                raise error
            experiment.folder.write_parameters(True, experiment.stop_reason, experiment.epoch)
            experiment.release()

    def _write_results(self, experiment: Experiment, results: Any) -> None:
        path = experiment.folder.path
        for name, tensor in results.tensors.items():
            save_tensors(tensor, path / name)
        if results.numbers:
            save_json(results.numbers, path / results.name)

    def _say_end(self, experiment: Experiment, end: str, last_values: dict[str, float]) -> None:
        headline = {name: last_values[name] for name in last_values if self._problem.HEADLINE.fullmatch(name)}
        place = f"{experiment.number}/{self._about.sweep['experiments']} {experiment.folder.path}"
        say(f"{place}: {end}: {_numbers(headline)}")

    def _interrupt(self) -> None:
        """Saves what is running as far as the time goes: checkpoints first, of those that have waited longest."""
        running = sorted(self._trainer.interrupt(), key=lambda each: each.run.saved_at.get("store_checkpoints", 0))
        unsaved = 0
        for experiment, engine, position, _ in running:
            if experiment.parameters["store_checkpoints"] and self._trainer.epoch >= 0:
                if self._out_of_time():
                    unsaved += 1
                    continue
                with self._guarded(experiment):
                    self._trainer.sync(position)
                    self._save_checkpoint(experiment, engine, position)
        if unsaved:
            say(f"no time for {unsaved} of {len(running)} checkpoints: these have older ones")
        for experiment, _, position, output in running:
            if experiment.stop_reason == FAILED or self._out_of_time():
                continue
            with self._guarded(experiment):
                self._trainer.sync(position)
                experiment.folder.write_parameters(False, INTERRUPTED, experiment.epoch)
                self._write_results(experiment, self._problem.results(experiment, torch.from_numpy(output)))
                end = f"interrupted, epoch {experiment.epoch:,}"
                if experiment.parameters["file_log"]:
                    experiment.folder.log(end)
                self._say_end(experiment, end, experiment.history.last_values())

    def _out_of_time(self) -> bool:
        """Whether a signal came, and so long ago that nothing more is to be saved."""
        return bool(self._about.stop) and time.monotonic() > self._about.stop.time + _SAVING_TIME

    def _save_along_the_way(self) -> None:
        """Where it is time for checkpoints and pictures: of all experiments at once, so that they can go on side by
        side, and of one after the other, as far as the budgets allow.
        """
        due = self._due("store_checkpoints")
        if due and self._checkpoint_budget.affords(0.005 * len(due)):
            with self._checkpoint_budget.spending():
                for position, experiment in due:
                    if self._about.stop:
                        return
                    with self._guarded(experiment):
                        self._trainer.sync(position)
                        self._save_checkpoint(experiment, self._trainer.engine, position)
                        experiment.saved_at["store_checkpoints"] = self._validations()
        for seconds in self._pictures.seconds() if self._pictures else ():
            self._picture_budget.spend(seconds)
        for position, experiment in self._due("plot_metrics"):
            # They take as long as they take, in their own processes: one experiment's after the other's.
            if self._pictures.pending or not self._picture_budget.affords(0.5):
                break
            with self._guarded(experiment):
                self._trainer.sync(position)
                lines = metric_lines(experiment.history, self._problem.PICTURES)
                self._pictures.draw(lines, experiment.folder.plots, lambda error, it=experiment: self._drawn(it, error))
                experiment.saved_at["plot_metrics"] = self._validations()
        self._trainer.drop_ended()

    def _drawn(self, experiment: Experiment, error: OSError | None) -> None:
        if error is not None and experiment.stop_reason is None:
            self._fail(experiment, error)

    def _validations(self) -> int:
        return (self._trainer.epoch + 1) // self._validate_every

    def _due(self, output: str) -> list[tuple[int, Experiment]]:
        """Running experiments, and their positions, that were validated so often that it is time for an output again,
        those first that have waited longest.
        """
        if (self._trainer.epoch + 1) % self._validate_every:
            return []
        due = [
            (position, experiment)
            for position, experiment in enumerate(self._trainer.running)
            if experiment.parameters[output]
            and experiment.stop_reason is None
            and self._validations() - experiment.saved_at.get(output, 0) >= experiment.parameters["save_every_num_val"]
        ]
        return sorted(due, key=lambda each: each[1].saved_at.get(output, 0))

    def _save_checkpoint(
        self, experiment: Experiment, engine: Engine, position: int, output: torch.Tensor | None = None
    ) -> None:
        experiment.folder.write_checkpoint(checkpoint_state(experiment, engine, position, output))

    def _report_along_the_way(self) -> None:
        """Logs the metrics at a human pace: ever more rarely, as the run gets longer."""
        elapsed = time.monotonic() - self._start
        if elapsed < self._next_report or not self._log_budget.affords(1e-3):
            return
        self._next_report = elapsed + max(1.0, elapsed / 10)
        with self._log_budget.spending():
            for position, experiment in enumerate(self._trainer.running):
                if experiment.parameters["file_log"] or self._log_to_console:
                    metrics = self._trainer.latest(position)
                    if metrics:
                        with self._guarded(experiment):
                            self._log(experiment, f"epoch {self._trainer.epoch:,}: {_numbers(metrics)}")
        self._trainer.drop_ended()

    def _log(self, experiment: Experiment, line: str) -> None:
        if experiment.parameters["file_log"]:
            experiment.folder.log(line)
        elif self._log_to_console:
            say(line)


def say(line: str) -> None:
    """Says it on standard output, above a progress bar. If nobody is listening any more, what is computed is worth no
    less.
    """
    with suppress(OSError):
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def _count(before: dict[str, Any]) -> int:
    count = before.get("resumed")
    return count if isinstance(count, int) else 0


def _hosts_before(before: dict[str, Any], now: dict[str, Any]) -> list[Any]:
    """Where, and with what, parts of a run were computed before, as far as they differ from `now` and each other."""
    facts = ("python", "torch", "numpy", "project", "commit", "machine", "processor", "device", "engine")
    earlier = before.get("before")
    hosts = list(earlier) if isinstance(earlier, list) else []
    last = {name: before.get(name) for name in facts}
    if last != {name: now.get(name) for name in facts} and last not in hosts:
        hosts.append(last)
    return hosts


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
