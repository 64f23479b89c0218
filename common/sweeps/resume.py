"""The runs of earlier sweeps that -resume continues."""

from collections import Counter
from collections.abc import Mapping, Sequence

from common.cli import Parameters, flag_errors
from common.recorded_runs import RecordedRun, canonical, is_number, newest_checkpoint
from common.sweeps.checkpoint import load_checkpoint
from common.sweeps.experiment import Experiment, Identity, prepare
from common.training.history import FINAL_REASONS, INTERRUPTED


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
    equal: Counter = Counter()
    newest = None
    for run in runs:
        seed = run.parameters.get("random_seed")
        if not (run.sweep and run.status and run.inputs and is_number(seed, 0)):
            continue  # of other code
        names = asked.union(run.identity.get("run", ()), run.identity.get("outputs", ()))
        compared = {name: run.parameters.get(name, parameters.parser.get_default(name)) for name in names}
        group = canonical([compared, run.inputs])
        # The seed of a folder without an identity may have been drawn.
        seed = run.identity.get("seed", seed if (group, seed) in explicit else -1)
        sweep = run.sweep.get("id")
        equal[sweep, group, seed] += 1
        table[group, seed, run.identity.get("occurrence", equal[sweep, group, seed])] = run
        newest = sweep if seed == -1 and (group, seed) in explicit else newest
    found = {index: table.get((group, each["seed"], each["occurrence"])) for index, (group, each) in wanted.items()}
    return {
        index: run
        for index, run in found.items()
        if run and (wanted[index].record["seed"] >= 0 or run.sweep.get("id") == newest)
    }


def restore(experiment: Experiment, run: RecordedRun) -> Experiment:
    """Returns the experiment as the continuation of an unfinished run, with its seed and from its newest checkpoint, if
    there is one. Raises UserError if that is damaged.
    """
    problem, seed = experiment.problem, run.parameters["random_seed"]
    if seed != experiment.parameters["random_seed"]:
        values = {**problem.parameters, "random_seed": seed}
        experiment = prepare(type(problem), values, experiment.identity, experiment.number)
    experiment.previous = run
    path = newest_checkpoint(run.path)
    if path is None:
        return experiment
    problem, state, first_epoch = experiment.problem, experiment.state, experiment.state.epoch
    with flag_errors("resume", path, "remove it to start again"):
        shapes, dtype = tuple(problem.factor_shapes), problem.parameters["dtype"]
        checkpoint = load_checkpoint(str(path), problem.model, shapes, problem.optimizer, dtype)
        ended = checkpoint.stop_reason in FINAL_REASONS
        if not first_epoch <= checkpoint.epoch < state.last_epoch + ended:
            raise ValueError(
                f"is at epoch {checkpoint.epoch}, outside the run's {first_epoch + 1} to {state.last_epoch}"
            )
        if checkpoint.output is not None and checkpoint.output.shape != problem.model.matrix_shape(shapes):
            raise ValueError(f"has a last output of shape {tuple(checkpoint.output.shape)}")
    experiment.start_from(checkpoint)
    between_validations = (checkpoint.epoch + 1) % experiment.parameters["validate_every"] and state.epoch > first_epoch
    if ended:
        state.stop_reason, experiment.final_output = checkpoint.stop_reason, checkpoint.output
    elif checkpoint.stop_reason == INTERRUPTED and between_validations:
        # A run without interruption has no such record.
        state.history.drop_last(checkpoint.epoch)
    return experiment
