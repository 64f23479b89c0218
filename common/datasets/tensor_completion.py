"""Tensor completion: some entries of a target tensor are observed."""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from common.tensor_files import is_float_tensor, load_dictionary


@dataclass(frozen=True)
class TensorCompletion:
    """Target tensor (d_1, …, d_N), the flat (row-major) indices of the observed entries (n,), and the CP rank that the
    target was made with (-1: unconstrained).
    """

    target_tensor: Tensor
    observed_entries: Tensor
    target_cp_rank: int

    def first(self, num_samples: int) -> "TensorCompletion":
        """The problem in which the first `num_samples` entries are observed. Raises ValueError if there are fewer."""
        if num_samples > len(self.observed_entries):
            raise ValueError(f"the dataset has only {len(self.observed_entries)} entries; give at most as many")
        return TensorCompletion(self.target_tensor, self.observed_entries[:num_samples], self.target_cp_rank)

    @cached_property
    def memorizer(self) -> Tensor:
        """The observed entries, and zero elsewhere (d_1, …, d_N): the paper's linear baseline."""
        flat = torch.zeros_like(self.target_tensor).flatten()
        flat[self.observed_entries] = self.target_tensor.flatten()[self.observed_entries]
        return flat.view_as(self.target_tensor)


def load_tensor_completion(path: str) -> TensorCompletion:
    """The problem in a dataset file, with all entries observed, in the order of the file.

    Raises OSError, and ValueError where the file holds no such problem.
    """
    content = load_dictionary(path)

    def invalid(problem: str) -> ValueError:
        return ValueError(f"{problem}; give a file made by tc_data_generator.py")

    target, order = content.get("target_tensor"), content.get("train_indices_order")
    if not is_float_tensor(target) or target.dim() < 2 or 0 in target.shape:
        raise invalid("holds no 'target_tensor' of floating-point numbers with two modes or more")
    if not target.isfinite().all() or not target.any():
        raise invalid("'target_tensor' holds NaN or infinity, or nothing but zeros")
    if isinstance(order, Tensor):
        order = order.tolist()
    if not isinstance(order, list) or not all(isinstance(entry, int) for entry in order):
        raise invalid("holds no list of integers 'train_indices_order'")
    if sorted(order) != list(range(target.numel())):
        raise invalid(f"'train_indices_order' is not a permutation of the {target.numel()} flat entries")
    rank = content.get("target_cp_rank", -1)
    if not isinstance(rank, int):
        raise invalid("'target_cp_rank' is not an integer")
    return TensorCompletion(target.detach(), torch.tensor(order), rank)


def random_tensor(dims: tuple[int, ...], cp_rank: int, norm: float, generator: torch.Generator) -> Tensor:
    """A tensor of `dims` with Frobenius norm `norm`: of Gaussian CP factors of rank `cp_rank`, or for -1 of Gaussian
    entries.
    """
    if cp_rank == -1:
        tensor = torch.randn(*dims, generator=generator, dtype=torch.float64)
    else:
        tensor = torch.zeros(prod(dims), dtype=torch.float64)
        for _ in range(cp_rank):
            component = torch.ones(1, dtype=torch.float64)
            for dim in dims:
                factor = torch.randn(dim, generator=generator, dtype=torch.float64)
                component = torch.outer(component, factor).flatten()
            tensor += component
        tensor = tensor.view(dims)
    return (tensor * (norm / torch.linalg.vector_norm(tensor))).float()
