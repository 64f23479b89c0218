"""Runs a list of experiments: takes up what earlier runs left, stacks those that agree, and trains each batch.

The `problem` is the module with what is particular to the kind of experiment, common/experiments/dmf.py for example:
`prepare`, `go_on`, `stack`, `expected_cost`, `multiplications_per_step`, `native_kernel`, `results`,
`MAX_ZERO_LOSS_VALIDATIONS`, `HEADLINE`, `PICTURES`.
"""

import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from common.cli import Interrupted, Parameters, RunFailed, UserError, flag_error
from common.experiments.batch import Batch, Surroundings, say
from common.experiments.experiment import Experiment
from common.experiments.plans import Job
from common.experiments.presence import present
from common.experiments.resume import Earlier, digest_of_inputs, digest_of_sweep, earlier_runs, held_by, matched
from common.experiments.shares import Share, launch_id, own_share, shared_out
from common.experiments.signals import Stop, signals_noted
from common.files import utc_time
from common.plotting.pictures import PictureProcesses
from common.run_files import newest_checkpoint
from common.training.compilation import NativeUnavailable
from common.training.engines import Kernel, NotNative
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


def run_jobs(problem: ModuleType, jobs: Sequence[Job], resume: bool = False) -> None:
    """Runs plans one after the other, and says of each how to draw it. Raises as `run_sweep` does; what fails in a
    plan does not keep the others from being run.
    """
    share, failures = own_share(), []
    for job in jobs if len(jobs) > 1 else ():
        _check(problem, job, share)
    for job in jobs:
        if job.heading and not share.rank:
            say(job.heading)
        try:
            run_sweep(problem, job.experiments, resume)
        except RunFailed as failure:
            failures.append(failure)
        except UserError as error:
            if job is jobs[0]:
                raise
            failures.append(error)
            say(f"not run: {error}")
        if not share.rank:
            when = " once all processes have ended" if share.world_size > 1 else ""
            say(f"to draw it{when}:\n  {job.plot_command}")
    if failures:
        raise failures[0]


def _check(problem: ModuleType, job: Job, share: Share) -> None:
    """Raises UserError, naming the plan, where one of its experiments cannot be run."""
    try:
        total = len(job.experiments)
        _batches(problem, [_prepared(problem, each, index, total) for index, each in enumerate(job.experiments)], share)
    except UserError as error:
        raise UserError(f"{job.heading.split(':')[0]}: {error}") from None


def run_sweep(problem: ModuleType, experiments: Sequence[Parameters], resume: bool = False) -> None:
    """Trains every experiment and writes its folder; with `resume`, what is left to do of an earlier such sweep. Of
    processes that were started together, each does its share.

    Raises UserError before anything is written, Interrupted after everything was saved, where a signal came, and
    RunFailed after everything else was done, where something failed.
    """
    with signals_noted() as stop:
        failures, number = _run_share(problem, experiments, resume, stop)
    if stop:
        raise Interrupted(stop.number, f"interrupted; {_how_to_go_on(experiments)}")
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise RunFailed(f"{len(failures)} of {number} failed: {failures[0]}{more}; {_how_to_go_on(experiments)}")


