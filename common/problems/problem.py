"""What is specific to a kind of experiment: the interface that matrix factorization and tensor completion implement."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from common.flags import OPTIMIZERS
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


class Problem(Protocol):
    """One experiment's problem, made from its parameters. The constructor raises UserError if these are wrong."""

    model: ClassVar[type[BatchedFactorization]]  # the factorization that is trained
    max_zero_loss_validations: ClassVar[int]  # training ends when more occur in a row
    headline: ClassVar[re.Pattern]  # the metrics that the console shows when an experiment ends
    target_flags: ClassVar[Sequence[str]]  # those of -random_target
    figures: ClassVar[Mapping[str, str]]  # file name → pattern of the metrics that are plotted in it together

    parameters: dict[str, Any]  # value of every flag
    recorded: dict[str, Any]  # what run_params.json records besides
    optimizer: type[Optimizer]
    decays: bool  # whether there is weight decay
    batch_key: tuple  # experiments with equal keys can be trained in one batch, and have the same metrics
    output_shape: tuple[int, ...]  # of the end-to-end matrix or tensor
    factor_shapes: list[tuple[int, int]]  # of the factors
    observes_entries: bool  # whether every observation is one entry
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
