"""Deep matrix factorization experiments: what is particular to them; the way they are run is in sweep.py."""

import re
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from common.cli import Parameters, UserError, drawn_seed, exclusive, flag_error
from common.datasets.matrix_sensing import MatrixSensing, load_matrix_sensing
from common.experiments.checkpoint import Checkpoint, load_checkpoint
from common.experiments.experiment import Experiment, Results
from common.experiments.shares import expected_steps
from common.metrics import matrix as matrix_metrics
from common.models.deep_matrix_factorization import DeepMatrixFactorization, factor_shapes, initial_factors
from common.training.engines import Engine, Kernel, NotNative, engine_of
from common.training.objectives import SensingObjective, entry_objective
from common.training.optimizers import GradientDescent

# The zero-loss rule: the loss was below the tolerance at more than this many validations in a row.
MAX_ZERO_LOSS_VALIDATIONS = 10
# What the console shows of an experiment that ended.
HEADLINE = re.compile(r"sse_loss_div_2|e2e_effective_rank|fro_e2e_norm|e2e_\d+_\d+_value")

# Multiplications in one step of an experiment up to which the native engine is faster than torch's, also where it runs
# alone.
_NATIVE_PAYS_UP_TO = 80_000
# File name → the metrics that are drawn into it together.
PICTURES = {"e2e_matrix_values": r"e2e_\d+_\d+_value", "e2e_singular_values": r"singular_value_\d+"}

_load = lru_cache(maxsize=64)(load_matrix_sensing)


def prepare(parameters: Parameters) -> Experiment:
    """Checks the parameters against each other and the files they name, and draws or loads the initial factors.

    Raises UserError. Writes nothing.
    """
    values = dict(parameters.values)
    exclusive(parameters, "enforce_pos_det", "enforce_neg_det")
    dataset = _load(values["dataset_path"], values["num_samples"])
    rows, cols = dataset.shape
    for row, col in values["tracked_e2e_value_of"]:
        if row >= rows or col >= cols:
            raise flag_error(
                "tracked_e2e_value_of",
                [row, col],
                f"the matrix is {rows}x{cols}; give a row below {rows}, a column below {cols}",
            )
    values["random_seed"] = drawn_seed(values["random_seed"])
    values["unobserved_entry"] = _unobserved_entry(dataset)

    if values["trainer_checkpoint"]:
        checkpoint = _loaded_checkpoint(values["trainer_checkpoint"], "trainer_checkpoint", parameters, dataset)
        values.update(checkpoint.adopted(parameters))
        factors, progress = checkpoint.factors, checkpoint.progress(values["validate_every"])
    else:
        factors, progress = _initial_factors(values, dataset), {}

    dtype = getattr(torch, values["dtype"])
    tracked = [tuple(entry) for entry in values["tracked_e2e_value_of"]]
    if values["unobserved_entry"] and tuple(values["unobserved_entry"]) not in tracked:
        tracked.append(tuple(values["unobserved_entry"]))
    measure = partial(
        _measure,
        num_samples=values["num_samples"],
        tracked=tracked,
        with_singular_values=values["track_singular_values"],
        dtype=dtype,
    )
    sensing = () if dataset.observed_entries is not None else (values["dataset_path"], values["num_samples"])
    return Experiment(
        parameters=values,
        factors=factors,
        dataset=dataset,
        batch_key=(values["depth"], rows, cols, *sensing),
        memory=_memory(values, dataset),
        num_epochs=values["epochs"],
        zero_loss_tol=values["stop_on_zero_loss_tol"],
        measure=measure,
        **progress,
    )


def go_on(experiment: Experiment, path: str) -> None:
    """Makes a prepared experiment go on from a checkpoint of its own. Raises UserError, naming -resume."""
    parameters = Parameters(experiment.parameters)
    experiment.go_on_from(_loaded_checkpoint(path, "resume", parameters, experiment.dataset))


