"""Experiments, checked and ready to be trained, and their identities."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from common.cli import Parameters, flag_error, flag_errors
from common.files import sha256_of_file
from common.flags import OPTIMIZERS, drawn_seed
from common.problems.problem import Problem, optimizer_of
from common.recorded_runs import RecordedRun, canonical, read_run
from common.sweeps.checkpoint import Checkpoint, load_checkpoint
from common.sweeps.folder import ExperimentFolder
from common.training.history import History, TrainingState

_load_checkpoint = lru_cache(maxsize=4)(load_checkpoint)


class Identity(NamedTuple):
    """What makes two runs the same."""

    group: str  # equal for runs that differ at most in the seed
    record: dict[str, Any]  # what its folder records; see `RecordedRun.identity`


@dataclass(eq=False)
class Experiment:
    """One experiment of a sweep."""

    number: int  # its place in the list, from 1
    parameters: dict[str, Any]  # as recorded in run_params.json
    problem: Problem
    identity: Identity
    state: TrainingState
    factors: list[Tensor] = field(default_factory=list)  # where it starts, on the CPU
    optimizer_state: dict[str, Any] | None = None
    previous: RecordedRun | None = None  # the earlier run that it continues
    final_output: Tensor | None = None  # the last end-to-end matrix or tensor, if it ended in that run
    folder: ExperimentFolder | None = None  # from when it begins
    saved_at: dict[str, int] = field(default_factory=dict)  # number of validations at the last output, by its flag
    failed: bool = False  # whether an output could not be written
    released: bool = False  # whether nothing is left to be trained or written, but for plots

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Sets the starting point to that of a checkpoint."""
        state, at_validation = self.state, (checkpoint.epoch + 1) % self.parameters["validate_every"] == 0
        # Several experiments may continue from it.
        state.history = History(checkpoint.history.train, checkpoint.history.validation)
        state.epoch, state.zero_loss_validations = checkpoint.epoch, checkpoint.zero_loss_validations
        state.moved_since_validation = checkpoint.moved_since_validation and not at_validation
        self.factors, self.optimizer_state = checkpoint.factors, checkpoint.optimizer_state or None

    def release(self) -> None:
        """Frees the memory of an experiment whose results are written."""
        self.state.history, self.factors, self.final_output, self.released = History(), [], None, True


def _trainer_checkpoint(problem: Problem, dtype: str | None) -> Checkpoint:
    path = problem.parameters["trainer_checkpoint"]
    with flag_errors("trainer_checkpoint", path):
        return _load_checkpoint(path, problem.model, tuple(problem.factor_shapes), problem.optimizer, dtype)


def resolve(kind: type[Problem], parameters: Parameters) -> dict[str, Any]:
    """Returns the values of all parameters. A run that continues a checkpoint has the dtype of the checkpoint and the
    hyper-parameters of its optimizer, unless they are given. Raises UserError.
    """
    values, given = dict(parameters.values), parameters.given
    all_hyperparameters = {each for name in OPTIMIZERS for each in optimizer_of({"optimizer": name}).hyperparameters}
    for name in sorted(given & all_hyperparameters - set(optimizer_of(values).hyperparameters)):
        raise flag_error(name, values[name], f"has no effect with -optimizer {values['optimizer']}; leave it out")
    if values["trainer_checkpoint"]:
        checkpoint = _trainer_checkpoint(kind(values), values["dtype"] if "dtype" in given else None)
        known = {"dtype": checkpoint.dtype, **checkpoint.hyperparameters}
        values |= {name: value for name, value in known.items() if name not in given}
    return values


def identify(parameters: Parameters, values: Mapping[str, Any], equal: Counter) -> Identity:
    """Returns the identity of an experiment with these resolved values. `equal` counts the experiments of the list.

    Raises UserError if an input file cannot be read.
    """
    inputs = {}
    for name in parameters.names("inputs"):
        if values[name]:
            with flag_errors(name, values[name]):
                inputs[name] = sha256_of_file(values[name])
    defaults = {name: parameters.parser.get_default(name) for name in parameters.names("run", "start")}
    record = {"run": defaults, "outputs": parameters.names("outputs"), "inputs": inputs}
    if values["trainer_checkpoint"]:
        record["origin"] = _origin(values["trainer_checkpoint"], [*parameters.names("start"), "random_seed"])
    group = canonical([{name: values[name] for name in (*record["run"], *record["outputs"])}, inputs])
    key = group, parameters["random_seed"], Path(values["output_dir"]).resolve()
    equal[key] += 1
    return Identity(group, {**record, "seed": parameters["random_seed"], "occurrence": equal[key]})


def _origin(checkpoint: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns these parameters of the run that wrote a checkpoint; None for those that are not known."""
    try:
        known = read_run(Path(checkpoint).parent.parent).values
    except ValueError:
        known = {}
    return {name: known.get(name) for name in names}


def prepare(kind: type[Problem], values: Mapping[str, Any], identity: Identity, number: int) -> Experiment:
    """Returns an experiment with its initial factors, after checking the resolved parameters and the files they name.

    Raises UserError. Writes nothing.
    """
    problem = kind({**values, "random_seed": drawn_seed(values["random_seed"])})
    state = TrainingState(
        last_epoch=values["epochs"] - 1,
        zero_loss_tol=values["stop_on_zero_loss_tol"],
        keeps_history=values["store_checkpoints"] or values["plot_metrics"],
    )
    experiment = Experiment(number, problem.parameters | problem.recorded, problem, identity, state)
    if values["trainer_checkpoint"]:
        experiment.start_from(_trainer_checkpoint(problem, values["dtype"]))
        state.last_epoch += state.epoch + 1
    else:
        experiment.factors = problem.initial_factors()
    return experiment
