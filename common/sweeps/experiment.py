"""Experiments, checked and ready to be trained, and their identities."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from common.cli import Parameters, flag_error, flag_errors
from common.datasets.flags import load_samples
from common.flags import OPTIMIZERS, drawn_seed
from common.problems.problem import Problem, optimizer_of
from common.recorded_runs import RecordedRun, canonical, read_run
from common.sweeps.checkpoint import load_checkpoint, read_checkpoint
from common.sweeps.folder import ExperimentFolder
from common.training.history import History, TrainingState


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def forget_files() -> None:
    """Forgets the files that were read: a sweep reads each of them once, and the next sweep reads them again."""
    for read in (load_samples, read_checkpoint, _digest):
        read.cache_clear()


class Identity(NamedTuple):
    """What makes two runs the same."""

    group: str  # equal for runs that differ at most in the seed
    record: dict[str, Any]  # what its folder records; see `RecordedRun.identity`


@dataclass(eq=False, kw_only=True)
class Experiment(TrainingState):
    """One experiment of a sweep: the state of its training, and where it is recorded."""

    number: int  # its place in the list, from 1
    parameters: dict[str, Any]  # as recorded in run_params.json
    problem: Problem
    identity: Identity
    factors: list[Tensor] = field(default_factory=list)  # where it starts, on the CPU
    optimizer_state: dict[Any, Any] = field(default_factory=dict)  # there, in the format of torch.optim
    previous: RecordedRun | None = None  # the earlier run that it continues
    folder: ExperimentFolder | None = None  # from when it begins
    saved_at: int = 0  # the number of validations at the last checkpoint
    plotted_at: int = 0  # and at the last plots
    has_results: bool = False  # whether nothing is left to be trained or written, but for plots and the finished mark

    @property
    def output_dir(self) -> Path:
        """The absolute path of the output folder."""
        return Path(self.parameters["output_dir"]).resolve()

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Sets these attributes, which are of a checkpoint."""
        vars(self).update(state)
        if (self.epoch + 1) % self.parameters["validate_every"] == 0:
            self.moved_since_validation = False

    def release(self) -> None:
        """Frees the memory of an experiment whose results are written."""
        self.history, self.factors, self.final_output, self.has_results = History(), [], None, True


def resolve(kind: type[Problem], parameters: Parameters) -> dict[str, Any]:
    """Returns the values of all parameters. A run that continues a checkpoint has the target, if it is random, and the
    seed of the run that it continues; and the dtype of the checkpoint and the hyper-parameters of its optimizer, unless
    they are given. Raises UserError.
    """
    values, given = dict(parameters.values), parameters.given
    all_hyperparameters = {each for name in OPTIMIZERS for each in optimizer_of({"optimizer": name}).hyperparameters}
    others = all_hyperparameters - set(optimizer_of(values).hyperparameters)
    without_effect = dict.fromkeys(others, f"with -optimizer {values['optimizer']}")
    if not values["random_target"]:
        without_effect |= dict.fromkeys(kind.target_flags, "without -random_target")
    for name in sorted(given & without_effect.keys()):
        raise flag_error(name, values[name], f"has no effect {without_effect[name]}; leave it out")
    if values["random_target"]:
        if "dataset_path" in given:
            remedy = "contradicts -random_target; give only one of the two"
            raise flag_error("dataset_path", values["dataset_path"], remedy)
        values["dataset_path"] = ""
    if not values["trainer_checkpoint"]:
        return values
    if values["random_target"]:
        continued = _parameters_of_run(values["trainer_checkpoint"])
        for name in ("random_seed", *kind.target_flags):
            known = continued.get(name, values[name])
            if name in given and known != values[name]:
                raise flag_error(name, values[name], f"the run that is continued has {known}; leave it out")
            values[name] = known
        if values["random_seed"] < 0:
            remedy = "the seed of the run that is continued is unknown; give -random_seed"
            raise flag_error("random_target", True, remedy)
    _, settings = _trainer_checkpoint(kind(values), values["dtype"] if "dtype" in given else None)
    return values | {name: value for name, value in settings.items() if name not in given}


def identify(parameters: Parameters, values: Mapping[str, Any], equal: Counter) -> Identity:
    """Returns the identity of an experiment with these resolved values. `equal` counts the experiments of the list.

    Raises UserError if an input file cannot be read.
    """
    inputs = {}
    for name in parameters.names("inputs"):
        if values[name]:
            with flag_errors(name, values[name]):
                inputs[name] = _digest(values[name])
    defaults = {name: parameters.parser.get_default(name) for name in parameters.names("run", "start")}
    record = {"run": defaults, "outputs": parameters.names("outputs"), "inputs": inputs}
    if values["trainer_checkpoint"]:
        continued = _parameters_of_run(values["trainer_checkpoint"])
        record["origin"] = {name: continued.get(name) for name in (*parameters.names("start"), "random_seed")}
    group = canonical([{name: values[name] for name in (*record["run"], *record["outputs"])}, inputs])
    key = group, parameters["random_seed"], Path(values["output_dir"]).resolve()
    equal[key] += 1
    return Identity(group, {**record, "seed": parameters["random_seed"], "occurrence": equal[key]})


def _parameters_of_run(checkpoint: str) -> dict[str, Any]:
    """Returns the known parameters of the run that wrote a checkpoint."""
    try:
        values = read_run(Path(checkpoint).parent.parent).values
    except ValueError:
        return {}
    return {name: value for name, value in values.items() if value is not None}


def prepare(kind: type[Problem], values: Mapping[str, Any], identity: Identity, number: int) -> Experiment:
    """Returns an experiment with its initial factors, after checking the resolved parameters and the files they name.

    Raises UserError. Writes nothing.
    """
    problem = kind({**values, "random_seed": drawn_seed(values["random_seed"])})
    experiment = Experiment(
        number=number,
        parameters=problem.parameters | problem.recorded,
        problem=problem,
        identity=identity,
        last_epoch=values["epochs"] - 1,
        zero_loss_tol=values["stop_on_zero_loss_tol"],
        keeps_history=values["store_checkpoints"] or values["plot_metrics"],
    )
    if values["trainer_checkpoint"]:
        state, _ = _trainer_checkpoint(problem, values["dtype"])
        experiment.start_from({**state, "stop_reason": None, "final_output": None})
        experiment.last_epoch += experiment.epoch + 1
    else:
        experiment.factors = problem.initial_factors()
    return experiment


def _trainer_checkpoint(problem: Problem, dtype: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    path = problem.parameters["trainer_checkpoint"]
    with flag_errors("trainer_checkpoint", path):
        return load_checkpoint(path, problem, dtype)
