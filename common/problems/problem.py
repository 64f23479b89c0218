"""What is specific to a kind of experiment: the interface that matrix factorization and tensor completion implement."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from common.datasets.matrix_sensing import MatrixSensing
from common.datasets.tensor_completion import TensorCompletion
from common.flags import OPTIMIZERS
from common.metrics.matrix import reconstruction_error
from common.models.factorization import BatchedFactorization
from common.training import optimizers
from common.training.history import Metrics, TrainingState
from common.training.objectives import Objective
from common.training.optimizers import Optimizer


@dataclass(frozen=True)
class Results:
    """What an experiment writes at its end."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # by file name
    name: str = ""  # of the JSON file of the numbers, which is written last
    numbers: dict[str, float | int | None] = field(default_factory=dict)
    extra_metrics: dict[str, float] = field(default_factory=dict)  # reported beside the recorded ones


def optimizer_of(parameters: Mapping[str, Any]) -> type[Optimizer]:
    """Returns the class that -optimizer names."""
    return getattr(optimizers, OPTIMIZERS[parameters["optimizer"]])


def as_metrics(train: Mapping[str, Tensor], validation: Mapping[str, Tensor], losses: np.ndarray) -> Metrics:
    """Returns train and validation metrics with the shape (B, K) of `losses`, from B · K values of each. Train metrics
    are rounded to the dtype of `losses`.
    """
    rounded = [each.to(torch.from_numpy(losses).dtype) for each in train.values()]
    stacked = torch.stack([each.flatten().double() for each in (*rounded, *validation.values())]).numpy()
    return (tuple(train), tuple(validation)), stacked.reshape(-1, *losses.shape)


def error_masks(dataset: MatrixSensing | TensorCompletion, target: Tensor) -> dict[str, Tensor | None]:
    """Returns the mask of the entries over which each error is taken, by name; None for all entries. The errors are
    reconstruction_error and, if the known entries are listed, held_out_error, over those that are not observed. They
    are relative, so that those over which the `target` is zero are left out.
    """
    masks = {"reconstruction_error": dataset.known}
    if dataset.known is not None and dataset.observed_entries is not None:
        masks["held_out_error"] = dataset.known.clone()
        masks["held_out_error"].view(-1)[dataset.observed_entries] = False
    return {name: mask for name, mask in masks.items() if (target if mask is None else target[mask]).any()}


def relative_errors(problems: Sequence["Problem"], targets: Sequence[Tensor], outputs: Tensor) -> dict[str, Tensor]:
    """Returns each error (B · K) of `error_masks` of end-to-end matrices or tensors (B, K, …) and B targets."""
    size, count = outputs.shape[:2]

    def repeated(each: Sequence[Tensor]) -> Tensor:
        return torch.stack(each).view(size, 1, -1).expand(-1, count, -1).flatten(0, 1)

    outputs, flat_targets, errors = outputs.double().view(size * count, -1), repeated(targets), {}
    for name, mask in problems[0].error_masks.items():
        chosen = 1 if mask is None else repeated([problem.error_masks[name] for problem in problems])
        errors[name] = reconstruction_error(outputs * chosen, flat_targets * chosen)
    return errors


class Problem(Protocol):
    """One experiment's problem, made from its parameters. The constructor raises UserError if these are wrong."""

    model: ClassVar[type[BatchedFactorization]]  # the factorization that is trained
    max_zero_loss_validations: ClassVar[int]  # training ends when more occur in a row
    headline: ClassVar[re.Pattern]  # the metrics that the console shows when an experiment ends
    target_flags: ClassVar[Sequence[str]]  # those of -random_target
    figures: ClassVar[Mapping[str, str]]  # file name → pattern of the metrics that are plotted in it together

    parameters: dict[str, Any]  # value of every flag
    dataset: MatrixSensing | TensorCompletion  # with the samples that are observed
    recorded: dict[str, Any]  # what run_params.json records besides
    optimizer: type[Optimizer]
    decays: bool  # whether there is weight decay
    batch_key: tuple  # experiments with equal keys can be trained in one batch, and have the same metrics
    output_shape: tuple[int, ...]  # of the end-to-end matrix or tensor
    factor_shapes: list[tuple[int, int]]  # of the factors
    observes_entries: bool  # whether every observation is one entry
    error_masks: dict[str, Tensor | None]  # see `error_masks`
    measures_at_once: bool  # see Trainer
    multiplications: int  # per step, approximately
    num_observations: tuple[int, int]  # that are used, and that the dataset has
    num_metrics: int  # per validation, approximately
    working_size: int  # approximate count of numbers in memory, without the history

    def __init__(self, parameters: dict[str, Any]): ...

    def initial_factors(self) -> list[Tensor]:
        """Draws the initial factors, on the CPU. Raises UserError if no draw is as the parameters demand."""

    @staticmethod
    def objective(problems: Sequence["Problem"], like: Tensor) -> Objective:
        """Returns the objective of a batch of problems with equal keys, with the dtype and device of `like`."""

    @staticmethod
    def measure(
        problems: Sequence["Problem"],
        losses: np.ndarray,
        outputs: np.ndarray,
        factors: Sequence[Sequence[Tensor]] = (),
    ) -> Metrics:
        """Returns metrics (metrics, B, K) of B problems with equal keys, from losses (B, K) and end-to-end matrices or
        tensors (B, K, rows, cols). If they measure at once, then K = 1, and `factors` are those of each experiment, on
        the CPU.
        """

    def results(self, state: TrainingState, output: Tensor) -> Results:
        """Results of an experiment that ended, from its last end-to-end matrix or tensor."""
