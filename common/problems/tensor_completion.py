"""Tensor completion: a CP factorization, fitted to some of a tensor's entries."""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import flag_error
from common.datasets.flags import check_random_tensor, first_samples, load_samples
from common.datasets.tensor_completion import load_tensor_completion, random_completion
from common.metrics.cp_rank import estimate_cp_rank, unfolding_rank_bound
from common.metrics.cp_solver import khatri_rao
from common.metrics.matrix import component_norms
from common.metrics.sharpness import sharpness
from common.models.cp_factorization import (
    CPFactorization,
    first_group_size,
    full_rank,
    initial_factors,
    steps_on_observed_entries,
)
from common.problems.problem import Results, as_metrics, error_masks, optimizer_of, relative_errors
from common.recorded_runs import TENSOR_METRICS
from common.training.history import Metrics, TrainingState
from common.training.objectives import EntryObjective, entry_objective
from common.training.threads import one_thread

# CP ranks are estimated from random starts. With one seed for all, equal tensors have equal ranks.
_RANK_SEED = 0


class TensorFactorization:
    """See `common.problems.problem.Problem`."""

    model = CPFactorization
    max_zero_loss_validations = 2
    headline = re.compile(r"mse_loss|reconstruction_error|held_out_error|model_tensor_rank")
    figures = {"component_norms": r"component_norm_\d+"}  # noqa: RUF012
    target_flags = "target_tensor_cp_rank", "target_fro_norm", "mode_dim_size", "order"
    observes_entries = True

    def __init__(self, parameters: dict[str, Any]):
        self.parameters = parameters
        if parameters["random_target"]:
            check_random_tensor(parameters)
            cp_rank, norm, dim, order = (parameters[name] for name in self.target_flags)
            available = random_completion((dim,) * order, cp_rank, norm, parameters["random_seed"])
            self.dataset = first_samples(available, parameters["num_samples"])
        else:
            self.dataset = load_samples(load_tensor_completion, parameters["dataset_path"], parameters["num_samples"])
            available = load_samples(load_tensor_completion, parameters["dataset_path"])
        self.optimizer, self.decays = optimizer_of(parameters), parameters["weight_decay"] > 0
        self.output_shape = dims = tuple(self.dataset.target_tensor.shape)
        # What plots need, and a parameter under the name of the original code, too.
        self.recorded: dict[str, Any] = {"shape": list(dims), "target_cp_rank": self.dataset.target_cp_rank}
        self.recorded["use_adaptive_lr"] = parameters["optimizer"] == "group_rmsprop"
        self.num_observations = parameters["num_samples"], len(available.observed_entries)
        self.error_masks = error_masks(self.dataset, self.dataset.target_tensor)
        split, rank = first_group_size(dims), parameters["num_components"] or full_rank(dims)
        num_norms = parameters["track_component_norms"]
        if num_norms > rank:
            remedy = f"the factorization has {rank} components; give at most that"
            raise flag_error("track_component_norms", num_norms, remedy)
        self.measures_at_once = parameters["track_tensor_rank"] or parameters["track_sharpness"] or num_norms > 0
        self.num_metrics = 2 + parameters["track_tensor_rank"] + parameters["track_sharpness"] + num_norms
        self.factor_shapes = [(dim, rank) for dim in dims]
        on_observed_entries = steps_on_observed_entries(dims, parameters["num_samples"])
        metrics = (
            self.dataset.known is None,
            *self.error_masks,
            parameters["track_tensor_rank"],
            parameters["track_sharpness"],
            num_norms,
        )
        self.batch_key = (dims, rank, self.optimizer, self.decays, on_observed_entries, *metrics)
        self.multiplications = 3 * prod(dims) * rank
        # Factors and Khatri–Rao products with their gradients and copies; outputs and observations.
        self.working_size = 6 * (2 * sum(dims) + prod(dims[:split]) + prod(dims[split:])) * rank + 8 * prod(dims)

    def initial_factors(self) -> list[Tensor]:
        values, (_, rank) = self.parameters, self.factor_shapes[0]
        generator = torch.Generator().manual_seed(values["random_seed"])
        return initial_factors(self.output_shape, rank, values["init_std"], generator, getattr(torch, values["dtype"]))

    @staticmethod
    def objective(problems: Sequence["TensorFactorization"], like: Tensor) -> EntryObjective:
        dims = problems[0].output_shape
        rows = prod(dims[: first_group_size(dims)])
        targets = torch.stack([problem.dataset.target_tensor.view(rows, -1) for problem in problems])
        entries = [problem.dataset.observed_entries for problem in problems]
        # Weight 2 / n makes the objective, half the weighted sum of squares, their mean.
        return entry_objective(entries, targets.to(like), [2 / len(observed) for observed in entries])

    @staticmethod
    def measure(
        problems: Sequence["TensorFactorization"],
        losses: np.ndarray,
        outputs: np.ndarray,
        factors: Sequence[Sequence[Tensor]] = (),
    ) -> Metrics:
        values = problems[0].parameters
        targets = [problem.dataset.target_tensor.double() for problem in problems]
        tensors = torch.from_numpy(outputs).double()
        validation = relative_errors(problems, targets, tensors)
        if values["track_tensor_rank"]:
            tols = [problem.parameters["tensor_rank_tol"] for problem in problems]
            cubes = zip(tensors, targets, tols, strict=True)
            ranks = [_rank_and_bound(tensor.view(target.shape), tol)[0] for tensor, target, tol in cubes]
            validation["model_tensor_rank"] = torch.tensor([math.nan if rank is None else rank for rank in ranks])
        if values["track_sharpness"]:
            with one_thread():
                each = [sharpness(problem._loss, own) for problem, own in zip(problems, factors, strict=True)]
            validation["sharpness"] = torch.stack(each)
        if num_norms := values["track_component_norms"]:
            norms = torch.stack([component_norms([factor.double() for factor in own]) for own in factors])
            validation |= {f"component_norm_{index}": norms[:, index] for index in range(num_norms)}
        return as_metrics({"mse_loss": torch.from_numpy(losses)}, validation, losses)

    def _loss(self, factors: Sequence[Tensor]) -> Tensor:
        """Returns the loss of float64 factors, for automatic differentiation."""
        split, batch = first_group_size(self.output_shape), [factor[None] for factor in factors]
        output = (khatri_rao(batch[:split]) @ khatri_rao(batch[split:]).mT).flatten()
        observed = self.dataset.observed_entries
        return (output[observed] - self.dataset.target_tensor.flatten()[observed]).square().mean()

    def results(self, state: TrainingState, output: Tensor) -> Results:
        """The tensors, and their errors and ranks."""
        target, known, values = self.dataset.target_tensor, self.dataset.known, self.parameters
        memorizer = self.dataset.memorizer
        recorded_target = target.clone() if known is None else target.where(known, math.nan)
        tensors = {"model": output.reshape(target.shape), "memorizer": memorizer, "targets": recorded_target}
        files = {f"{name}_tensor.pt": tensor for name, tensor in tensors.items()}
        both = torch.stack([tensors[name].double() for name in ("model", "memorizer")])[None]
        errors = relative_errors([self], [target.double()], both)["reconstruction_error"].tolist()
        numbers = {"model_reconstruction_error": errors[0], "memorizer_reconstruction_error": errors[1]}
        # The last values of what is recorded of the factors and of held-out entries.
        last, others = state.history.last_values(), re.compile(r"held_out_error|sharpness|component_norm_\d+")
        numbers |= {name: value for name, value in last.items() if others.fullmatch(name)}
        extra_metrics = {}
        if values["compute_final_tensor_ranks"]:
            tol = values["tensor_rank_tol"]
            ranks = {
                "model": _rank_and_bound(tensors["model"].double(), tol),
                "memorizer": _cached_rank_and_bound(memorizer, tol),
            }
            if known is None or known.all():
                ranks["targets"] = _cached_rank_and_bound(target, tol)
            for name, (rank, bound) in ranks.items():
                numbers |= {f"{name}_tensor_rank": rank, f"{name}_tensor_rank_lower_bound": bound}
            if ranks["model"][0] is not None:
                extra_metrics["model_tensor_rank"] = ranks["model"][0]
        return Results(files, TENSOR_METRICS, numbers, extra_metrics)


def _rank_and_bound(tensor: Tensor, tol: float) -> tuple[int | None, int | None]:
    """The estimated CP rank of a tensor (d_1, …, d_N), and a lower bound; None if an entry is not finite."""
    if not tensor.isfinite().all():
        return None, None
    with one_thread():
        (rank,) = estimate_cp_rank([tensor], tol, _RANK_SEED)
        return rank, unfolding_rank_bound(tensor, tol)


# For the tensors of a dataset, which many experiments share.
_cached_rank_and_bound = lru_cache(maxsize=256)(_rank_and_bound)
