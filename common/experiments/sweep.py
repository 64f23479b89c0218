"""Runs a list of experiments: stacks those that agree, trains each batch in lockstep, and keeps their folders.

The `problem` is the module with what is particular to the kind of experiment, common/experiments/dmf.py for example:
`prepare`, `stack`, `multiplications_per_step`, `write_results`, `MAX_ZERO_LOSS_VALIDATIONS`, `HEADLINE`, `PICTURES`.
"""

import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from common.cli import Interrupted, Parameters, UserError, flag_error
from common.experiments.checkpoint import checkpoint_state
from common.experiments.experiment import Experiment
from common.experiments.folder import ExperimentFolder, provenance
from common.experiments.plans import Job
from common.files import utc_time
from common.plotting.pictures import PictureProcesses, metric_lines
from common.training.compilation import NativeUnavailable
from common.training.engines import Engine, Kernel, NotNative
from common.training.lockstep import DIVERGED, EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, Ended, LockstepTrainer
from common.training.threads import one_thread

# Multiplications in one step of a batch from which on a GPU is faster: launching a step's dozen kernels takes it as
# long as two CPU cores take for about this many.
_GPU_PAYS_FROM = 10**7
# Multiplications in one step of an experiment from which on several threads are faster than one (torch engine).
_THREADS_PAY_FROM = 3 * 10**6
# Experiments whose pictures one process draws in time; of more, two do.
_ONE_PROCESS_DRAWS = 20
# Bytes that the experiments of one batch may take in training, histories at their longest included.
_BATCH_MEMORY = 2**30

_REASONS = {
    ZERO_LOSS: "zero loss",
    DIVERGED: "diverged",
    STALLED: "stalled: a step changes no parameter any more",
    EPOCHS: "all epochs done",
    INTERRUPTED: "interrupted",
}


def run_jobs(problem: ModuleType, jobs: Sequence[Job]) -> None:
    """Runs plans one after the other, and says of each how to draw it. Raises as `run_sweep` does."""
    for job in jobs:
        if job.heading:
            print(job.heading)
        run_sweep(problem, job.experiments)
        print(f"to draw it:\n  {job.plot_command}", flush=True)


def run_sweep(problem: ModuleType, experiments: Sequence[Parameters]) -> None:
    """Trains every experiment and writes its folder.

    Raises UserError before anything is written, and Interrupted after everything was saved, where a signal came.
    """
    start_time = utc_time()
    prepared: list[Experiment] = []
    for number, parameters in enumerate(experiments, start=1):
        try:
            prepared.append(problem.prepare(parameters))
        except UserError as error:
            raise error if len(experiments) == 1 else UserError(f"experiment {number} of the list: {error}") from None
        prepared[-1].number = number
        prepared[-1].keeps_history = parameters["store_checkpoints"] or parameters["plot_metrics"]
    grouped: dict[tuple, list[Experiment]] = {}
    for experiment in prepared:
        grouped.setdefault(_batch_key(experiment), []).append(experiment)
    devices = [_device(problem, batch) for batch in grouped.values()]
    kernels = [_kernel(problem, batch[0], device) for batch, device in zip(grouped.values(), devices, strict=True)]

    print(f"{len(prepared)} experiment{'s' if len(prepared) != 1 else ''}", flush=True)
    sweep = {"start_time": start_time, "experiments": len(prepared)}
    with _signals_noted() as stop, _picture_processes(prepared) as pictures:
        for batch, device, kernel in zip(grouped.values(), devices, kernels, strict=True):
            # Of one experiment, not of the batch: an experiment's bits may depend on the number of threads.
            with one_thread(problem.multiplications_per_step(batch[0]) < _THREADS_PAY_FROM):
                for part in _parts(batch):
                    _Batch(problem, part, device, kernel, pictures, sweep).train(stop)
                    if stop.is_set():
                        raise Interrupted


def _batch_key(experiment: Experiment) -> tuple:
    parameters = experiment.parameters
    same = ("dtype", "engine", "validate_every", "disable_gpu", "gpu_id")
    return (*experiment.batch_key, experiment.epoch, *(parameters[name] for name in same))


def _parts(experiments: Sequence[Experiment]) -> Iterator[list[Experiment]]:
    """The experiments in batches that are small enough for the memory."""
    part, size = [], 0
    for experiment in experiments:
        if part and size + experiment.memory > _BATCH_MEMORY:
            yield part
            part, size = [], 0
        part.append(experiment)
        size += experiment.memory
    yield part


