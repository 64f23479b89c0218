"""Runs a list of experiments: continues what earlier runs left, and trains those of equal shape batch by batch."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from common.cli import Parameters, RunFailed, UserError, flag_error, warn_once
from common.files import utc_time
from common.naming import span
from common.problems.problem import Problem
from common.recorded_runs import RecordedRun, read_runs
from common.signals import Interrupted, Stop, signals_noted, signals_raised
from common.sweeps.batch import train_batch
from common.sweeps.experiment import Experiment, Identity, identify, prepare, resolve
from common.sweeps.outputs import MetricPlots, SweepContext, say
from common.sweeps.plans import Job
from common.sweeps.processes import World, discard, hold_run_lock, other_launch, partition, world_from_env
from common.sweeps.results_table import RESULTS_TABLE, write_results_table
from common.sweeps.resume import match_previous_runs, restore
from common.training.compilation import NativeUnavailable
from common.training.history import DIVERGED
from common.training.native_engine import Kernel, NotNative, native_kernel
from common.training.threads import NUM_THREADS

# Multiplications in one step of a batch from which a GPU is faster: about what two CPU cores compute while a dozen GPU
# kernels are launched.
_GPU_FROM = 10**7
# Multiplications in one step of an experiment from which several threads are much faster than one (torch engine): two
# take two thirds of the time then. Below, threads that wait for a busy core would cost more.
_THREADS_FROM = 15 * 10**6
# The most bytes that the experiments of one batch may need in training, and the most that are assumed for one history:
# longer histories are rare.
_MOST_BATCH_BYTES, _MOST_HISTORY_BYTES = 2**30, 2**26
# The share of the time that checkpoints, plots and logs may take.
_OUTPUT_SHARE = 0.08

Batch = tuple[list[Experiment], torch.device, Kernel | None]


class Sweep(NamedTuple):
    """A list of experiments, of which this process runs some."""

    experiments: dict[int, Experiment]  # those that this process runs, by index
    batches: list[Batch]
    parameters: Sequence[Parameters]  # of all
    identities: Sequence[Identity]
    num_repeats: int  # further experiments that are equal to one of these


def run_jobs(kind: type[Problem], jobs: Sequence[Job], resume: bool = False) -> None:
    """Runs plans in turn, and prints how to plot each. Raises as `run_sweep` does; a plan that fails does not
    end the others.
    """
    world, failures, sweeps = world_from_env(), [], []
    for job in jobs:
        try:
            sweeps.append(_prepare_sweep(kind, job.experiments, world))
        except UserError as error:
            raise UserError(f"{job.heading.split(':')[0]}: {error}" if len(jobs) > 1 else str(error)) from None
    for job in jobs:
        if job.heading and not world.rank:
            say(job.heading)
        try:
            _run(sweeps.pop(0), world, resume)
        except (RunFailed, UserError) as error:
            if isinstance(error, UserError) and job is jobs[0]:
                raise
            failures.append(error)
            if len(jobs) > 1:
                say(f"{'not run: ' if isinstance(error, UserError) else ''}{error}")
        if not world.rank:
            when = " once all processes have ended" if world.size > 1 else ""
            say(f"to plot it{when}:\n  {job.plot_command}")
    if failures:
        raise failures[0]


def run_sweep(
    kind: type[Problem], experiments: Sequence[Parameters], resume: bool = False, output_share: float = _OUTPUT_SHARE
) -> None:
    """Trains every experiment and writes its folder; with `resume`, only what an earlier such sweep left unfinished. Of
    processes that were started together, each runs its part of the list.

    Raises UserError before anything is written, Interrupted if a signal came, after everything was saved, and RunFailed
    if something failed, after everything else was done.
    """
    world = world_from_env()
    _run(_prepare_sweep(kind, experiments, world), world, resume, output_share)


@signals_raised()
def _prepare_sweep(kind: type[Problem], experiments: Sequence[Parameters], world: World) -> Sweep:
    kept, equal, prepared, number = [], Counter(), {}, 0
    try:
        for number, parameters in enumerate(experiments, start=1):
            values = resolve(kind, parameters)
            identity = identify(parameters, values, equal)
            if identity.record["occurrence"] == 1 or parameters["random_seed"] < 0:
                kept.append((number, parameters, values, identity))
        for index in partition([identity.group for *_, identity in kept], world):
            number, _, values, identity = kept[index]
            prepared[index] = prepare(kind, values, identity, index + 1)
    except UserError as error:
        raise error if len(experiments) == 1 else UserError(f"experiment {number} of the list: {error}") from None
    batches, (_, parameters, _, identities) = _batches(prepared.values(), world), zip(*kept, strict=True)
    return Sweep(prepared, batches, parameters, identities, len(experiments) - len(kept))


def _run(sweep: Sweep, world: World, resume: bool, output_share: float = _OUTPUT_SHARE) -> None:
    """Runs this process's part of a sweep. Raises as `run_sweep` does."""
    experiments, batches, total = sweep.experiments, sweep.batches, len(sweep.parameters)
    directories = {Path(each.parameters["output_dir"]).resolve() for each in experiments.values()}
    with signals_noted() as stop, ExitStack() as stack:
        locks = {directory: stack.enter_context(hold_run_lock(directory, world)) for directory in directories}
        record = {"id": world.launch, "start_time": utc_time(), "experiments": total}
        context = SweepContext(total, dict.fromkeys(directories, record), world, stop, output_share)
        for directory in directories:
            stack.callback(discard, directory / context.making)
        summary = f"{total} experiment{'s' if total != 1 else ''}{_observations(experiments.values())}"
        if sweep.num_repeats:
            summary += f" ({sweep.num_repeats} duplicates in the list are skipped)"
        if world.size > 1:
            summary += f", {len(experiments)} of them for process {world.rank} of {world.size}"
        if resume:
            unfinished = _resume(sweep, locks, context)
            continued = sum(each.previous is not None and each.state.epoch >= 0 for each in unfinished)
            summary += f": {len(experiments) - len(unfinished)} finished before, {continued} to continue"
            summary += f", {len(unfinished) - continued} to start"
            batches = _batches(unfinished, world)
        say(summary)
        failures = [] if stop else _train(batches, context)
        diverged = sum(each.state.stop_reason == DIVERGED for batch, _, _ in batches for each in batch)
        if diverged:
            say(f"{diverged} of {len(experiments)} experiment{'s' if len(experiments) != 1 else ''} diverged")
        for directory in directories:
            _write_results_table(directory, stop)
    if stop:
        raise Interrupted(stop.number, f"interrupted; {_how_to_resume(sweep)}")
    if failures:
        failed = f"{len(failures)} of {len(experiments)} failed: {failures[0]}"
        raise RunFailed(f"{failed}{' (and others)' if len(failures) > 1 else ''}; {_how_to_resume(sweep)}")


