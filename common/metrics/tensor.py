"""Metrics of tensors: pure functions."""

import torch
from torch import Tensor


def reconstruction_error(tensors: Tensor, target: Tensor) -> Tensor:
    """‖T − target‖_F / ‖target‖_F (n,) of `tensors` (n, numel) and `target` (numel,)."""
    return torch.linalg.vector_norm(tensors - target, dim=1) / torch.linalg.vector_norm(target)
