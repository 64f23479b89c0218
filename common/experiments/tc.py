"""Tensor completion experiments: what is particular to them; the way they are run is in sweep.py."""

import re
from functools import lru_cache, partial
from math import prod

import numpy as np
import torch
from torch import Tensor

from common.cli import Parameters, drawn_seed
from common.datasets.tensor_completion import TensorCompletion, load_tensor_completion
from common.experiments.checkpoint import Checkpoint, load_checkpoint
from common.experiments.experiment import Experiment, Results
from common.experiments.shares import expected_steps
from common.metrics.cp_rank import estimate_cp_rank, unfolding_rank_bound
from common.metrics.tensor import reconstruction_error
from common.models.cp_factorization import (
    CPFactorization,
    first_group_size,
    full_rank,
    initial_factors,
    kernel_constants,
)
from common.training.engines import Engine, Kernel, NotNative, engine_of
from common.training.lockstep import INTERRUPTED
from common.training.objectives import entry_objective
from common.training.optimizers import GradientDescent, GroupRMSprop
from common.training.threads import one_thread

# The zero-loss rule: the loss was below the tolerance at more than this many validations in a row.
MAX_ZERO_LOSS_VALIDATIONS = 2
# Multiplications in one step of an experiment up to which the native engine is faster than torch's, also where it runs
# alone.
_NATIVE_PAYS_UP_TO = 3 * 10**7
# What the console shows of an experiment that ended.
HEADLINE = re.compile(r"mse_loss|reconstruction_error|model_tensor_rank")
# Each metric is drawn into a picture of its own.
PICTURES: dict[str, str] = {}
# CP ranks are estimated from random starts; with one seed for all, equal tensors have equal ranks.
_RANK_SEED = 0

_load = lru_cache(maxsize=64)(load_tensor_completion)


def prepare(parameters: Parameters) -> Experiment:
    """Checks the parameters against each other and the files they name, and draws or loads the initial factors.

    Raises UserError. Writes nothing.
    """
    values = dict(parameters.values)
    dataset = _load(values["dataset_path"], values["num_samples"])
    values["random_seed"] = drawn_seed(values["random_seed"])
    dims, adaptive = tuple(dataset.target_tensor.shape), values["use_adaptive_lr"]
    optimizer_state = None
    if values["trainer_checkpoint"]:
        checkpoint = _loaded_checkpoint(values["trainer_checkpoint"], "trainer_checkpoint", parameters, dims)
        values.update(checkpoint.adopted(parameters))
        factors, progress = checkpoint.factors, checkpoint.progress(values["validate_every"])
        optimizer_state = checkpoint.optimizer["state"] if adaptive else None
    else:
        generator = torch.Generator().manual_seed(values["random_seed"])
        dtype = getattr(torch, values["dtype"])
        factors, progress = initial_factors(dims, full_rank(dims), values["init_std"], generator, dtype), {}

    return Experiment(
        parameters=values,
        factors=factors,
        optimizer_state=optimizer_state,
        dataset=dataset,
        batch_key=(dims, factors[0].shape[1], adaptive),
        memory=_memory(values, dims, factors[0].shape[1]),
        num_epochs=values["epochs"],
        zero_loss_tol=values["stop_on_zero_loss_tol"],
        measures_slowly=values["track_tensor_rank"],
        measure=partial(
            _measure,
            target=dataset.target_tensor,
            rank_tol=values["tensor_rank_tol"] if values["track_tensor_rank"] else None,
            dtype=factors[0].dtype,
        ),
        **progress,
    )


def go_on(experiment: Experiment, path: str) -> None:
    """Makes a prepared experiment go on from a checkpoint of its own. Raises UserError, naming -resume."""
    parameters, dims = Parameters(experiment.parameters), tuple(experiment.dataset.target_tensor.shape)
    checkpoint = _loaded_checkpoint(path, "resume", parameters, dims)
    experiment.go_on_from(checkpoint)
    if parameters["use_adaptive_lr"]:
        experiment.optimizer_state = checkpoint.optimizer["state"]


def expected_cost(parameters: Parameters) -> float:
    """How long an experiment takes, about, in a unit of its own. Raises UserError."""
    dims = tuple(_load(parameters["dataset_path"], parameters["num_samples"]).target_tensor.shape)
    steps = expected_steps(len(dims), parameters["init_std"], parameters["lr"], parameters["epochs"])
    return steps * prod(dims) * full_rank(dims)


def _loaded_checkpoint(path: str, flag: str, parameters: Parameters, dims: tuple[int, ...]) -> Checkpoint:
    checkpoint = load_checkpoint(path, flag, parameters, CPFactorization.factors_name, parameters["use_adaptive_lr"])
    shapes = [tuple(factor.shape) for factor in checkpoint.factors]
    if [dim for dim, _ in shapes] != list(dims) or len({rank for _, rank in shapes}) != 1:
        size = "x".join(map(str, dims))
        raise checkpoint.error(
            f"has factors of shapes {shapes}, which do not fit the dataset's {size}; give its own -dataset_path"
        )
    return checkpoint


