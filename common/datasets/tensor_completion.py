"""Tensor completion: some entries of a target tensor are observed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from common.datasets.arrays import as_entries, target_and_known
from common.datasets.seeds import target_generator
from common.tensor_files import load_dictionary


@dataclass(frozen=True)
class TensorCompletion:
    """A target tensor (d_1, …, d_N), and the flat (row-major) indices (n,) of the observed entries. `known` is the mask
    of the target's known entries; the target is zero elsewhere.
    """

    target_tensor: Tensor
    observed_entries: Tensor
    target_cp_rank: int  # with which the target was made; -1: unconstrained
    known: Tensor | None = None  # None: all, and no held-out error is recorded

    def first(self, num_samples: int) -> "TensorCompletion":
        """Returns the problem with the first `num_samples` entries observed. Raises ValueError if there are fewer."""
        if num_samples > len(self.observed_entries):
            raise ValueError(f"the dataset has only {len(self.observed_entries)} entries; give at most that number")
        return replace(self, observed_entries=self.observed_entries[:num_samples])

    @cached_property
    def memorizer(self) -> Tensor:
        """Tensor (d_1, …, d_N) of the observed entries, zero elsewhere: the paper's linear baseline."""
        flat = torch.zeros_like(self.target_tensor).flatten()
        flat[self.observed_entries] = self.target_tensor.flatten()[self.observed_entries]
        return flat.view_as(self.target_tensor)


def load_tensor_completion(path: str) -> TensorCompletion:
    """Returns the problem in a dataset file, with all entries that may be observed, in the order of the file.

    Raises OSError, and ValueError if the file holds something else.
    """
    return as_tensor_completion(load_dictionary(path))


def as_tensor_completion(content: Mapping[str, Any]) -> TensorCompletion:
    """Returns the problem in the content of a dataset file; see data/README.md. Raises ValueError."""
    target, known = target_and_known(content, "target_tensor")
    if target.dim() < 2:
        raise ValueError(f"'target_tensor' has shape {tuple(target.shape)}, expected two modes or more")
    if not target.any():
        raise ValueError("'target_tensor' holds nothing but zeros")
    entries = as_entries(content.get("train_indices_order"), tuple(target.shape), "'train_indices_order'")
    if known is not None and not known.flatten()[entries].all():
        raise ValueError("'train_indices_order' holds an entry that is not known")
    rank = content.get("target_cp_rank", -1)
    if type(rank) is not int:
        raise ValueError("'target_cp_rank' is not an integer")
    return TensorCompletion(target, entries, rank, known)


def completion_content(target: Tensor, entries: Tensor, cp_rank: int = -1) -> dict[str, Any]:
    """Returns the content of a dataset file of a target tensor, made with a CP rank, whose `entries` (n,) are observed
    in this order.
    """
    return {"target_tensor": target, "target_cp_rank": cp_rank, "train_indices_order": entries.tolist()}


def random_completion(dims: tuple[int, ...], cp_rank: int, norm: float, seed: int) -> TensorCompletion:
    """Returns the completion of a `random_tensor`. All entries are observed, in random order."""
    generator = target_generator(seed)
    target = random_tensor(dims, cp_rank, norm, generator)
    return TensorCompletion(target, torch.randperm(target.numel(), generator=generator), cp_rank)


def random_tensor(dims: tuple[int, ...], cp_rank: int, norm: float, generator: torch.Generator) -> Tensor:
    """Returns a tensor of shape `dims` and Frobenius norm `norm`, from Gaussian CP factors of rank `cp_rank`, or with
    Gaussian entries if `cp_rank` is -1.
    """

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if cp_rank == -1:
        tensor = gaussian(*dims)
    else:
        tensor = sum(reduce(torch.kron, map(gaussian, dims)) for _ in range(cp_rank)).view(dims)
    return (tensor * (norm / torch.linalg.vector_norm(tensor))).float()
