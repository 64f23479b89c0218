"""Matrix sensing and completion: linear observations y_i = ⟨A_i, W*⟩ of a target matrix W*."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from common.datasets.arrays import as_entries, as_numbers, target_and_known
from common.datasets.seeds import target_generator
from common.tensor_files import load_dictionary


@dataclass(frozen=True)
class MatrixSensing:
    """Sensing matrices (n, rows, cols), observations (n,) and target matrix (rows, cols). Instead of the sensing
    matrices, the flat (row-major) entries (n,) that are observed may be stored. `known` is the mask of the target's
    known entries; the target is zero elsewhere.
    """

    sensing_matrices: Tensor | None
    observations: Tensor
    target_matrix: Tensor
    stored_entries: Tensor | None = None
    known: Tensor | None = None  # None: all, and no held-out error is recorded

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
        observations = self.observations[:num_samples]
        return replace(self, sensing_matrices=matrices, observations=observations, stored_entries=entries)

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

    def facts(self) -> dict[str, Any]:
        """Returns what plots need: the "shape"; the "unobserved_entry", if it is the only one; and, of a 1×1 or 2×2
        matrix of which all entries but one at most are observed, the "observations". If there is an unobserved entry,
        they are a, b and z of metrics/theory.py: in its row, in its column, and opposite.
        """
        (rows, cols), entries = self.shape, self.observed_entries
        facts = {"shape": [rows, cols], "unobserved_entry": None, "observations": None}
        if entries is not None and len(entries) >= rows * cols - 1:
            observed = dict(zip(entries.tolist(), self.observations.tolist(), strict=True))
            unobserved = sorted(set(range(rows * cols)) - set(observed))
            if len(unobserved) == 1:
                facts["unobserved_entry"] = list(divmod(unobserved[0], cols))
            if rows == cols <= 2:
                order = sorted(observed, key=lambda entry: entry ^ min(unobserved, default=0))
                facts["observations"] = [observed[entry] for entry in order]
        return facts

    def state_dict(self) -> dict[str, Tensor]:
        """The content of a dataset file with sensing matrices."""
        return {"A": self.sensing_matrices, "y": self.observations, "target_matrix": self.target_matrix}


def load_matrix_sensing(path: str) -> MatrixSensing:
    """Returns the problem in a dataset file. Raises OSError, and ValueError if the file holds something else."""
    return as_matrix_sensing(load_dictionary(path))


def as_matrix_sensing(content: Mapping[str, Any]) -> MatrixSensing:
    """Returns the problem in the content of a dataset file; see data/README.md. Raises ValueError."""
    target, known = target_and_known(content, "target_matrix")
    observations, shape = as_numbers(content.get("y"), "'y'"), tuple(target.shape)
    matrices, entries = None, None
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"'target_matrix' has shape {shape}, expected (rows, cols)")
    if "A" not in content and "observed_entries" in content:
        entries = as_entries(content["observed_entries"], shape, "'observed_entries'")
    else:
        matrices = as_numbers(content.get("A"), "'A'")
        if matrices.shape[1:] != shape:
            raise ValueError(f"'A' has shape {tuple(matrices.shape)}, expected (n, {shape[0]}, {shape[1]})")
    count = len(matrices if entries is None else entries)
    if observations.shape not in ((count,), (count, 1)):
        raise ValueError(f"'y' has shape {tuple(observations.shape)}, expected ({count},)")
    for name, values in (("A", matrices), ("y", observations)):
        if values is not None and not values.isfinite().all():
            raise ValueError(f"{name!r} holds NaN or infinity")
    return MatrixSensing(matrices, observations.flatten(), target, entries, known)


def completion_content(target: Tensor, entries: Tensor) -> dict[str, Tensor]:
    """Returns the content of a dataset file of a target matrix whose `entries` (n,) are observed in this order."""
    return {"observed_entries": entries, "y": target.flatten()[entries], "target_matrix": target}


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
