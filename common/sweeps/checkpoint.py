"""Checkpoints, which have everything that an exact continuation needs. Those of the original code are read, too."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization
from common.tensor_files import is_float_tensor, load_dictionary
from common.training.history import (
    FINAL_REASONS,
    INTERRUPTED,
    History,
    TrainingState,
    evaluator_state,
    metrics_of_evaluator,
)
from common.training.native_engine import Engine
from common.training.optimizers import Optimizer

# What files raise that hold something else.
_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    factors: list[Tensor]
    optimizer: dict[str, Any]  # its state and hyper-parameters, in the format of torch.optim
    history: History
    epoch: int  # the last one that is finished
    zero_loss_validations: int  # in a row
    moved_since_validation: bool  # whether a parameter did
    stop_reason: str | None  # if the experiment ended there
    output: Tensor | None  # the last end-to-end matrix or tensor, if it ended there

    @property
    def lr(self) -> float:
        return float(self.optimizer["param_groups"][0]["lr"])

    @property
    def dtype(self) -> str:
        return str(self.factors[0].dtype).removeprefix("torch.")


def checkpoint_content(state: TrainingState, engine: Engine, index: int, output: Tensor | None) -> dict[str, Any]:
    """Returns the content of a checkpoint file, from a state that is up to date and the parameters at an index of the
    engine's batch. `output` is the last end-to-end matrix or tensor of an experiment that ended.
    """
    return {
        "model": engine.model.experiment_state(index),
        "optimizer": engine.optimizer.experiment_state(index, len(engine.model.views)),
        "train_evaluator": evaluator_state(state.history.train),
        "val_evaluator": evaluator_state(state.history.validation),
        "epoch": state.epoch,
        "trainer": {
            "zero_loss_validations": state.zero_loss_validations,
            "moved_since_validation": state.moved_since_validation,
            "stop_reason": state.stop_reason,
            "output": output,
        },
    }


def load_checkpoint(
    path: str,
    model: type[BatchedFactorization],
    shapes: tuple[tuple[int, int], ...],
    optimizer: type[Optimizer],
    dtype: str | None,
) -> Checkpoint:
    """Reads a checkpoint of a model with factors of these shapes that an optimizer of this class trained, in its own
    precision if `dtype` is None. Raises OSError, and ValueError if the file is something else.
    """
    content = load_dictionary(path)
    try:
        checkpoint = _parse(content, model.factors_name, dtype)
    except _ERRORS as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"is not a checkpoint of such a model ({reason}); give one written by this runner") from None
    found = tuple(tuple(factor.shape) for factor in checkpoint.factors)
    if found != shapes:
        problem = f"has {len(found)} factors of shapes {found!s:.99}, not {len(shapes)} of {shapes!s:.99}"
        raise ValueError(f"{problem}; give the dataset (and depth) of its own run")
    if not _is_state_of(optimizer, checkpoint.optimizer):
        raise ValueError(f"was not written by {optimizer.__name__}; give one that was")
    if optimizer.is_stateless:
        checkpoint = replace(checkpoint, optimizer={**checkpoint.optimizer, "state": {}})
    return checkpoint


def _parse(content: dict, factors_name: str, dtype: str | None) -> Checkpoint:
    model, trainer = content["model"], content.get("trainer", {})
    factors = [model[f"{factors_name}.{index}"] for index in range(len(model))]
    if not factors or not all(is_float_tensor(factor) and factor.dim() == 2 for factor in factors):
        raise ValueError("its parameters are not matrices")
    dtype = dtype or str(factors[0].dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise ValueError("its parameters are neither float32 nor float64")
    train, validation = (
        metrics_of_evaluator(content[f"{kind}_evaluator"], np.dtype(dtype)) for kind in ("train", "val")
    )
    stop_reason, output = trainer.get("stop_reason"), trainer.get("output")
    if stop_reason not in (None, INTERRUPTED, *FINAL_REASONS):
        raise ValueError("the reason why it ended is unknown")
    if not (is_float_tensor(output) or (output is None and stop_reason not in FINAL_REASONS)):
        raise ValueError("its last matrix or tensor is missing")
    epoch = int(content["epoch"])
    if not max([0, *(series.epochs[-1] for series in (train | validation).values())]) <= epoch < 2**62:
        raise ValueError(f"its epoch, {epoch}, is out of range or before its last record")
    return Checkpoint(
        [factor.detach().to(getattr(torch, dtype)) for factor in factors],
        content["optimizer"],
        History(train, validation),
        epoch,
        int(trainer.get("zero_loss_validations", 0)),
        bool(trainer.get("moved_since_validation", True)),
        stop_reason,
        output,
    )


def _is_state_of(optimizer: type[Optimizer], state: Any) -> bool:
    try:
        (group,) = state["param_groups"]
        # Momentum, weight decay, ascent and Adam's betas are terms of steps that are not taken here.
        other_steps = any(group.get(term) for term in ("momentum", "weight_decay", "nesterov", "maximize", "betas"))
        if other_steps or not 0 < float(group["lr"]) < math.inf:
            return False
        if optimizer.is_stateless:
            # torch.optim.SGD of PyTorch 1.8 to 2.3 writes {"momentum_buffer": None} for each parameter.
            values = [value for of_parameter in state["state"].values() for value in of_parameter.values()]
            return all(value is None for value in values) and "beta" not in group
        return int(state["state"]["step"]) >= 0 and not float(state["state"]["square_avg"]) < 0  # NaN: it diverged
    except _ERRORS:
        return False