def _write_results_table(directory: Path, stop: Stop) -> None:
    """Writes the results.csv of an output folder, unless a signal came. If it cannot be written, a line says so."""
    try:
        with stop.raising():
            write_results_table(directory)
    except Interrupted:
        pass  # the sweep ends as interrupted
    except Exception as error:
        say(f"{directory / RESULTS_TABLE} was not written: {error}")


def _observations(experiments: Iterable[Experiment]) -> str:
    """Returns how many observations of their datasets the experiments use, as text; "" if all of them."""
    numbers = [each.problem.num_observations for each in experiments]
    if all(used == available for used, available in numbers):
        return ""
    used, available = zip(*numbers, strict=True)
    return f", {span(used)} of {span(available)} observations"


def _resume(sweep: Sweep, locks: Mapping[Path, Path | None], context: SweepContext) -> list[Experiment]:
    """Returns this process's unfinished experiments; those with an earlier run continue it. `locks` are this
    process's locks by output folder. Raises UserError if another process works in a folder.
    """
    matches: dict[int, RecordedRun] = {}
    for directory, lock in locks.items():
        matches |= _previous(sweep, directory, lock, context)
    unfinished = []
    for index, experiment in sweep.experiments.items():
        run = matches.get(index)
        if not (run and run.status.get("finished")):
            unfinished.append(restore(experiment, run) if run and not context.stop else experiment)
    return unfinished


def _previous(sweep: Sweep, directory: Path, lock: Path | None, context: SweepContext) -> dict[int, RecordedRun]:
    """The earlier runs in a folder that this process's experiments continue, by index. Raises UserError if another
    process works in the folder.
    """
    # Read the runs before the locks: then the lock of a living process that made one of these runs is found.
    runs, damaged = read_runs(directory)
    if other := other_launch(lock) if lock else None:
        raise UserError(
            f"-resume: process {other['pid']} on {other['host']} has been running in {directory} since "
            f"{other['start_time']}; wait until it ends, or end it"
        )
    for line in damaged:
        say(f"skipped {directory}/{line}")
    folders = [Path(parameters["output_dir"]).resolve() for parameters in sweep.parameters]
    here = {index: identity for index, identity in enumerate(sweep.identities) if folders[index] == directory}
    matches = match_previous_runs(here, runs, sweep.parameters[0])
    if newest := max(matches.values(), key=lambda run: run.order, default=None):
        # Experiments that begin now belong to this earlier sweep.
        known = {"id": newest.sweep.get("id"), "start_time": newest.order[0]}
        context.sweeps[directory] = {**context.sweeps[directory], **known}
    return matches


