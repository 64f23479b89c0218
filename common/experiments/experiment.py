"""An experiment: its parameters, what is fitted, where it starts, how it is trained, and its folder."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from common.experiments.folder import ExperimentFolder
from common.training.history import History
from common.training.lockstep import Run


@dataclass(kw_only=True, eq=False)
class Experiment(Run):
    """One experiment, checked and ready to be trained.

    Attributes
    ----------
    parameters : value of every flag, as recorded in run_params.json.
    factors : the factors it starts from, on the CPU, in the run's precision.
    optimizer_state : the optimizer's state where it starts, as a checkpoint has it; None where there is none.
    dataset : what is fitted.
    batch_key : experiments can be stacked where these agree (and the parameters that sweep.py looks at).
    memory : bytes that it takes in training, its history at its longest included, about.
    number : its place in the sweep, from 1.
    folder : its folder, while it is in training.
    saved_at : the number of validations at the last output of each kind along the way.
    """

    parameters: dict[str, Any]
    factors: list[Tensor]
    dataset: Any
    batch_key: tuple
    memory: int
    optimizer_state: dict[str, Any] | None = None
    number: int = 1
    folder: ExperimentFolder | None = None
    saved_at: dict[str, int] = field(default_factory=dict)

    def release(self) -> None:
        """Lets go of what takes memory, once everything is written."""
        self.history, self.factors, self.folder = History(), [], None
