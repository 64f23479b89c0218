"""Checkpoints: everything an exact continuation needs. Those of the original code can be continued too."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import Parameters, UserError, flag_error
from common.tensor_files import is_plain_tensor, load_dictionary
from common.training.engines import Engine
from common.training.history import History, evaluator_state, series_of_evaluator
from common.training.lockstep import DIVERGED, EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, Run

FINAL_REASONS = (DIVERGED, EPOCHS, STALLED, ZERO_LOSS)
STOP_REASONS = (*FINAL_REASONS, INTERRUPTED)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: one experiment's factors and their precision, optimizer state (as it was written),
    history, last epoch, count of zero-loss validations, whether it moved since its last validation, and where it ended,
    why, and with which end-to-end matrix or tensor. `flag` is the one that named the file.
    """

    path: str
    flag: str
    factors: list[Tensor]
    dtype: str
    optimizer: dict[str, Any]
    history: History
    epoch: int
    zero_loss_validations: int
    moved_since_validation: bool
    stop_reason: str | None
    output: Tensor | None

    def adopted(self, parameters: Parameters) -> dict[str, Any]:
        """The parameters that are the checkpoint's: precision, and learning rate unless one was given."""
        lr = parameters["lr"] if "lr" in parameters.given else float(self.optimizer["param_groups"][0]["lr"])
        return {"dtype": self.dtype, "lr": lr}

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
        """A UserError about the file."""
        return flag_error(self.flag, self.path, problem)


def checkpoint_state(run: Run, engine: Engine, position: int, output: Tensor | None = None) -> dict[str, Any]:
    """The checkpoint of a run that is up to date, and whose state is at a position of the engine's batch. Of one that
    ended, `output` is its last end-to-end matrix or tensor.
    """
    return {
        "model": engine.model.experiment_state(position),
        "optimizer": engine.optimizer.experiment_state(position, len(engine.model.views)),
        "train_evaluator": evaluator_state(run.history.train),
        "val_evaluator": evaluator_state(run.history.validation),
        "epoch": run.epoch,
        "trainer": {
            "zero_loss_validations": run.zero_loss_validations,
            "moved_since_validation": run.moved_since_validation,
            "stop_reason": run.stop_reason,
            "output": output,
        },
    }


def go_on_from(run: Run, checkpoint: Checkpoint, validate_every: int) -> None:
    """Makes a run that has not begun go on from a checkpoint of its own, to where it was to end."""
    last_epoch, first_epoch = run.epoch + run.num_epochs, run.epoch
    if not first_epoch <= checkpoint.epoch <= last_epoch:
        raise checkpoint.error(f"is at epoch {checkpoint.epoch}, where the run was from {first_epoch} to {last_epoch}")
    for name, value in checkpoint.progress(validate_every).items():
        setattr(run, name, value)
    run.num_epochs = last_epoch - checkpoint.epoch
    if checkpoint.stop_reason == INTERRUPTED:
        # What an interruption recorded between validations, an undisturbed run does not have.
        if (checkpoint.epoch + 1) % validate_every and checkpoint.epoch > first_epoch:
            run.history.drop_last(checkpoint.epoch)
    elif checkpoint.stop_reason is not None:
        run.stop_reason = checkpoint.stop_reason


def load_checkpoint(
    path: str, flag: str, parameters: Parameters, factors_name: str, adaptive: bool = False
) -> Checkpoint:
    """The checkpoint to continue, which `flag` named: of a model whose parameters are `factors_name`.0,
    `factors_name`.1, …, trained by GroupRMSprop where `adaptive`, else by plain gradient descent. In its own precision,
    unless -dtype was given.

    Raises UserError, naming the flag, where the file is something else.
    """
    content = load_dictionary(path, flag)
    try:
        model = content["model"]
        factors = [model[f"{factors_name}.{index}"] for index in range(len(model))]
        if not factors or not all(is_plain_tensor(factor) and factor.dim() == 2 for factor in factors):
            raise ValueError("its parameters are no matrices")
        own_dtype = str(factors[0].dtype).removeprefix("torch.")
        if own_dtype not in ("float32", "float64"):
            raise ValueError("its parameters are neither float32 nor float64")
        dtype = parameters["dtype"] if "dtype" in parameters.given else own_dtype
        history = History()
        history.train = series_of_evaluator(content["train_evaluator"], np.dtype(dtype))
        history.validation = series_of_evaluator(content["val_evaluator"], np.dtype(dtype))
        trainer = content.get("trainer", {})
        stop_reason, output = trainer.get("stop_reason"), trainer.get("output")
        known = stop_reason is None or (isinstance(stop_reason, str) and stop_reason in STOP_REASONS)
        if not known or not (output is None or is_plain_tensor(output)):
            raise ValueError("how it ended is not known here")
        if stop_reason in FINAL_REASONS and output is None:
            raise ValueError("what it ended with is missing")
        checkpoint = Checkpoint(
            path,
            flag,
            [factor.detach().to(getattr(torch, dtype)) for factor in factors],
            dtype,
            content["optimizer"],
            history,
            int(content["epoch"]),
            int(trainer.get("zero_loss_validations", 0)),
            bool(trainer.get("moved_since_validation", True)),
            stop_reason,
            output,
        )
        recorded = [series.last[0] for series in (history.train | history.validation).values()]
        if not 0 <= checkpoint.epoch < 2**62:
            raise ValueError("its epoch is out of range")
        if checkpoint.epoch < max(recorded, default=-1):
            raise ValueError(f"its epoch, {checkpoint.epoch}, is before its last record")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        remedy = "give one written by this runner" if flag == "trainer_checkpoint" else "remove it to begin anew"
        raise flag_error(flag, path, f"is no checkpoint of such a model ({reason}); {remedy}") from None
    if not _is_of_optimizer(checkpoint.optimizer, adaptive):
        name = "GroupRMSprop (-use_adaptive_lr)" if adaptive else "plain gradient descent"
        raise checkpoint.error(f"was not written by {name}; give one that was")
    return checkpoint


def _is_of_optimizer(state: Any, adaptive: bool) -> bool:
    try:
        (group,) = state["param_groups"]
        if not 0 < float(group["lr"]) < math.inf:
            return False
        # Momentum, weight decay and Adam's betas would be terms of the step that are not taken here.
        if any(group.get(term) for term in ("momentum", "weight_decay", "nesterov", "betas")):
            return False
        if not adaptive:
            return not state["state"] and "beta" not in group
        return int(state["state"]["step"]) >= 0 and not float(state["state"]["square_avg"]) < 0  # NaN: it diverged
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError):
        return False