def expected_cost(parameters: Parameters) -> float:
    """How long an experiment takes, about, in a unit of its own. Raises UserError."""
    rows, cols = _load(parameters["dataset_path"], parameters["num_samples"]).shape
    depth, std = parameters["depth"], abs(parameters["init_alpha"])
    if parameters["use_balanced_init"]:
        std **= 1 / depth
    steps = expected_steps(depth, std, parameters["lr"], parameters["epochs"])
    return steps * depth * rows * cols * min(rows, cols)


def _loaded_checkpoint(path: str, flag: str, parameters: Parameters, dataset: MatrixSensing) -> Checkpoint:
    checkpoint = load_checkpoint(path, flag, parameters, DeepMatrixFactorization.factors_name)
    depth, (rows, cols) = len(checkpoint.factors), dataset.shape
    if depth != parameters["depth"]:
        raise checkpoint.error(f"has depth {depth}, not {parameters['depth']}; give -depth {depth}")
    shapes = [tuple(factor.shape) for factor in checkpoint.factors]
    if shapes != factor_shapes(rows, cols, depth):
        raise checkpoint.error(
            f"has factors of shapes {shapes}, which do not fit the dataset's {rows}x{cols}; give its own -dataset_path"
        )
    return checkpoint


def _unobserved_entry(dataset: MatrixSensing) -> list[int] | None:
    """Row and column of the one entry that is not observed, None where there is none or more than one."""
    rows, cols = dataset.shape
    observed = dataset.observed_entries
    if observed is None or len(observed) != rows * cols - 1:
        return None
    (entry,) = set(range(rows * cols)) - set(observed.tolist())
    return list(divmod(entry, cols))


def _initial_factors(values: dict, dataset: MatrixSensing) -> list[Tensor]:
    det_sign = values["enforce_pos_det"] - values["enforce_neg_det"]
    det_flag = "enforce_pos_det" if det_sign > 0 else "enforce_neg_det"
    rows, cols = dataset.shape
    alpha = values["init_alpha"]
    if det_sign and rows != cols:
        raise flag_error(det_flag, True, f"the product is {rows}x{cols}; only square ones have a determinant")
    if alpha < 0 and values["weight_init_type"] == "normal":
        raise flag_error("init_alpha", alpha, "is a standard deviation; must be at least 0 with normal initialization")
    try:
        return initial_factors(
            dataset.shape,
            values["depth"],
            values["weight_init_type"],
            alpha,
            values["use_balanced_init"],
            torch.Generator().manual_seed(values["random_seed"]),
            getattr(torch, values["dtype"]),
            det_sign,
        )
    except ValueError:
        raise UserError(
            f"-{det_flag}: cannot be reached from -weight_init_type {values['weight_init_type']} "
            f"-init_alpha {alpha:g}; leave it out or change the initialization"
        ) from None


def stack(experiments: list[Experiment], device: torch.device, kernel: Kernel | None = None) -> Engine:
    """The engine of a batch of experiments with equal `batch_key`: the native one, with its kernel, or torch's."""
    dtype = experiments[0].factors[0].dtype
    model = DeepMatrixFactorization(
        [torch.stack(factors).to(device) for factors in zip(*(each.factors for each in experiments), strict=True)]
    )
    datasets = [each.dataset for each in experiments]
    entries = [dataset.observed_entries for dataset in datasets]
    if entries[0] is None:
        observations = torch.stack([dataset.observations for dataset in datasets])
        matrices = datasets[0].sensing_matrices
        objective = SensingObjective(matrices.to(device, dtype), observations.to(device, dtype))
    else:
        targets = torch.zeros(len(datasets), *datasets[0].shape, dtype=dtype)
        for target, dataset, observed in zip(targets.flatten(1), datasets, entries, strict=True):
            target[observed] = dataset.observations.to(dtype)
        objective = entry_objective(entries, targets, [1.0] * len(entries)).to(device)
    optimizer = GradientDescent([each.parameters["lr"] for each in experiments], model)
    return engine_of(model, objective, optimizer, kernel)


