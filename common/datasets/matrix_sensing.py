"""Matrix sensing and completion: linear observations y_i = ⟨A_i, W*⟩ of a target matrix W*."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from common.datasets.seeds import target_generator
from common.tensor_files import has_norm, is_float_tensor, load_dictionary


@dataclass(frozen=True)
class MatrixSensing:
    """Sensing matrices (n, rows, cols), observations (n,) and target matrix (rows, cols). Instead of the sensing
    matrices, the flat (row-major) entries (n,) that are observed may be stored.
    """

    sensing_matrices: Tensor | None
    observations: Tensor
    target_matrix: Tensor
    stored_entries: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.target_matrix.shape)

    def first(self, num_samples: int) -> "MatrixSensing":
        """Returns the problem with the first `num_samples` observations. Raises ValueError if there are fewer."""
        if num_samples > len(self.observations):
            raise ValueError(f"the dataset has only {len(self.observations)} samples; give at most that number")
        matrices, entries = (
            each if each is None else each[:num_samples] for each in (self.sensing_matrices, self.stored_entries)
        )
        return MatrixSensing(matrices, self.observations[:num_samples], self.target_matrix, entries)

    @cached_property
    def observed_entries(self) -> Tensor | None:
        """Flat (row-major) indices (n,) of the observed entries for matrix completion, that is, if the sensing matrices
        are distinct standard-basis matrices; otherwise None.
        """
        if self.stored_entries is not None:
            return self.stored_entries
        flat = self.sensing_matrices.flatten(1)
        entries = flat.argmax(dim=1)
        is_basis = (flat.count_nonzero(dim=1) == 1).all() and (flat.amax(dim=1) == 1).all()
        return entries if is_basis and len(entries.unique()) == len(entries) else None

    def state_dict(self, store_entries: bool = False) -> dict[str, Tensor]:
        """The content of a dataset file, with the sensing matrices or, with `store_entries`, the observed entries."""
        observed = {"observed_entries": self.observed_entries} if store_entries else {"A": self.sensing_matrices}
        return {**observed, "y": self.observations, "target_matrix": self.target_matrix}


def load_matrix_sensing(path: str) -> MatrixSensing:
    """Returns the problem in a dataset file. Raises OSError, and ValueError if the file holds something else."""
    content = load_dictionary(path)

    def invalid(problem: str) -> ValueError:
        return ValueError(f"{problem}; give a file made by dmf_data_generator.py")

    has_entries = "A" not in content and "observed_entries" in content
    for key in ("y", "target_matrix") if has_entries else ("A", "y", "target_matrix"):
        if not is_float_tensor(content.get(key)):
            raise invalid(f"holds no tensor of floating-point numbers {key!r}")
        if not content[key].isfinite().all():
            raise invalid(f"{key!r} holds NaN or infinity")
    if not has_norm(content["target_matrix"]):
        raise invalid("'target_matrix' is too large or too small for float64 to hold the square of its norm")
    observations, target = content["y"].detach(), content["target_matrix"].detach()
    shape = tuple(target.shape)
    if target.dim() != 2 or 0 in shape:
        raise invalid(f"'target_matrix' has shape {shape}, expected (rows, cols)")
    if has_entries:
        entries = content["observed_entries"]
        if not _are_entries(entries, target.numel()) or observations.shape != entries.shape:
            raise invalid("'observed_entries' are not distinct flat entries of 'target_matrix', one for each of 'y'")
        return MatrixSensing(None, observations, target, entries)
    matrices = content["A"].detach()
    sensing_shape = tuple(matrices.shape)
    if observations.dim() != 1 or sensing_shape != (len(observations), *shape):
        shapes = f"'A' has shape {sensing_shape}, 'y' {tuple(observations.shape)} and 'target_matrix' {shape}"
        raise invalid(f"{shapes}, expected (n, rows, cols), (n,) and (rows, cols)")
    return MatrixSensing(matrices, observations, target)


def _are_entries(entries: Any, numel: int) -> bool:
    """Returns whether `entries` is a tensor (n,) of distinct integers from 0 to `numel` - 1."""
    if not (isinstance(entries, Tensor) and entries.dtype == torch.int64 and entries.dim() == 1):
        return False
    within = ((entries >= 0) & (entries < numel)).all()
    return bool(within) and len(entries.unique()) == len(entries)


def sense(sensing_matrices: Tensor, target_matrix: Tensor) -> MatrixSensing:
    """Returns the problem of observing `target_matrix` (rows, cols) with `sensing_matrices` (n, rows, cols)."""
    observations = sensing_matrices.flatten(1).double() @ target_matrix.flatten().double()
    return MatrixSensing(sensing_matrices, observations.to(target_matrix.dtype), target_matrix)


def random_target(rows: int, cols: int, rank: int, symmetric: bool, generator: torch.Generator) -> Tensor:
    """Returns U Vᵀ (V = U if `symmetric`) with Gaussian factors of `rank` columns, scaled to Frobenius norm `rows`."""
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = left if symmetric else torch.randn(cols, rank, generator=generator, dtype=torch.float64)
    target = left @ right.T
    return (target * (rows / torch.linalg.norm(target))).float()


def random_completion(rows: int, cols: int, rank: int, seed: int) -> MatrixSensing:
    """Returns the completion of a `random_target`. All entries are observed, in random order."""
    generator = target_generator(seed)
    target = random_target(rows, cols, rank, False, generator)
    entries = random_entries(target.numel(), rows, cols, generator)
    return MatrixSensing(None, target.flatten()[entries], target, entries)


def infinite_norm_target(rows: int, cols: int) -> Tensor:
    """Returns the target of Razin & Cohen (2020): ones at (0,1), (1,0) and (i,i) for i ≥ 2, zeros elsewhere. If only
    (0,0) is unobserved, the norms of a fit can grow to infinity.
    """
    target = torch.eye(rows, cols)
    target[:2, :2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    return target


def gaussian_sensing(num_samples: int, rows: int, cols: int, std: float, generator: torch.Generator) -> Tensor:
    """Returns matrices (num_samples, rows, cols) of independent Gaussian entries of standard deviation `std`."""
    return torch.randn(num_samples, rows, cols, generator=generator) * std


def entry_sensing(entries: Tensor, rows: int, cols: int) -> Tensor:
    """Returns the standard-basis matrices (n, rows, cols) of flat (row-major) `entries` (n,)."""
    return torch.zeros(len(entries), rows * cols).scatter_(1, entries[:, None], 1).view(-1, rows, cols)


def random_entries(num_samples: int, rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Returns `num_samples` distinct flat entries, drawn uniformly."""
    return torch.randperm(rows * cols, generator=generator)[:num_samples]


def all_entries_but(unobserved: Sequence[tuple[int, int]], rows: int, cols: int) -> Tensor:
    """Returns the flat (row-major) entries, in order, without the `unobserved` (row, column) pairs."""
    left_out = {row * cols + col for row, col in unobserved}
    return torch.tensor([entry for entry in range(rows * cols) if entry not in left_out], dtype=torch.int64)
