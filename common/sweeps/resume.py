"""The runs of earlier sweeps that -resume continues."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.cli import Parser
from common.recorded_runs import RecordedRun, canonical, is_number, newest_checkpoint, read_runs
from common.sweeps.checkpoint import load_checkpoint
from common.sweeps.experiment import Experiment, Identity, prepare
from common.sweeps.progress import say
from common.sweeps.training import Sweep
from common.training.history import FINAL_REASONS, INTERRUPTED


def resume_experiments(sweep: Sweep) -> None:
    """Drops the experiments that earlier runs have finished; those with an unfinished run continue it. Experiments that
    begin now belong to the earlier sweep of their folder: its id and time are set in `sweep.records`.
    """
    folders = [Path(parameters["output_dir"]).resolve() for parameters, _ in sweep.listed]
    matches: dict[int, RecordedRun] = {}
    for directory, record in sweep.records.items():
        runs, damaged = read_runs(directory)
        for line in damaged:
            say(f"skipped {directory}/{line}")
        wanted = {index: each for index, (_, each) in enumerate(sweep.listed) if folders[index] == directory}
        here = _match(wanted, runs, sweep.listed[0][0].parser)
        if newest := max(here.values(), key=lambda run: run.order, default=None):
            sweep.records[directory] = {**record, "id": newest.sweep.get("id"), "start_time": newest.order[0]}
        matches |= here
    for index, run in matches.items():
        if run.status.get("finished"):
            sweep.experiments.pop(index, None)
        elif index in sweep.experiments:
            sweep.experiments[index] = _continued(sweep.experiments[index], run)


def _match(wanted: Mapping[int, Identity], runs: Sequence[RecordedRun], parser: Parser) -> dict[int, RecordedRun]:
    """Returns the run that each experiment continues, by index: the last of `runs` with the same identity. Experiments
    with seed -1 continue the newest sweep only.

    `parser` declares the flags. A run that was recorded before a flag existed has its default value.
    """
    indices = {(group, each["seed"], each["occurrence"]): index for index, (group, each) in wanted.items()}
    asked = {name for _, record in wanted.values() for name in (*record["run"], *record["outputs"])}
    found: dict[int, RecordedRun] = {}
    newest = None
    for run in runs:
        seed = run.parameters.get("random_seed")
        if not (run.sweep and run.status and run.identity and is_number(seed, 0)):
            continue  # of other code
        names = asked.union(run.identity.get("run", ()), run.identity.get("outputs", ()))
        compared = {name: run.parameters.get(name, parser.get_default(name)) for name in names}
        seed = run.identity.get("seed", seed)
        index = indices.get((canonical([compared, run.inputs]), seed, run.identity.get("occurrence", 1)))
        if index is None:
            continue
        if seed == -1 and run.sweep.get("id") != newest:
            newest = run.sweep.get("id")
            found = {index: each for index, each in found.items() if wanted[index].record["seed"] >= 0}
        found[index] = run
    return found


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
    first_epoch, last_epoch, dtype = experiment.epoch, experiment.last_epoch, experiment.parameters["dtype"]
    try:
        state, _ = load_checkpoint(path, experiment.problem, dtype)
        epoch, reason = state["epoch"], state["stop_reason"]
        if not first_epoch <= epoch < last_epoch + (reason in FINAL_REASONS):
            raise ValueError(f"is at epoch {epoch}, outside the run's {first_epoch + 1} to {last_epoch}")
    except (OSError, ValueError) as error:
        say(f"{path}: {error}; this experiment begins again")
        return experiment
    experiment.start_from(state)
    if reason == INTERRUPTED:
        experiment.stop_reason = None
        if (epoch + 1) % experiment.parameters["validate_every"] > 0 and epoch > first_epoch:
            # A checkpoint of version 1.0.0, which has a record there.
            experiment.history.drop_last(epoch)
    return experiment