def _device(problem: ModuleType, experiments: Sequence[Experiment]) -> torch.device:
    """A GPU where there is one, it may be used, and the batch's steps are large enough for it to pay."""
    parameters = experiments[0].parameters
    if parameters["disable_gpu"] or parameters["engine"] == "native" or not torch.cuda.is_available():
        return torch.device("cpu")
    if parameters["gpu_id"] >= torch.cuda.device_count():
        remedy = f"there are {torch.cuda.device_count()} GPUs, counted from 0; give one of them or -disable_gpu"
        raise flag_error("gpu_id", parameters["gpu_id"], remedy)
    pays = sum(map(problem.multiplications_per_step, experiments)) >= _GPU_PAYS_FROM
    return torch.device("cuda", parameters["gpu_id"]) if pays else torch.device("cpu")


def _kernel(problem: ModuleType, experiment: Experiment, device: torch.device) -> Kernel | None:
    """The native kernel, for all experiments of its batch; None where the torch engine is to run them."""
    choice = experiment.parameters["engine"]
    if choice == "torch" or device.type != "cpu":
        return None
    try:
        return problem.native_kernel(experiment)
    except (NotNative, NativeUnavailable) as error:
        if choice == "native":
            raise flag_error("engine", choice, f"{error}; give auto or torch") from None
        if isinstance(error, NativeUnavailable):
            _say_once(f"the native engine {error}; the torch engine takes over")
        return None


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _signals_noted() -> Iterator[threading.Event]:
    """Notes the first SIGINT or SIGTERM in the event, so that what is running can be saved; the second one kills."""
    stop = threading.Event()
    previous = {}

    def note(number: int, _frame: Any) -> None:
        stop.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _picture_processes(experiments: Sequence[Experiment]) -> Iterator[PictureProcesses | None]:
    """The processes that draw, where there is something to draw. At the end everything is drawn."""
    drawn = sum(experiment.parameters["plot_metrics"] for experiment in experiments)
    if not drawn:
        yield None
        return
    pictures = PictureProcesses(2 if drawn > _ONE_PROCESS_DRAWS else 1)
    try:
        yield pictures
    except BaseException:
        # That of the training is the error to be heard of.
        with suppress(OSError):
            pictures.close()
        raise
    pictures.close()


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

    def __init__(self, trainer: LockstepTrainer):
        self._trainer, self._many = trainer, len(trainer.running)
        self._next = 0.0
        if self._many > 1:
            self._bar = tqdm(total=self._many, unit="experiment", smoothing=0, disable=None)
        else:
            self._bar = tqdm(total=trainer.running[0].num_epochs, unit="epoch", unit_scale=True, disable=None)
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


