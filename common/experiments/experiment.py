"""An experiment: its parameters, what is fitted, where it starts, how it is trained, and its folder."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from common.experiments.checkpoint import Checkpoint, go_on_from
from common.experiments.folder import ExperimentFolder
from common.experiments.resume import Earlier
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
    inputs_sha256 : of the files that it reads.
    earlier : the run that it goes on with, None where it begins.
    final_output : the end-to-end matrix or tensor that it ended with, where that run had come so far.
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
    inputs_sha256: str = ""
    earlier: Earlier | None = None
    final_output: Tensor | None = None

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of its own, to where it was to end."""
        go_on_from(self, checkpoint, self.parameters["validate_every"])
        self.factors, self.final_output = checkpoint.factors, checkpoint.output

    def release_state(self) -> None:
        """Lets go of what takes memory, once its results are written."""
        self.history, self.factors, self.final_output = History(), [], None

    def release(self) -> None:
        """Lets go of its folder, too, once that is complete."""
        self.release_state()
        self.folder = None


@dataclass(frozen=True)
class Results:
    """What an experiment leaves at its end: tensors by file name, then a JSON file of `numbers` that is called `name`.
    `told` is what there is to say beside the metrics.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    name: str = ""
    numbers: dict[str, float | int | None] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
