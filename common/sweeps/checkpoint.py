"""Checkpoints, which have everything that an exact continuation needs. Those of the original code are read, too."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from common.problems.problem import Problem
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

# Raised for files with other content.
_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)
# Keys of a group of torch.optim that do not change the steps.
_WITHOUT_EFFECT = {"params", "initial_lr", "adjusted_lr", "foreach", "fused", "capturable", "differentiable"}
# Several experiments may continue from one file.
read_checkpoint = lru_cache(maxsize=4)(load_dictionary)


def checkpoint_content(state: TrainingState, engine: Engine, index: int) -> dict[str, Any]:
    """Returns the content of a checkpoint file, from a state and the parameters at an index of the engine's batch."""
    return {
        "model": engine.model.experiment_state(index),
        "optimizer": engine.optimizer.experiment_state(index),
        "train_evaluator": evaluator_state(state.history.train, engine.model.values.dtype),
        "val_evaluator": evaluator_state(state.history.validation, torch.float64),
        "epoch": state.epoch,
        "trainer": {
            "zero_loss_validations": state.zero_loss_validations,
            "moved_since_validation": state.moved_since_validation,
            "stop_reason": state.stop_reason,
            "output": state.final_output,
        },
    }


def load_checkpoint(path: str | Path, problem: Problem, dtype: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint of this problem's model and optimizer, in its own precision if `dtype` is None. Returns
    attributes of an `Experiment`, by name, and by flag its dtype and the hyper-parameters of its optimizer. Raises
    OSError, and ValueError if the file is something else.
    """
    content = read_checkpoint(path)
    shapes, optimizer = tuple(problem.factor_shapes), problem.optimizer
    try:
        parameters, of_optimizer = content["model"], content["optimizer"]
        epoch, trainer = int(content["epoch"]), content.get("trainer", {})
        factors = [parameters[f"{problem.model.factors_name}.{index}"] for index in range(len(parameters))]
        _require(factors and all(is_float_tensor(each) and each.dim() == 2 for each in factors), "it has no matrices")
        dtype = dtype or str(factors[0].dtype).removeprefix("torch.")
        _require(dtype in ("float32", "float64"), "its parameters are neither float32 nor float64")
        train, validation = (metrics_of_evaluator(content[f"{kind}_evaluator"]) for kind in ("train", "val"))
        last_record = max([0, *(series.epochs[-1] for series in (train | validation).values())])
        _require(last_record <= epoch < 2**62, f"its epoch, {epoch}, is out of range or before its last record")
        output, stop_reason = trainer.get("output"), trainer.get("stop_reason")
        _require(stop_reason in (None, INTERRUPTED, *FINAL_REASONS), "the reason why it ended is unknown")
        _require(is_float_tensor(output) or stop_reason not in FINAL_REASONS, "its last matrix or tensor is missing")
        state = {
            "factors": [factor.detach().to(getattr(torch, dtype)) for factor in factors],
            "history": History(train, validation),
            "epoch": epoch,
            "zero_loss_validations": int(trainer.get("zero_loss_validations", 0)),
            "moved_since_validation": bool(trainer.get("moved_since_validation", True)),
            "stop_reason": stop_reason,
            "final_output": output if stop_reason in FINAL_REASONS else None,
        }
    except _ERRORS as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"is not a checkpoint of such a model ({reason}); give one written by this runner") from None
    found = tuple(tuple(factor.shape) for factor in factors)
    if found != shapes:
        mismatch = f"has {len(found)} factors of shapes {found!s:.99}, not {len(shapes)} of {shapes!s:.99}"
        raise ValueError(f"{mismatch}; give the dataset, depth and width or number of components of its own run")
    if stop_reason in FINAL_REASONS and output.shape != problem.model.matrix_shape(shapes):
        raise ValueError(f"has a last output of shape {tuple(output.shape)}")
    try:
        settings, state["optimizer_state"] = _parse_optimizer(optimizer, of_optimizer, shapes, epoch + 1)
    except _ERRORS:
        remedy = "give one that was, or the -optimizer of its own run"
        raise ValueError(f"was not written by {optimizer.__name__}; {remedy}") from None
    return state, {"dtype": dtype, **settings}


def _parse_optimizer(
    optimizer: type[Optimizer], content: Any, shapes: tuple[tuple[int, int], ...], num_steps: int
) -> tuple[dict[str, float], dict[Any, Any]]:
    """Returns the hyper-parameters and the state of an optimizer. Raises one of `_ERRORS` for any other one."""
    (group,), state, factors = content["param_groups"], content["state"], range(len(shapes))
    hyperparameters = {name: float(group.get(name, 0.0)) for name in optimizer.hyperparameters}
    _require(hyperparameters["lr"] > 0 and all(0 <= value < math.inf for value in hyperparameters.values()))
    _require(all(group[name] == value for name, value in optimizer.constants.items()))
    # Options that change the steps, such as Nesterov momentum or `maximize`.
    others = {name for name, value in group.items() if value} - hyperparameters.keys() - optimizer.constants.keys()
    _require(others <= _WITHOUT_EFFECT)
    if not (optimizer.factor_state or optimizer.scalar_state):
        # torch.optim.SGD of PyTorch 1.8 to 2.3 writes {"momentum_buffer": None} for each parameter.
        _require(all(value is None for of_parameter in state.values() for value in of_parameter.values()))
        return hyperparameters, {}
    known = {name: float(state[name]) for name in optimizer.scalar_state}
    if optimizer.factor_state:
        known |= {k: {name: state[k][name].detach() for name in optimizer.factor_state} for k in factors}
        tensors = [(tensor, shapes[k]) for k in factors for tensor in known[k].values()]
        _require(all(is_float_tensor(tensor) and tensor.shape == shape for tensor, shape in tensors))
    if optimizer.stores_step:
        holders = [state[k] for k in factors] if optimizer.factor_state else [state]
        _require(all(float(holder["step"]) == num_steps for holder in holders))
    return hyperparameters, known


def _require(holds: Any, problem: str = "") -> None:
    if not holds:
        raise ValueError(problem)
