"""Deep matrix factorization, fitted to linear observations of a matrix."""

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import UserError, exclusive, flag_error
from common.datasets.flags import check_random_matrix, first_samples, load_samples
from common.datasets.matrix_sensing import load_matrix_sensing, random_completion
from common.metrics import matrix as matrix_metrics
from common.metrics.sharpness import sharpness
from common.models.deep_matrix_factorization import (
    DeepMatrixFactorization,
    factor_shapes,
    initial_factors,
    step_multiplications,
)
from common.problems.problem import Results, as_metrics, error_masks, optimizer_of, relative_errors
from common.recorded_runs import MATRIX_METRICS
from common.training.history import Metrics, TrainingState
from common.training.native_metrics import metrics_2x2
from common.training.objectives import Objective, SensingObjective, entry_objective
from common.training.threads import one_thread

_NORMS_AND_RANKS = "fro_e2e_norm", "nuc_e2e_norm", "e2e_effective_rank", "distance_from_rank_1", "e2e_rank"


class MatrixFactorization:
    """See `common.problems.problem.Problem`."""

    model = DeepMatrixFactorization
    max_zero_loss_validations = 10
    target_flags = "num_rows", "num_cols", "rank"
    headline = re.compile(r"sse_loss_div_2|held_out_error|e2e_effective_rank|fro_e2e_norm|e2e_\d+_\d+_value")
    figures = {"e2e_matrix_values": r"e2e_\d+_\d+_value", "e2e_singular_values": r"singular_value_\d+"}  # noqa: RUF012

    def __init__(self, parameters: dict[str, Any]):
        self.parameters = parameters
        self.optimizer, self.decays = optimizer_of(parameters), parameters["weight_decay"] > 0
        exclusive(parameters, "enforce_pos_det", "enforce_neg_det")
        if parameters["random_target"]:
            check_random_matrix(parameters)
            rows, cols, rank = (parameters[name] for name in self.target_flags)
            available = random_completion(rows, cols, rank, parameters["random_seed"])
            self.dataset = first_samples(available, parameters["num_samples"])
        else:
            self.dataset = load_samples(load_matrix_sensing, parameters["dataset_path"], parameters["num_samples"])
            available = load_samples(load_matrix_sensing, parameters["dataset_path"])
        self._target = self.dataset.target_matrix.double().numpy()
        self.error_masks = error_masks(self.dataset, self.dataset.target_matrix)
        self.num_observations = parameters["num_samples"], len(available.observations)
        self.output_shape = rows, cols = self.dataset.shape
        self.observes_entries = self.dataset.observed_entries is not None
        self._tracked = [tuple(entry) for entry in parameters["tracked_e2e_value_of"]]
        for row, col in self._tracked:
            if row >= rows or col >= cols:
                remedy = f"the matrix is {rows}x{cols}; give a row below {rows}, a column below {cols}"
                raise flag_error("tracked_e2e_value_of", [row, col], remedy)
        self.recorded: dict[str, Any] = self.dataset.facts()
        if unobserved := self.recorded["unobserved_entry"]:  # tracked, too
            self._tracked = list(dict.fromkeys([*self._tracked, tuple(unobserved)]))
        # What is measured of the product besides norms and ranks, by the names in metrics_2x2.
        self._others = [f"e2e_{row}_{col}_value" for row, col in self._tracked]
        self._others += ["singular_value_0"] * parameters["track_singular_values"]
        self._others += self.error_masks
        self._others += ["schatten_half_quasi_norm"] * parameters["track_schatten_norm"]
        self._metrics_2x2 = None
        if self.output_shape == (2, 2) and self.dataset.known is None:
            others = *self._others, *["singular_value_1"] * parameters["track_singular_values"]
            self._metrics_2x2 = metrics_2x2(np.dtype(parameters["dtype"]), others)
            self._names_2x2 = ("mse_loss", "sse_loss_div_2"), (*_NORMS_AND_RANKS, *others)
        # With other sensing matrices than single entries, a batch shares them.
        sensing = () if self.observes_entries else (parameters["dataset_path"],)
        depth, width = parameters["depth"], parameters["hidden_dim"]
        if width and depth == 1:
            raise flag_error("hidden_dim", width, "there are no inner factors at -depth 1; give a depth of at least 2")
        self.factor_shapes = factor_shapes(rows, cols, depth, width)
        of_factors = parameters["track_balancedness"], parameters["track_sharpness"]
        metrics = parameters["num_samples"], self.dataset.known is None, *self._others, *of_factors
        self.batch_key = (tuple(self.factor_shapes), self.optimizer, self.decays, *sensing, *metrics)
        self.multiplications = step_multiplications(self.factor_shapes)
        self.multiplications += 0 if self.observes_entries else 2 * rows * cols * parameters["num_samples"]
        self.measures_at_once = any(of_factors)
        self.num_metrics = 8 + len(self._tracked) + parameters["track_singular_values"] * min(rows, cols)
        more = "track_schatten_norm", "track_balancedness", "track_sharpness"
        self.num_metrics += sum(parameters[name] for name in more)
        # Factors, products, gradients and copies, and state of the optimizer.
        self.working_size = 16 * depth * max(rows, width) * max(cols, width)

    def initial_factors(self) -> list[Tensor]:
        values = self.parameters
        rows, cols = self.output_shape
        alpha, init_type = values["init_alpha"], values["weight_init_type"]
        det_sign = values["enforce_pos_det"] - values["enforce_neg_det"]
        det_flag = "enforce_pos_det" if det_sign > 0 else "enforce_neg_det"
        if det_sign and rows != cols:
            raise flag_error(det_flag, True, f"the product is {rows}x{cols}; only square ones have a determinant")
        width = values["hidden_dim"]
        if det_sign and 0 < width < rows:
            remedy = f"contradicts -hidden_dim {width}: the determinant of the product is 0; give at least {rows}"
            raise flag_error(det_flag, True, remedy)
        if alpha < 0 and init_type == "normal":
            raise flag_error("init_alpha", alpha, "is a standard deviation; must be at least 0")
        generator = torch.Generator().manual_seed(values["random_seed"])
        dtype, balanced = getattr(torch, values["dtype"]), values["use_balanced_init"]
        try:
            return initial_factors(self.factor_shapes, init_type, alpha, balanced, generator, dtype, det_sign)
        except ValueError:
            raise UserError(
                f"-{det_flag}: cannot be reached from -weight_init_type {init_type} -init_alpha {alpha:g}; "
                "leave it out or change the initialization"
            ) from None

    @staticmethod
    def objective(problems: Sequence["MatrixFactorization"], like: Tensor) -> Objective:
        datasets = [problem.dataset for problem in problems]
        if not problems[0].observes_entries:
            observations = torch.stack([dataset.observations for dataset in datasets])
            return SensingObjective(datasets[0].sensing_matrices.to(like), observations.to(like))
        # Half the sum of squared residuals.
        targets = torch.zeros(len(datasets), *problems[0].output_shape, dtype=like.dtype)
        entries = [dataset.observed_entries for dataset in datasets]
        for target, observed, dataset in zip(targets.flatten(1), entries, datasets, strict=True):
            target[observed] = dataset.observations.to(like.dtype)
        return entry_objective(entries, targets.to(like), [1.0] * len(entries))

    @staticmethod
    def measure(
        problems: Sequence["MatrixFactorization"],
        losses: np.ndarray,
        outputs: np.ndarray,
        factors: Sequence[Sequence[Tensor]] = (),
    ) -> Metrics:
        first = problems[0]
        targets = np.concatenate([problem._target for problem in problems]).reshape(-1, *first.output_shape)
        if first._metrics_2x2:
            num_samples = first.parameters["num_samples"]
            names, values = first._names_2x2, first._metrics_2x2(losses, outputs, num_samples, targets)
        else:
            names, values = first._measure_with_torch(problems, losses, outputs, targets)
        added = {}
        if first.parameters["track_balancedness"]:
            with one_thread():
                doubles = [[factor.double() for factor in own] for own in factors]
                added["balancedness"] = torch.stack([matrix_metrics.balancedness(own) for own in doubles])
        if first.parameters["track_sharpness"]:
            with one_thread():
                each = [sharpness(problem._loss, own) for problem, own in zip(problems, factors, strict=True)]
                added["sharpness"] = torch.stack(each)
        if added:
            (_, added_names), added_values = as_metrics({}, added, losses)
            names, values = (names[0], names[1] + added_names), np.concatenate([values, added_values])
        return names, values

    def _measure_with_torch(
        self, problems: Sequence["MatrixFactorization"], losses: np.ndarray, outputs: np.ndarray, targets: np.ndarray
    ) -> Metrics:
        """Returns the metrics of losses (B, K), products (B, K, rows, cols) and targets (B, rows, cols)."""
        loss, products = torch.from_numpy(losses).flatten(), torch.from_numpy(outputs).flatten(0, 1)
        # Each entry is contiguous in memory, so that operations on entries use long vectors.
        entries = products.movedim(0, -1).contiguous()
        singular_values = matrix_metrics.singular_values(entries.double().movedim(-1, 0))
        train = {"mse_loss": 2 * loss.double() / self.parameters["num_samples"], "sse_loss_div_2": loss}
        measured = (
            matrix_metrics.frobenius_norm(singular_values),
            matrix_metrics.nuclear_norm(singular_values),
            matrix_metrics.effective_rank(singular_values),
            matrix_metrics.distance_from_rank_1(singular_values),
            matrix_metrics.rank(singular_values, self.output_shape, products.dtype),
        )
        validation = dict(zip(_NORMS_AND_RANKS, measured, strict=True))
        validation |= {f"e2e_{row}_{col}_value": entries[row, col] for row, col in self._tracked}
        if "singular_value_0" in self._others:
            validation |= {f"singular_value_{k}": values for k, values in enumerate(singular_values.unbind(1))}
        validation |= relative_errors(problems, torch.from_numpy(targets).unbind(), torch.from_numpy(outputs))
        if "schatten_half_quasi_norm" in self._others:
            validation["schatten_half_quasi_norm"] = matrix_metrics.schatten_quasi_norm(singular_values, 0.5)
        return as_metrics(train, validation, losses)

    def _loss(self, factors: Sequence[Tensor]) -> Tensor:
        """Returns the loss of float64 factors, for automatic differentiation."""
        observations, output = self.dataset.observations, reduce(torch.matmul, factors).flatten()
        if self.observes_entries:
            observed = output[self.dataset.observed_entries]
        else:
            observed = self.dataset.sensing_matrices.double().flatten(1) @ output
        return (observed - observations).square().sum() / 2

    def results(self, state: TrainingState, output: Tensor) -> Results:
        """What -save_results asks for: the product matrix (rows, cols), and the last value of every metric."""
        if not self.parameters["save_results"]:
            return Results()
        numbers = {**state.history.last_values(), "fit_epochs": state.epoch + 1}
        return Results({"final_e2e_matrix.pt": output}, MATRIX_METRICS, numbers)
