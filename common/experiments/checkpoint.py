"""Checkpoints: everything an exact continuation needs. Those of the original code can be continued too."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import UserError, flag_error
from common.files import load_dictionary
from common.training.history import History, evaluator_state, series_of_evaluator
from common.training.lockstep import LockstepTrainer


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: one experiment's factors, optimizer state (as it was written), history, last
    epoch, count of zero-loss validations, and whether it moved since its last validation.
    """

    path: str
    factors: list[Tensor]
    optimizer: dict[str, Any]
    history: History
    epoch: int
    zero_loss_validations: int
    moved_since_validation: bool

    def progress(self, validate_every: int) -> dict[str, Any]:
        """What a Run that continues it starts from, as keyword arguments."""
        at_validation = (self.epoch + 1) % validate_every == 0
        return {
            "history": self.history,
            "epoch": self.epoch,
            "zero_loss_validations": self.zero_loss_validations,
            "moved_since_validation": self.moved_since_validation and not at_validation,
        }

    def error(self, problem: str) -> UserError:
        """A UserError about -trainer_checkpoint."""
        return flag_error("trainer_checkpoint", self.path, problem)


def checkpoint_state(trainer: LockstepTrainer, position: int) -> dict[str, Any]:
    """The checkpoint of the run at a position of the trainer's batch."""
    run = trainer.sync(position)
    model = trainer.engine.model
    return {
        "model": model.experiment_state(position),
        "optimizer": trainer.engine.optimizer.experiment_state(position, len(model.views)),
        "train_evaluator": evaluator_state(run.history.train),
        "val_evaluator": evaluator_state(run.history.validation),
        "epoch": run.epoch,
        "trainer": {
            "zero_loss_validations": run.zero_loss_validations,
            "moved_since_validation": run.moved_since_validation,
        },
    }


def load_checkpoint(path: str, factors_name: str, dtype: str | None) -> Checkpoint:
    """Reads a checkpoint of a model whose parameters are `factors_name`.0, `factors_name`.1, …, in its own precision
    or, where `dtype` is given, in this.

    Raises UserError, naming -trainer_checkpoint, where the file is none.
    """
    content = load_dictionary(path, "trainer_checkpoint")
    try:
        model = content["model"]
        factors = [model[f"{factors_name}.{index}"] for index in range(len(model))]
        if not factors or not all(isinstance(factor, Tensor) and factor.dim() == 2 for factor in factors):
            raise ValueError("its parameters are no matrices")
        if any(factor.dtype not in (torch.float32, torch.float64) for factor in factors):
            raise ValueError("its parameters are neither float32 nor float64")
        dtype = dtype or str(factors[0].dtype).removeprefix("torch.")
        factors = [factor.to(getattr(torch, dtype)) for factor in factors]
        history = History()
        history.train = series_of_evaluator(content["train_evaluator"], np.dtype(dtype))
        history.validation = series_of_evaluator(content["val_evaluator"], np.dtype(dtype))
        trainer = content.get("trainer", {})
        return Checkpoint(
            path,
            factors,
            content["optimizer"],
            history,
            int(content["epoch"]),
            int(trainer.get("zero_loss_validations", 0)),
            bool(trainer.get("moved_since_validation", True)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise flag_error(
            "trainer_checkpoint", path, f"is no checkpoint of such a model ({reason}); give one written by this runner"
        ) from None