class _Batch:
    """A batch of experiments in training, with their folders. `sweep` says which sweep it is part of."""

    def __init__(
        self,
        problem: ModuleType,
        experiments: Sequence[Experiment],
        device: torch.device,
        kernel: Kernel | None,
        pictures: PictureProcesses | None,
        sweep: dict[str, Any],
    ):
        self._problem, self._device, self._pictures, self._sweep = problem, device, pictures, sweep
        parameters = experiments[0].parameters
        self._validate_every = parameters["validate_every"]
        engine = problem.stack(experiments, device, kernel)
        max_zero_losses = problem.MAX_ZERO_LOSS_VALIDATIONS
        self._trainer = LockstepTrainer(engine, experiments, self._validate_every, max_zero_losses)
        # The console has room for the progress of one experiment.
        self._log_to_console = sweep["experiments"] == 1 and not parameters["file_log"]
        self._checkpoint_budget, self._picture_budget, self._log_budget = _Budget(0.03), _Budget(0.04), _Budget(0.01)
        self._start = time.monotonic()
        self._next_report = 1.0

    def train(self, stop: threading.Event) -> None:
        """Trains until every experiment has ended, or `stop` is set."""
        trainer = self._trainer
        try:
            for experiment in trainer.running:
                self._begin(experiment)
            with _Progress(trainer) as progress:
                while trainer.running:
                    ended = trainer.interrupt() if stop.is_set() else trainer.advance()
                    for each in ended:
                        self._finish(each)
                    trainer.drop_ended()
                    self._save_along_the_way()
                    self._report_along_the_way()
                    progress.report()
        except BaseException as error:
            for experiment in trainer.running:
                self._fail(experiment, error)
            raise

    def _begin(self, experiment: Experiment) -> None:
        sweep = {**self._sweep, "experiment": experiment.number}
        about = provenance(self._device, self._trainer.engine.name, sweep)
        experiment.folder = ExperimentFolder(experiment.parameters, about)
        experiment.folder.write_parameters(finished=False, stop_reason=None, last_epoch=experiment.epoch)
        for name, value in experiment.parameters.items():
            self._log(experiment, f"{name}: {value}")
        num_parameters = sum(factor.numel() for factor in experiment.factors)
        self._log(experiment, f"model parameters: {num_parameters}, device: {self._device}")

    def _finish(self, ended: Ended) -> None:
        """Writes everything there is of an experiment that ended."""
        experiment = ended.run
        if experiment.parameters["store_checkpoints"]:
            self._save_checkpoint(experiment, ended.engine, ended.position)
        if experiment.parameters["plot_metrics"]:
            self._draw(experiment)
        interrupted = experiment.stop_reason == INTERRUPTED
        experiment.folder.write_parameters(not interrupted, experiment.stop_reason, experiment.epoch)
        results = self._problem.write_results(experiment, torch.from_numpy(ended.output))

        last_values = experiment.history.last_values() | results
        end = f"{_REASONS[experiment.stop_reason]}, epoch {experiment.epoch:,}"
        seconds = time.monotonic() - self._start
        if experiment.parameters["file_log"]:
            experiment.folder.log(f"{end}, after {seconds:.1f} s: {_numbers(last_values)}")
        headline = {name: last_values[name] for name in last_values if self._problem.HEADLINE.fullmatch(name)}
        place = f"{experiment.number}/{self._sweep['experiments']} {experiment.folder.path}"
        tqdm.write(f"{place}: {end}: {_numbers(headline)}", file=sys.stdout)
        sys.stdout.flush()
        experiment.release()

    def _fail(self, experiment: Experiment, error: BaseException) -> None:
        """Records a failure in the folder of an experiment that was running, as far as that still works."""
        if experiment.folder is None:  # not begun yet, or done
            return
        with suppress(OSError):
            experiment.folder.write_parameters(False, "failed", experiment.epoch)
            if experiment.parameters["file_log"]:
                experiment.folder.log("failed: " + "".join(traceback.format_exception(error)))

    def _save_along_the_way(self) -> None:
        """Where it is time for checkpoints and pictures: of as many experiments as the budgets allow."""
        for position, experiment in self._due("store_checkpoints"):
            if not self._checkpoint_budget.affords(0.01):
                break
            with self._checkpoint_budget.spending():
                self._trainer.sync(position)
                self._save_checkpoint(experiment, self._trainer.engine, position)
            experiment.saved_at["store_checkpoints"] = self._validations()
        for seconds in self._pictures.seconds() if self._pictures else ():
            self._picture_budget.spend(seconds)
        for position, experiment in self._due("plot_metrics"):
            # They take as long as they take, in their own processes: one experiment's after the other's.
            if self._pictures.pending or not self._picture_budget.affords(0.5):
                break
            self._trainer.sync(position)
            self._draw(experiment)
            experiment.saved_at["plot_metrics"] = self._validations()

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
            and self._validations() - experiment.saved_at.get(output, 0) >= experiment.parameters["save_every_num_val"]
        ]
        return sorted(due, key=lambda each: each[1].saved_at.get(output, 0))

    def _save_checkpoint(self, experiment: Experiment, engine: Engine, position: int) -> None:
        experiment.folder.write_checkpoint(checkpoint_state(experiment, engine, position))

    def _draw(self, experiment: Experiment) -> None:
        self._pictures.draw(metric_lines(experiment.history, self._problem.PICTURES), experiment.folder.plots)

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
                        self._log(experiment, f"epoch {self._trainer.epoch:,}: {_numbers(metrics)}")

    def _log(self, experiment: Experiment, line: str) -> None:
        if experiment.parameters["file_log"]:
            experiment.folder.log(line)
        elif self._log_to_console:
            tqdm.write(line, file=sys.stdout)


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
