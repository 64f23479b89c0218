"""Experiments, checked and ready to be trained: from their parameters, or as the continuation of an earlier run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

from torch import Tensor

from common.cli import Parameters, flag_errors
from common.flags import drawn_seed
from common.problems.problem import Problem
from common.recorded_runs import RecordedRun, newest_checkpoint
from common.sweeps.checkpoint import FINAL_REASONS, Checkpoint, load_checkpoint
from common.sweeps.folder import ExperimentFolder
from common.sweeps.resume import Identity
from common.training.history import INTERRUPTED, History, TrainingState

_load_checkpoint = lru_cache(maxsize=4)(load_checkpoint)


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

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Starts where a checkpoint is."""
        checkpoint.apply(self.state, self.parameters["validate_every"])
        self.factors, self.optimizer_state = checkpoint.factors, checkpoint.optimizer["state"] or None

    def release(self) -> None:
        """Frees the memory of an experiment whose results are written."""
        self.state.history, self.factors, self.final_output = History(), [], None


def _trainer_checkpoint(problem: Problem, dtype: str | None) -> Checkpoint:
    path = problem.parameters["trainer_checkpoint"]
    with flag_errors("trainer_checkpoint", path):
        checkpoint = _load_checkpoint(path, problem.model, problem.optimizer, dtype)
        problem.check_factors(checkpoint.factors)
    return checkpoint


def resolve(kind: type[Problem], parameters: Parameters) -> dict[str, Any]:
    """The values of all parameters. If a checkpoint is continued, learning rate and dtype are the checkpoint's unless
    they are given.
    """
    values, given = dict(parameters.values), parameters.given
    if values["trainer_checkpoint"]:
        checkpoint = _trainer_checkpoint(kind(values), values["dtype"] if "dtype" in given else None)
        values |= {"dtype": checkpoint.dtype, "lr": values["lr"] if "lr" in given else checkpoint.lr}
    return values


def prepare(kind: type[Problem], values: Mapping[str, Any], identity: Identity, number: int) -> Experiment:
    """Checks resolved parameters against each other and the files they name, and draws or loads the initial factors.

    Raises UserError. Writes nothing.
    """
    problem = kind({**values, "random_seed": drawn_seed(values["random_seed"])})
    state = TrainingState(
        last_epoch=values["epochs"] - 1,
        zero_loss_tol=values["stop_on_zero_loss_tol"],
        measure=problem.measure,
        keeps_history=values["store_checkpoints"] or values["plot_metrics"],
        measures_slowly=problem.measures_slowly,
    )
    experiment = Experiment(number, problem.parameters | problem.recorded, problem, identity, state)
    if values["trainer_checkpoint"]:
        experiment.start_from(_trainer_checkpoint(problem, values["dtype"]))
        state.last_epoch += state.epoch + 1
    else:
        experiment.factors = problem.initial_factors()
    return experiment


def restore(experiment: Experiment, run: RecordedRun) -> Experiment:
    """The experiment as the continuation of an unfinished run: with its seed, and from its newest checkpoint, if there
    is one. Raises UserError if that is damaged.
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
        checkpoint = load_checkpoint(str(path), problem.model, problem.optimizer, problem.parameters["dtype"])
        problem.check_factors(checkpoint.factors)
        ended = checkpoint.stop_reason in FINAL_REASONS
        if not first_epoch <= checkpoint.epoch < state.last_epoch + ended:
            raise ValueError(
                f"is at epoch {checkpoint.epoch}, outside the run's {first_epoch + 1} to {state.last_epoch}"
            )
        if checkpoint.output is not None and checkpoint.output.numel() != prod(problem.output_shape):
            raise ValueError(f"has a last output of {checkpoint.output.numel()} numbers")
    experiment.start_from(checkpoint)
    between_validations = (checkpoint.epoch + 1) % experiment.parameters["validate_every"] and state.epoch > first_epoch
    if ended:
        state.stop_reason, experiment.final_output = checkpoint.stop_reason, checkpoint.output
    elif checkpoint.stop_reason == INTERRUPTED and between_validations:
        # An undisturbed run has no such record.
        state.history.drop_last(checkpoint.epoch)
    return experiment