def _how_to_resume(sweep: Sweep) -> str:
    resume = [] if {"-resume", "--resume"} & set(sys.argv) else ["-resume"]
    command = shlex.join(["python", *sys.argv, *resume])
    if not any(parameters["store_checkpoints"] for parameters in sweep.parameters):
        return f"there are no checkpoints to continue from; to run the rest: {command}"
    return f"to continue: {command}"


def _train(batches: Sequence[Batch], context: SweepContext) -> list[str]:
    """Trains batch after batch. Returns a line for each experiment that failed."""
    num_plotted = sum(experiment.parameters["plot_metrics"] for batch, _, _ in batches for experiment in batch)
    if num_plotted:
        context.plots = MetricPlots(context, num_plotted)
    try:
        for batch, device, kernel in batches:
            # An experiment's bits may depend on the number of threads, so this depends on the experiment alone.
            small = batch[0].problem.multiplications < _THREADS_FROM
            torch.set_num_threads(1 if small else NUM_THREADS)
            for part in _parts(batch):
                if not context.stop:
                    train_batch(part, device, kernel, context)
    finally:
        torch.set_num_threads(NUM_THREADS)
        if context.plots:
            context.plots.close()
        context.disk.sync_all()
    return context.failures


def _batches(experiments: Iterable[Experiment], world: World) -> list[Batch]:
    """Groups experiments into batches, with their devices and kernels. Raises UserError if one is not available."""
    grouped: dict[tuple, list[Experiment]] = {}
    for experiment in experiments:
        state, parameters = experiment.state, experiment.parameters
        same = (parameters[name] for name in ("dtype", "engine", "validate_every", "disable_gpu", "gpu_id"))
        key = (state.stop_reason is not None, *experiment.problem.batch_key, state.epoch, *same)
        grouped.setdefault(key, []).append(experiment)
    devices = [_device(batch, world) for batch in grouped.values()]
    return [(batch, device, _kernel(batch[0], device)) for batch, device in zip(grouped.values(), devices, strict=True)]


def _device(batch: Sequence[Experiment], world: World) -> torch.device:
    """Returns a GPU if there is one that may be used and is faster for steps of this size, else the CPU. Processes that
    were started together on a machine use its GPUs in turn, from -gpu_id on.
    """
    parameters = batch[0].parameters
    if parameters["disable_gpu"] or parameters["engine"] == "native":
        return torch.device("cpu")
    number, gpu_id = torch.cuda.device_count(), parameters["gpu_id"]
    if not torch.cuda.is_available():
        if gpu_id:
            warn_once(f"-gpu_id {gpu_id}: there is no GPU that PyTorch can use; the CPU is used")
        return torch.device("cpu")
    if gpu_id >= number:
        remedy = f"there are {number} GPUs, counted from 0; give one of them or -disable_gpu"
        raise flag_error("gpu_id", gpu_id, remedy)
    if sum(experiment.problem.multiplications for experiment in batch) < _GPU_FROM:
        return torch.device("cpu")
    return torch.device("cuda", (gpu_id + world.local_rank) % number)


def _kernel(experiment: Experiment, device: torch.device) -> Kernel | None:
    """Returns the native kernel for an experiment and its batch, or None if the torch engine runs them."""
    choice, problem = experiment.parameters["engine"], experiment.problem
    if choice == "torch" or device.type != "cpu":
        return None
    try:
        if not problem.observes_entries:
            raise NotNative("needs observed entries, not other sensing matrices")
        dtype = getattr(torch, experiment.parameters["dtype"])
        num_observed, _ = problem.num_observations
        optimizer = problem.optimizer, num_observed, problem.decays
        return native_kernel(problem.model, problem.factor_shapes, dtype, *optimizer)
    except NativeUnavailable as error:
        if choice == "native":
            raise flag_error("engine", choice, f"{error}; give auto or torch") from None
        if not isinstance(error, NotNative):
            warn_once(f"the native engine {error}; the torch engine is used")
        return None


def _parts(batch: Sequence[Experiment]) -> list[Sequence[Experiment]]:
    """Splits a batch into parts that fit into memory."""
    most_bytes = 0
    for experiment in batch:
        parameters, problem, itemsize = experiment.parameters, experiment.problem, experiment.factors[0].element_size()
        num_records = experiment.state.keeps_history * (parameters["epochs"] // parameters["validate_every"] + 1)
        history_bytes = min(num_records * (problem.num_metrics + 2) * itemsize, _MOST_HISTORY_BYTES)
        most_bytes = max(most_bytes, problem.working_size * itemsize + history_bytes)
    count = max(1, _MOST_BATCH_BYTES // most_bytes)
    return [batch[begin : begin + count] for begin in range(0, len(batch), count)]