def _run_share(
    problem: ModuleType, experiments: Sequence[Parameters], resume: bool, stop: Stop
) -> tuple[list[str], int]:
    """Does this process's share. Returns what failed, and of how many."""
    share = own_share()
    indices = list(range(len(experiments)))
    if share.world_size > 1:
        costs = [problem.expected_cost(parameters) for parameters in experiments]
        indices = shared_out(costs, share.world_size)[share.rank]
    prepared: dict[int, Experiment] = {}
    for index in indices:
        if stop:
            return [], len(indices)
        prepared[index] = _prepared(problem, experiments[index], index, len(experiments))
    _batches(problem, list(prepared.values()), share)
    process = uuid.uuid4().hex[:12]
    sweep = {"id": launch_id() or process, "start_time": utc_time(), "experiments": len(experiments)}
    taken: dict[int, Earlier] = {}

    def take(directory: Path, others: list[dict[str, Any]]) -> list[str]:
        here = {
            index: _with_what_is_known(each, prepared.get(index))
            for index, each in enumerate(experiments)
            if _resolved(each["output_dir"]) == _resolved(str(directory))
        }
        runs, problems = earlier_runs(directory)
        for line in problems:
            say(f"passed over {line}")
        matches = matched(here, runs)
        own = {index: run for index, run in matches.items() if index in prepared}
        _refuse_others(others, about, share, [run for run in own.values() if not run.finished])
        taken.update(own)
        newest = max((run.sweep for run in matches.values()), default=None)
        if newest:
            # What begins now belongs to what was begun then.
            sweep["start_time"], sweep["id"] = newest
        return [run.path.name for run in own.values() if not run.finished]

    about = {"sweep": digest_of_sweep(experiments), "rank": share.rank, "world_size": share.world_size}
    # One folder may be spelled in several ways.
    directories = {
        _resolved(each.parameters["output_dir"]): Path(each.parameters["output_dir"]) for each in prepared.values()
    }
    with present(directories.values(), process, about, take if resume else None):
        for index, run in taken.items():
            if stop:
                return [], len(indices)
            if not run.finished:
                prepared[index] = _taken_up(problem, prepared[index], experiments[index], run)
        _say_what_there_is(len(experiments), share, prepared, taken, resume)
        waiting = [each for index, each in prepared.items() if not (index in taken and taken[index].finished)]
        return _train(problem, waiting, sweep, process, share, stop), len(indices)


@cache
def _resolved(directory: str) -> Path:
    return Path(directory).resolve()


def _with_what_is_known(parameters: Parameters, experiment: Experiment | None) -> Parameters:
    """The parameters of the list, with the learning rate and the precision, which may be those of a checkpoint."""
    if experiment is None:
        return parameters
    known = {name: experiment.parameters[name] for name in ("lr", "dtype")}
    return replace(parameters, values={**parameters.values, **known})


def _prepared(problem: ModuleType, parameters: Parameters, index: int, total: int) -> Experiment:
    try:
        experiment = problem.prepare(parameters)
    except UserError as error:
        raise error if total == 1 else UserError(f"experiment {index + 1} of the list: {error}") from None
    experiment.number = index + 1
    experiment.inputs_sha256 = digest_of_inputs(experiment.parameters)
    experiment.keeps_history = parameters["store_checkpoints"] or parameters["plot_metrics"]
    return experiment


def _refuse_others(
    others: Sequence[dict[str, Any]], about: dict[str, Any], share: Share, unfinished: Sequence[Earlier]
) -> None:
    """Raises UserError where another process that lives is at what is to be taken up."""
    for other in others:
        same = other["sweep"] == about["sweep"] and share.overlaps(other["rank"], other["world_size"])
        unknown = other["sweep"] is None
        if same or unknown or any(run.provenance.get("process") == other["id"] for run in unfinished):
            raise held_by(other)
        if any(run.path.name in other["folders"] for run in unfinished):
            raise held_by(other)


def _taken_up(problem: ModuleType, experiment: Experiment, parameters: Parameters, run: Earlier) -> Experiment:
    """The experiment as the continuation of an earlier run: with its seed, its folder, and its checkpoint, where there
    is one. Raises UserError where that is damaged.
    """
    if experiment.parameters["random_seed"] != run.seed:
        seeded = replace(parameters, values={**parameters.values, "random_seed": run.seed})
        experiment = _prepared(problem, seeded, experiment.number - 1, total=1)
    experiment.earlier = run
    checkpoint = newest_checkpoint(run.path)
    if checkpoint:
        problem.go_on(experiment, str(checkpoint))
    return experiment


def _say_what_there_is(
    total: int, share: Share, prepared: dict[int, Experiment], taken: dict[int, Earlier], resume: bool
) -> None:
    line = f"{total} experiment{'s' if total != 1 else ''}"
    if share.world_size > 1:
        line += f", {len(prepared)} of them for process {share.rank} of {share.world_size}"
    if resume:
        finished = sum(run.finished for run in taken.values())
        gone_on = sum(each.earlier is not None and each.epoch >= 0 for each in prepared.values())
        line += f": {finished} finished before, {gone_on} to continue, {len(prepared) - finished - gone_on} to start"
    say(line)