def stack(experiments: list[Experiment], device: torch.device, kernel: Kernel | None = None) -> Engine:
    """The engine of a batch of experiments with equal `batch_key`: the native one, with its kernel, or torch's."""
    factors = zip(*(each.factors for each in experiments), strict=True)
    model = CPFactorization([torch.stack(each).to(device) for each in factors])
    outputs = model.forward()
    targets = torch.stack([each.dataset.target_tensor for each in experiments]).view(outputs.shape)
    entries = [each.dataset.observed_entries for each in experiments]
    # The mean of squared residuals, where the objective takes half their weighted sum.
    weights = [2 / len(observed) for observed in entries]
    objective = entry_objective(entries, targets.to(outputs.dtype), weights).to(device)
    lrs = [each.parameters["lr"] for each in experiments]
    if not experiments[0].parameters["use_adaptive_lr"]:
        return engine_of(model, objective, GradientDescent(lrs, model), kernel)
    states = [each.optimizer_state or {"step": 0, "square_avg": 0.0} for each in experiments]
    square_avgs = [float(state["square_avg"]) for state in states]
    optimizer = GroupRMSprop(lrs, model, int(states[0]["step"]), square_avgs)
    return engine_of(model, objective, optimizer, kernel)


def multiplications_per_step(experiment: Experiment) -> int:
    """How many multiplications a gradient step takes, about."""
    return 3 * experiment.dataset.target_tensor.numel() * experiment.factors[0].shape[1]


def _memory(values: dict, dims: tuple[int, ...], rank: int) -> int:
    """Bytes that an experiment takes in training, about."""
    split = first_group_size(dims)
    products = prod(dims[:split]) + prod(dims[split:])
    # Factors and Khatri–Rao products with their gradients and copies; outputs and observations; the history.
    numbers = (
        6 * (sum(dims) + products) * rank + 8 * prod(dims) + 5 * (values["epochs"] // values["validate_every"] + 1)
    )
    return numbers * getattr(torch, values["dtype"]).itemsize


def native_kernel(experiment: Experiment) -> Kernel:
    """The native kernel for an experiment. Raises NotNative where there is none for its kind, NativeUnavailable."""
    if multiplications_per_step(experiment) > _NATIVE_PAYS_UP_TO:
        raise NotNative(f"does not pay for tensors of dimensions {tuple(experiment.dataset.target_tensor.shape)}")
    constants = kernel_constants(tuple(experiment.dataset.target_tensor.shape), experiment.factors[0].shape[1])
    adaptive = {
        "ADAPTIVE": int(experiment.parameters["use_adaptive_lr"]),
        "BETA": GroupRMSprop.beta,
        "EPS": GroupRMSprop.eps,
    }
    dtype = experiment.factors[0].dtype
    return Kernel("cp_factorization.c", constants | adaptive, dtype, multiplications_per_step(experiment))


def _measure(
    losses: np.ndarray, outputs: np.ndarray, target: Tensor, rank_tol: float | None, dtype: torch.dtype
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train and validation metrics (n,), of `dtype`, of losses (n,) and tensors (n, numel) in any shape."""
    tensors = torch.from_numpy(outputs).double().flatten(1)
    validation = {"reconstruction_error": reconstruction_error(tensors, target.double().flatten())}
    if rank_tol is not None:
        ranks = [_rank(tensor.view(target.shape), rank_tol) for tensor in tensors]
        validation["model_tensor_rank"] = torch.tensor([float("nan") if r is None else r for r in ranks])
    metrics = {name: values.to(dtype).numpy() for name, values in validation.items()}
    return {"mse_loss": losses.copy()}, metrics


def _rank(tensor: Tensor, tol: float) -> int | None:
    """The estimated CP rank of a tensor (d_1, …, d_N); None where an entry is not finite."""
    if not tensor.isfinite().all():
        return None
    with one_thread():
        (rank,) = estimate_cp_rank([tensor], tol, _RANK_SEED)
    return rank


def _rank_and_bound(tensor: Tensor, tol: float) -> tuple[int | None, int | None]:
    rank = _rank(tensor, tol)
    return rank, None if rank is None else unfolding_rank_bound(tensor, tol)


@lru_cache(maxsize=256)
def _dataset_ranks(path: str, num_samples: int, tol: float) -> dict[str, tuple[int, int]]:
    """CP rank and its lower bound of the memorizer and of the target: of a dataset and a number of samples, once."""
    memorizer = _rank_and_bound(_load(path, num_samples).memorizer, tol)
    return {"memorizer": memorizer, "targets": _target_rank(path, tol)}


@lru_cache(maxsize=64)
def _target_rank(path: str, tol: float) -> tuple[int, int]:
    return _rank_and_bound(_load(path, 1).target_tensor, tol)


def results(experiment: Experiment, output: Tensor) -> Results:
    """The tensors, and their errors and ranks; not these where the experiment was interrupted, for they say that it is
    finished.
    """
    dataset: TensorCompletion = experiment.dataset
    parameters, target = experiment.parameters, dataset.target_tensor
    tensors = {"model": output.reshape(target.shape), "memorizer": dataset.memorizer, "targets": target.clone()}
    files = {f"{name}_tensor.pt": tensor for name, tensor in tensors.items()}
    if experiment.stop_reason == INTERRUPTED:
        return Results(files)

    rows = torch.stack([tensors[name].double().flatten() for name in ("model", "memorizer")])
    errors = reconstruction_error(rows, target.double().flatten()).tolist()
    numbers = {"model_reconstruction_error": errors[0], "memorizer_reconstruction_error": errors[1]}
    if parameters["compute_final_tensor_ranks"]:
        tol = parameters["tensor_rank_tol"]
        ranks = {"model": _rank_and_bound(tensors["model"].double(), tol)}
        ranks |= _dataset_ranks(parameters["dataset_path"], parameters["num_samples"], tol)
        for name, (rank, bound) in ranks.items():
            numbers |= {f"{name}_tensor_rank": rank, f"{name}_tensor_rank_lower_bound": bound}
    rank = numbers.get("model_tensor_rank")
    told = {} if rank is None else {"model_tensor_rank": rank}
    return Results(files, "tensor_rank_and_reconstruction_metrics.json", numbers, told)