def multiplications_per_step(experiment: Experiment) -> int:
    """How many multiplications a gradient step takes, about."""
    rows, cols = experiment.dataset.shape
    dense = experiment.dataset.observed_entries is None
    products = 3 * experiment.parameters["depth"] * rows * cols * min(rows, cols)
    return products + dense * 2 * rows * cols * experiment.parameters["num_samples"]


def _memory(values: dict, dataset: MatrixSensing) -> int:
    """Bytes that an experiment takes in training, about."""
    rows, cols = dataset.shape
    metrics = 8 + len(values["tracked_e2e_value_of"]) + values["track_singular_values"] * min(rows, cols)
    validations = values["epochs"] // values["validate_every"] + 1
    history = (values["store_checkpoints"] or values["plot_metrics"]) * validations * (metrics + 2)
    numbers = 8 * values["depth"] * rows * cols + history
    return numbers * getattr(torch, values["dtype"]).itemsize


def native_kernel(experiment: Experiment) -> Kernel:
    """The native kernel for an experiment. Raises NotNative where there is none for its kind, NativeUnavailable."""
    rows, cols = experiment.dataset.shape
    if experiment.dataset.observed_entries is None:
        raise NotNative("has kernels for observed entries only, not for other sensing matrices")
    if multiplications_per_step(experiment) > _NATIVE_PAYS_UP_TO:
        raise NotNative(f"does not pay for a product of {experiment.parameters['depth']} matrices of {rows}x{cols}")
    constants = {"ROWS": rows, "COLS": cols, "DEPTH": experiment.parameters["depth"]}
    return Kernel(
        "deep_matrix_factorization.c", constants, experiment.factors[0].dtype, multiplications_per_step(experiment)
    )


def _measure(
    losses: np.ndarray,
    products: np.ndarray,
    num_samples: int,
    tracked: list[tuple[int, int]],
    with_singular_values: bool,
    dtype: torch.dtype,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train and validation metrics (n,), of `dtype`, of losses (n,) and product matrices (n, rows, cols)."""
    losses = torch.from_numpy(losses)
    # Entry by entry in memory: what is computed from them are long vectors.
    entries = torch.from_numpy(np.ascontiguousarray(np.moveaxis(products, 0, -1)))
    products = entries.double().movedim(-1, 0)
    singular_values = matrix_metrics.singular_values(products)
    train = {"mse_loss": 2 * losses.double() / num_samples, "sse_loss_div_2": losses}
    validation = {
        "fro_e2e_norm": matrix_metrics.frobenius_norm(singular_values),
        "nuc_e2e_norm": matrix_metrics.nuclear_norm(singular_values),
        "e2e_effective_rank": matrix_metrics.effective_rank(singular_values),
        "distance_from_rank_1": matrix_metrics.distance_from_rank_1(singular_values),
        "e2e_rank": matrix_metrics.rank(singular_values, tuple(products.shape[1:]), dtype),
    }
    for row, col in tracked:
        validation[f"e2e_{row}_{col}_value"] = entries[row, col]
    if with_singular_values:
        for index in range(singular_values.shape[1]):
            validation[f"singular_value_{index}"] = singular_values[:, index]

    def as_arrays(metrics: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {name: values.to(dtype, copy=True).numpy() for name, values in metrics.items()}

    return as_arrays(train), as_arrays(validation)


def results(experiment: Experiment, product: Tensor) -> Results:
    """What -save_results asks for: the product matrix (rows, cols) and the last metrics."""
    if not experiment.parameters["save_results"]:
        return Results()
    numbers = {**experiment.history.last_values(), "fit_epochs": experiment.epoch + 1}
    return Results({"final_e2e_matrix.pt": product}, "final_metrics_values.json", numbers)