def _how_to_go_on(experiments: Sequence[Parameters]) -> str:
    resume = [] if {"-resume", "--resume"} & set(sys.argv) else ["-resume"]
    command = shlex.join(["python", *sys.argv, *resume])
    with_checkpoints = sum(each["store_checkpoints"] for each in experiments)
    if with_checkpoints == len(experiments):
        return f"to go on where it was: {command}"
    if with_checkpoints:
        return f"to go on, without -store_checkpoints from the beginning: {command}"
    return f"without -store_checkpoints there is nothing to continue from; to do the rest: {command}"


def _train(
    problem: ModuleType,
    experiments: Sequence[Experiment],
    sweep: dict[str, Any],
    process: str,
    share: Share,
    stop: Stop,
) -> list[str]:
    """Trains what there is, batch by batch. Returns what failed."""
    with _picture_processes(experiments, stop) as pictures:
        about = Surroundings(problem, pictures, sweep, process, share.rank, stop)
        for batch, device, kernel in _batches(problem, experiments, share):
            # Of one experiment, not of the batch: an experiment's bits may depend on the number of threads.
            with one_thread(problem.multiplications_per_step(batch[0]) < _THREADS_PAY_FROM):
                for part in _parts(batch):
                    if not stop:
                        Batch(part, device, kernel, about).run()
    return about.failures


def _batches(
    problem: ModuleType, experiments: Sequence[Experiment], share: Share
) -> list[tuple[list[Experiment], torch.device, Kernel | None]]:
    """The experiments in batches, with their devices and kernels. Raises UserError where these are not to be had."""
    grouped: dict[tuple, list[Experiment]] = {}
    for experiment in experiments:
        grouped.setdefault(_batch_key(experiment), []).append(experiment)
    devices = [_device(problem, batch, share) for batch in grouped.values()]
    return [
        (batch, device, _kernel(problem, batch[0], device))
        for batch, device in zip(grouped.values(), devices, strict=True)
    ]


def _batch_key(experiment: Experiment) -> tuple:
    parameters = experiment.parameters
    same = ("dtype", "engine", "validate_every", "disable_gpu", "gpu_id")
    return (
        experiment.stop_reason is not None,
        *experiment.batch_key,
        experiment.epoch,
        (experiment.optimizer_state or {}).get("step"),
        *(parameters[name] for name in same),
    )


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


def _device(problem: ModuleType, experiments: Sequence[Experiment], share: Share) -> torch.device:
    """A GPU where there is one, it may be used, and the batch's steps are large enough for it to pay. Of processes that
    were started together on a machine, each has its own, in turn from -gpu_id on.
    """
    parameters = experiments[0].parameters
    if parameters["disable_gpu"] or parameters["engine"] == "native" or not torch.cuda.is_available():
        return torch.device("cpu")
    number = torch.cuda.device_count()
    if parameters["gpu_id"] >= number:
        remedy = f"there are {number} GPUs, counted from 0; give one of them or -disable_gpu"
        raise flag_error("gpu_id", parameters["gpu_id"], remedy)
    pays = sum(map(problem.multiplications_per_step, experiments)) >= _GPU_PAYS_FROM
    own = (parameters["gpu_id"] + share.local_rank) % number
    return torch.device("cuda", own) if pays else torch.device("cpu")


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
def _picture_processes(experiments: Sequence[Experiment], stop: Stop) -> Iterator[PictureProcesses | None]:
    """The processes that draw, where there is something to draw. At the end everything is drawn, unless a signal came:
    a continued run draws it.
    """
    drawn = sum(experiment.parameters["plot_metrics"] for experiment in experiments)
    if not drawn:
        yield None
        return
    pictures = PictureProcesses(2 if drawn > _ONE_PROCESS_DRAWS else 1)
    try:
        yield pictures
    finally:
        pictures.close(give_up=lambda: bool(stop))
