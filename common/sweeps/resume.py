"""The runs of earlier sweeps that -resume continues."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import Parameters
from common.recorded_runs import RecordedRun, canonical, is_number, newest_checkpoint, read_runs
from common.sweeps.checkpoint import load_checkpoint
from common.sweeps.experiment import Experiment, Identity, prepare
from common.sweeps.progress import say
from common.training.history import FINAL_REASONS, INTERRUPTED


def resume_experiments(
    experiments: Mapping[int, Experiment],
    identities: Sequence[Identity],
    parameters: Sequence[Parameters],
    records: dict[Path, dict[str, Any]],
) -> list[Experiment]:
    """Returns the unfinished ones of this process's `experiments`; those with an earlier run continue it. `identities`
    and `parameters` are those of all experiments of the sweep. Experiments that begin now belong to the earlier sweep
    of their folder: its id and time are set in `records`.
    """
    folders = [Path(each["output_dir"]).resolve() for each in parameters]
    matches: dict[int, RecordedRun] = {}
    for directory in records:
        runs, damaged = read_runs(directory)
        for line in damaged:
            say(f"skipped {directory}/{line}")
        wanted = {index: identity for index, identity in enumerate(identities) if folders[index] == directory}
        here = match_previous_runs(wanted, runs, parameters[0])
        if newest := max(here.values(), key=lambda run: run.order, default=None):
            known = {"id": newest.sweep.get("id"), "start_time": newest.order[0]}
            records[directory] = {**records[directory], **known}
        matches |= here
    unfinished = []
    for index, experiment in experiments.items():
        run = matches.get(index)
        if not (run and run.status.get("finished")):
            unfinished.append(_continued(experiment, run) if run else experiment)
    return unfinished


def match_previous_runs(
    wanted: Mapping[int, Identity], runs: Sequence[RecordedRun], parameters: Parameters
) -> dict[int, RecordedRun]:
    """Returns the run that each experiment continues, by index: the last of `runs` with the same identity. Experiments
    with seed -1 continue the newest sweep only.

    `parameters` declare the flags. A run that was recorded before a flag existed has its default value.
    """
    explicit = {(group, record["seed"]) for group, record in wanted.values()}
    asked = {name for identity in wanted.values() for name in (*identity.record["run"], *identity.record["outputs"])}
    table: dict[tuple, RecordedRun] = {}
    newest = None
    for run in runs:
        seed = run.parameters.get("random_seed")
        if not (run.sweep and run.status and run.identity and is_number(seed, 0)):
            continue  # of other code
        names = asked.union(run.identity.get("run", ()), run.identity.get("outputs", ()))
        compared = {name: run.parameters.get(name, parameters.parser.get_default(name)) for name in names}
        group, seed = canonical([compared, run.inputs]), run.identity.get("seed", seed)
        table[group, seed, run.identity.get("occurrence", 1)] = run
        newest = run.sweep.get("id") if seed == -1 and (group, seed) in explicit else newest
    found = {index: table.get((group, each["seed"], each["occurrence"])) for index, (group, each) in wanted.items()}
    return {
        index: run
        for index, run in found.items()
        if run and (wanted[index].record["seed"] >= 0 or run.sweep.get("id") == newest)
    }


def _continued(experiment: Experiment, run: RecordedRun) -> Experiment:
    """Returns the experiment as the continuation of an unfinished run, with its seed and from its newest checkpoint. If
    there is none, or if it is damaged, which costs a line, the experiment begins again.
    """
    problem, seed = experiment.problem, run.parameters["random_seed"]
    if seed != experiment.parameters["random_seed"]:
        values = {**problem.parameters, "random_seed": seed}
        experiment = prepare(type(problem), values, experiment.identity, experiment.number)
    experiment.previous = run
    path = newest_checkpoint(run.path)
    if path is None:
        return experiment
    problem, first_epoch = experiment.problem, experiment.epoch
    try:
        shapes, dtype = tuple(problem.factor_shapes), problem.parameters["dtype"]
        checkpoint = load_checkpoint(str(path), problem.model, shapes, problem.optimizer, dtype)
        ended = checkpoint.stop_reason in FINAL_REASONS
        if not first_epoch <= checkpoint.epoch < experiment.last_epoch + ended:
            span = f"{first_epoch + 1} to {experiment.last_epoch}"
            raise ValueError(f"is at epoch {checkpoint.epoch}, outside the run's {span}")
        if checkpoint.output is not None and checkpoint.output.shape != problem.model.matrix_shape(shapes):
            raise ValueError(f"has a last output of shape {tuple(checkpoint.output.shape)}")
    except (OSError, ValueError) as error:
        say(f"{path}: {error}; this experiment begins again")
        return experiment
    experiment.start_from(checkpoint)
    if ended:
        experiment.stop_reason, experiment.final_output = checkpoint.stop_reason, checkpoint.output
    between_validations = (checkpoint.epoch + 1) % experiment.parameters["validate_every"] > 0
    if checkpoint.stop_reason == INTERRUPTED and between_validations and checkpoint.epoch > first_epoch:
        # A checkpoint of version 1.0.0, which has a record there.
        experiment.history.drop_last(checkpoint.epoch)
    return experiment
