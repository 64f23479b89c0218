"""Tensor completion: some entries of a target tensor are observed."""

from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from common.datasets.seeds import target_generator
from common.tensor_files import has_norm, is_float_tensor, load_dictionary


@dataclass(frozen=True)
class TensorCompletion:
    """A target tensor (d_1, …, d_N), and the flat (row-major) indices (n,) of the observed entries."""

    target_tensor: Tensor
    observed_entries: Tensor
    target_cp_rank: int  # with which the target was made; -1: unconstrained

    def first(self, num_samples: int) -> "TensorCompletion":
        """Returns the problem with the first `num_samples` entries observed. Raises ValueError if there are fewer."""
        if num_samples > len(self.observed_entries):
            raise ValueError(f"the dataset has only {len(self.observed_entries)} entries; give at most that number")
        return TensorCompletion(self.target_tensor, self.observed_entries[:num_samples], self.target_cp_rank)

    @cached_property
    def memorizer(self) -> Tensor:
        """Tensor (d_1, …, d_N) of the observed entries, zero elsewhere: the paper's linear baseline."""
        flat = torch.zeros_like(self.target_tensor).flatten()
        flat[self.observed_entries] = self.target_tensor.flatten()[self.observed_entries]
        return flat.view_as(self.target_tensor)


def load_tensor_completion(path: str) -> TensorCompletion:
    """Returns the problem in a dataset file, with all entries observed, in the order of the file.

    Raises OSError, and ValueError if the file holds something else.
    """
    content = load_dictionary(path)

    def invalid(problem: str) -> ValueError:
        return ValueError(f"{problem}; give a file made by tc_data_generator.py")

    target, order = content.get("target_tensor"), content.get("train_indices_order")
    if not is_float_tensor(target) or target.dim() < 2 or 0 in target.shape:
        raise invalid("holds no 'target_tensor' of floating-point numbers with two modes or more")
    if not target.isfinite().all() or not target.any():
        raise invalid("'target_tensor' holds NaN or infinity, or nothing but zeros")
    if not has_norm(target):
        raise invalid("'target_tensor' is too large or too small for float64 to hold the square of its norm")
    order = order.tolist() if isinstance(order, Tensor) else order
    if not isinstance(order, list) or not all(type(entry) is int for entry in order):
        raise invalid("holds no list of integers 'train_indices_order'")
    if sorted(order) != list(range(target.numel())):
        raise invalid(f"'train_indices_order' is not a permutation of the {target.numel()} flat entries")
    rank = content.get("target_cp_rank", -1)
    if type(rank) is not int:
        raise invalid("'target_cp_rank' is not an integer")
    return TensorCompletion(target.detach(), torch.tensor(order), rank)


def random_completion(dims: tuple[int, ...], cp_rank: int, norm: float, seed: int) -> TensorCompletion:
    """Returns the completion of a `random_tensor`. All entries are observed, in random order."""
    generator = target_generator(seed)
    target = random_tensor(dims, cp_rank, norm, generator)
    return TensorCompletion(target, torch.randperm(target.numel(), generator=generator), cp_rank)


def random_tensor(dims: tuple[int, ...], cp_rank: int, norm: float, generator: torch.Generator) -> Tensor:
    """Returns a tensor of shape `dims` and Frobenius norm `norm`, from Gaussian CP factors of rank `cp_rank`, or with
    Gaussian entries if `cp_rank` is -1. Raises ValueError if float32 cannot hold the entries.
    """

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if cp_rank == -1:
        tensor = gaussian(*dims)
    else:
        tensor = sum(reduce(torch.kron, map(gaussian, dims)) for _ in range(cp_rank)).view(dims)
    tensor = (tensor * (norm / torch.linalg.vector_norm(tensor))).float()
    if not tensor.isfinite().all() or not tensor.any():
        raise ValueError("makes entries that float32 cannot hold; give another")
    return tensor
