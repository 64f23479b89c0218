"""Runs a list of experiments: continues what earlier runs left, and trains those of equal shape batch by batch."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common.cli import Parameters, Parser, RunFailed, UserError
from common.files import utc_time
from common.naming import span
from common.problems.problem import Problem
from common.signals import Interrupted, signals_noted
from common.sweeps.batches import make_batches, threads_for
from common.sweeps.experiment import Experiment, forget_files, identify, prepare, resolve
from common.sweeps.plans import Job
from common.sweeps.plots import MetricPlots
from common.sweeps.processes import World, folder_lock, partition, world_from_env
from common.sweeps.progress import say
from common.sweeps.results_table import RESULTS_TABLE, write_results_table
from common.sweeps.resume import resume_experiments
from common.sweeps.training import MANY, Sweep, build_engine, build_trainer, train_batch
from common.training.history import EPOCHS, ZERO_LOSS
from common.training.threads import num_threads


def run_jobs(kind: type[Problem], jobs: Sequence[Job], resume: bool = False) -> None:
    """Runs plans in turn, and prints how to plot each. Raises as `run_sweep` does; a plan that fails does not
    end the others.
    """
    world, failures, sweeps = world_from_env(), [], []
    for job in jobs:
        try:
            sweeps.append(_prepare(kind, job.experiments, world))
        except UserError as error:
            raise UserError(f"{job.heading.split(':')[0]}: {error}" if len(jobs) > 1 else str(error)) from None
    for job in jobs:
        if job.heading and not world.rank:
            say(job.heading)
        try:
            _run(sweeps.pop(0), resume)
        except (RunFailed, UserError) as error:
            failures.append(error)
            if len(jobs) > 1:
                say(str(error))
            continue
        if not world.rank:
            when = " once all processes have ended" if world.size > 1 else ""
            say(f"to plot it{when}:\n  {job.plot_command}")
    if failures:
        raise failures[0]


def run_sweep(kind: type[Problem], experiments: Sequence[Parameters], resume: bool = False) -> None:
    """Trains every experiment and writes its folder; with `resume`, only what an earlier such sweep left unfinished. Of
    processes that were started together, each runs its part of the list.

    Raises UserError before anything is written, Interrupted if a signal came, after everything was saved, and RunFailed
    if something failed, after everything else was done.
    """
    _run(_prepare(kind, experiments, world_from_env()), resume)


def train(kind: type[Problem], parser: Parser, experiments: Iterable[Mapping[str, Any]]) -> list[Experiment]:
    """Trains experiments, dictionaries of the flags that `parser` declares, and writes nothing. Returns them in their
    order, with `history`, `epoch`, `stop_reason` and `final_output`, the end-to-end matrix or tensor. Raises UserError.
    """
    if isinstance(experiments, Mapping):
        raise UserError("train: takes a list of experiments; put the dictionary into a list")
    forget_files()
    states = []
    for number, flags in enumerate(experiments, start=1):
        parameters = parser.parse(parser.words(flags))
        values = resolve(kind, parameters)
        states.append(prepare(kind, values, identify(parameters, values, Counter()), number))
        states[-1].keeps_history = True
    for batch, device, kernel in make_batches(states, World("")):
        with num_threads(threads_for(batch[0])):
            trainer = build_trainer(batch, build_engine(batch, device, kernel))
            while trainer.running:
                trainer.advance()
    return states


def _prepare(kind: type[Problem], experiments: Sequence[Parameters], world: World) -> Sweep:
    """Checks all experiments, and makes those of this process. Of equal experiments, the first one is run."""
    forget_files()
    listed, resolved, equal, own, number = [], [], Counter(), {}, 0
    try:
        for number, parameters in enumerate(experiments, start=1):
            values = resolve(kind, parameters)
            identity = identify(parameters, values, equal)
            if identity.record["occurrence"] == 1 or parameters["random_seed"] < 0:
                listed.append((parameters, identity))
                resolved.append((number, values))
        for index in partition([identity.group for _, identity in listed], world):
            number, values = resolved[index]
            own[index] = prepare(kind, values, listed[index][1], index + 1)
    except UserError as error:
        raise error if len(experiments) == 1 else UserError(f"experiment {number} of the list: {error}") from None
    return Sweep(listed, own, make_batches(own.values(), world), world, len(experiments) - len(listed))


def _run(sweep: Sweep, resume: bool) -> None:
    """Runs this process's part of a sweep. Raises as `run_sweep` does."""
    total, own, world = len(sweep.listed), len(sweep.experiments), sweep.world
    observed = [experiment.problem.num_observations for experiment in sweep.experiments.values()]
    directories = {experiment.output_dir for experiment in sweep.experiments.values()}
    with signals_noted() as stop, ExitStack() as stack:
        for directory in directories:
            stack.enter_context(folder_lock(directory, world, resume))
        sweep.stop = stop
        sweep.records = {
            each: {"id": world.launch, "start_time": utc_time(), "experiments": total} for each in directories
        }
        summary = f"{total} experiment{'s' if total != 1 else ''}"
        if sweep.num_repeats:
            summary += f" ({sweep.num_repeats} duplicates in the list are skipped)"
        if any(used < available for used, available in observed):
            summary += ", {} of {} observations".format(*map(span, zip(*observed, strict=True)))
        if world.size > 1:
            summary += f", {own} of them for process {world.rank} of {world.size}"
        if resume:
            resume_experiments(sweep)
            sweep.batches = make_batches(sweep.experiments.values(), world)
            left = len(sweep.experiments)
            continued = sum(each.previous is not None and each.epoch >= 0 for each in sweep.experiments.values())
            summary += f": {own - left} finished before, {continued} to continue, {left - continued} to start"
        say(summary)
        experiments = sweep.experiments.values()
        sweep.plots = MetricPlots(sum(experiment.parameters["plot_metrics"] for experiment in experiments))
        try:
            for batch, device, kernel in sweep.batches:
                if not stop:
                    with num_threads(threads_for(batch[0])):
                        train_batch(batch, device, kernel, sweep)
        finally:
            sweep.plots.close()
            sweep.mark_finished()
        for directory in directories:
            try:
                write_results_table(directory)
            except (OSError, ValueError) as error:
                say(f"{directory / RESULTS_TABLE} was not written: {error}")
        if total >= MANY and experiments:
            reasons = Counter(each.stop_reason for each in experiments if each.has_results)
            words = {EPOCHS: "with all epochs done", ZERO_LOSS: "with zero loss"}
            counts = ", ".join(f"{number} {words.get(each, each)}" for each, number in sorted(reasons.items()))
            if still := sum(experiment.stands_still for experiment in experiments):
                counts += f"; {still} with a loss that did not fall in the second half of the epochs"
            table = Path(sweep.listed[0][0]["output_dir"]) / RESULTS_TABLE
            say(f"{len(experiments)} experiments: {counts or 'none ended'}; their numbers are in {table}")
    if not (stop or sweep.failure):
        return
    flag = [] if {"-resume", "--resume"} & set(sys.argv) else ["-resume"]
    command = shlex.join(["python", *sys.argv, *flag])
    remedy = f"to continue: {command}"
    if not any(parameters["store_checkpoints"] for parameters, _ in sweep.listed):
        remedy = f"there are no checkpoints to continue from; to run the rest: {command}"
    if stop:
        raise Interrupted(stop.number, f"interrupted; {remedy}")
    num_failed = sum(experiment.stop_reason == "failed" for experiment in experiments)
    raise RunFailed(f"{num_failed} of {own} failed: {sweep.failure}; {remedy}")
