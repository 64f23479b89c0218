"""Runs a list of experiments: continues what earlier runs left, and trains those of equal shape batch by batch."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.cli import Parameters, Parser, RunFailed, UserError
from common.files import utc_time
from common.naming import span
from common.problems.problem import Problem
from common.signals import Interrupted, signals_noted
from common.sweeps.batches import Batch, make_batches, threads_for
from common.sweeps.experiment import Experiment, Identity, forget_files, identify, prepare, resolve
from common.sweeps.plans import Job
from common.sweeps.plots import MetricPlots
from common.sweeps.processes import World, folder_lock, partition, world_from_env
from common.sweeps.progress import say
from common.sweeps.results_table import RESULTS_TABLE, write_results_table
from common.sweeps.resume import resume_experiments
from common.sweeps.training import MANY, SweepContext, build_engine, build_trainer, train_batch
from common.training.history import DIVERGED
from common.training.threads import num_threads


@dataclass
class Sweep:
    """A list of experiments, of which this process runs some."""

    experiments: dict[int, Experiment]  # those that this process runs, by index
    batches: Sequence[Batch]  # of these
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
            sweeps.append(_prepare(kind, job.experiments, world))
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


def run_sweep(kind: type[Problem], experiments: Sequence[Parameters], resume: bool = False) -> None:
    """Trains every experiment and writes its folder; with `resume`, only what an earlier such sweep left unfinished. Of
    processes that were started together, each runs its part of the list.

    Raises UserError before anything is written, Interrupted if a signal came, after everything was saved, and RunFailed
    if something failed, after everything else was done.
    """
    world = world_from_env()
    _run(_prepare(kind, experiments, world), world, resume)


def train(kind: type[Problem], parser: Parser, experiments: Iterable[Mapping[str, Any]]) -> list[Experiment]:
    """Trains experiments, dictionaries of the flags that `parser` declares, and writes nothing. Returns them in their
    order, with `history`, `epoch`, `stop_reason` and `final_output`, the end-to-end matrix or tensor. Raises UserError.
    """
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
                for experiment, _, _, output in trainer.advance():
                    experiment.final_output = torch.from_numpy(output)
    return states


def _prepare(kind: type[Problem], experiments: Sequence[Parameters], world: World) -> Sweep:
    """Checks all experiments, and makes those of this process. Of equal experiments, the first one is run."""
    forget_files()
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
    _, parameters, _, identities = zip(*kept, strict=True)
    batches = make_batches(prepared.values(), world)
    return Sweep(prepared, batches, parameters, identities, len(experiments) - len(kept))


def _run(sweep: Sweep, world: World, resume: bool) -> None:
    """Runs this process's part of a sweep. Raises as `run_sweep` does."""
    experiments, batches = list(sweep.experiments.values()), sweep.batches
    total, own = len(sweep.parameters), len(experiments)
    directories = {experiment.output_dir for experiment in experiments}
    with signals_noted() as stop, ExitStack() as stack:
        for directory in directories:
            stack.enter_context(folder_lock(directory, world, resume))
        record = {"id": world.launch, "start_time": utc_time(), "experiments": total}
        records = dict.fromkeys(directories, record)
        summary = f"{total} experiment{'s' if total != 1 else ''}{_observations(experiments)}"
        if sweep.num_repeats:
            summary += f" ({sweep.num_repeats} duplicates in the list are skipped)"
        if world.size > 1:
            summary += f", {own} of them for process {world.rank} of {world.size}"
        if resume:
            experiments = resume_experiments(sweep.experiments, sweep.identities, sweep.parameters, records)
            batches = make_batches(experiments, world)
            continued = sum(experiment.previous is not None and experiment.epoch >= 0 for experiment in experiments)
            summary += f": {own - len(experiments)} finished before, {continued} to continue"
            summary += f", {len(experiments) - continued} to start"
        say(summary)
        plots = MetricPlots(sum(experiment.parameters["plot_metrics"] for experiment in experiments))
        context = SweepContext(total, records, world.rank, stop, plots)
        _train(batches, context)
        reasons = Counter(each.stop_reason for each in experiments if each.has_results)
        if reasons[DIVERGED] and total < MANY:
            say(f"{reasons[DIVERGED]} of {own} experiment{'s' if own != 1 else ''} diverged")
        for directory in directories:
            try:
                write_results_table(directory)
            except (OSError, ValueError) as error:
                say(f"{directory / RESULTS_TABLE} was not written: {error}")
        if total >= MANY and experiments:
            counts = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in sorted(reasons.items()))
            table = Path(experiments[0].parameters["output_dir"]) / RESULTS_TABLE
            if still := sum(experiment.stands_still for experiment in experiments):
                counts += f" ({still} with a loss that did not fall in the second half of its epochs)"
            say(f"{len(experiments)} experiments: {counts or 'none ended'}; their numbers are in {table}")
    if stop:
        raise Interrupted(stop.number, f"interrupted; {_how_to_resume(sweep)}")
    if context.failures:
        num_failed, others = sum(number for number, _ in context.failures), " (and others)"
        failed = f"{num_failed} of {own} failed: {context.failures[0][1]}{others if num_failed > 1 else ''}"
        raise RunFailed(f"{failed}; {_how_to_resume(sweep)}")


def _train(batches: Sequence[Batch], context: SweepContext) -> None:
    """Trains batch after batch, until a signal comes."""
    try:
        for batch, device, kernel in batches:
            if not context.stop:
                with num_threads(threads_for(batch[0])):
                    train_batch(batch, device, kernel, context)
    finally:
        context.plots.close()
        context.mark_finished()


def _observations(experiments: Iterable[Experiment]) -> str:
    """Returns how many observations of their datasets the experiments use, as text; "" if all of them."""
    numbers = [experiment.problem.num_observations for experiment in experiments]
    if all(used == available for used, available in numbers):
        return ""
    used, available = zip(*numbers, strict=True)
    return f", {span(used)} of {span(available)} observations"


def _how_to_resume(sweep: Sweep) -> str:
    resume = [] if {"-resume", "--resume"} & set(sys.argv) else ["-resume"]
    command = shlex.join(["python", *sys.argv, *resume])
    if not any(parameters["store_checkpoints"] for parameters in sweep.parameters):
        return f"there are no checkpoints to continue from; to run the rest: {command}"
    return f"to continue: {command}"
