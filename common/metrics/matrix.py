"""Metrics of matrices: pure functions of tensors whose last two dimensions are the matrix."""

import torch
from torch import Tensor


def singular_values(matrices: Tensor) -> Tensor:
    """Singular values (..., min(rows, cols)) of `matrices` (..., rows, cols), descending; NaN for a matrix with an
    entry that is not finite.
    """
    finite = matrices.isfinite().flatten(-2).all(-1)
    svdvals = _svdvals_2x2 if matrices.shape[-2:] == (2, 2) else torch.linalg.svdvals
    values = svdvals(matrices.where(finite[..., None, None], torch.zeros_like(matrices)))
    return values.where(finite[..., None], torch.full_like(values, torch.nan))


def _svdvals_2x2(matrices: Tensor) -> Tensor:
    """A 2×2 matrix [[a, b], [c, d]] is a scaled rotation of length ½‖(a + d, c − b)‖ plus a scaled reflection of length
    ½‖(a − d, c + b)‖; the largest singular value is the sum of the lengths, and the other one |det| divided by it.
    """
    a, b, c, d = matrices.flatten(-2).unbind(-1)
    largest = torch.hypot((a + d) / 2, (c - b) / 2) + torch.hypot((a - d) / 2, (c + b) / 2)
    divisor = largest.where(largest != 0, torch.ones_like(largest))
    # Divided first, for the determinant of large entries may overflow.
    smallest = ((a / divisor) * d - (b / divisor) * c).abs()
    return torch.stack([largest, torch.minimum(smallest, largest)], -1)


def frobenius_norm(singular_values: Tensor) -> Tensor:
    """‖W‖_F = (Σ σ_i²)^½ (...) from `singular_values` (..., k), descending; no square of theirs overflows."""
    largest = singular_values[..., :1]
    shares = singular_values / largest.where(largest != 0, torch.ones_like(largest))
    return largest[..., 0] * torch.linalg.vector_norm(shares, dim=-1)


def nuclear_norm(singular_values: Tensor) -> Tensor:
    """‖W‖_* = Σ σ_i (...) from `singular_values` (..., k)."""
    return singular_values.sum(-1)


def effective_rank(singular_values: Tensor) -> Tensor:
    """exp of the entropy, natural logarithm, of the singular values normalized to sum 1 (Roy & Vetterli 2007).

    From `singular_values` (..., k). Of the zero matrix, 1: there is nothing to sum over.
    """
    total = singular_values.sum(-1, keepdim=True)
    shares = singular_values / total.where(total != 0, torch.ones_like(total))
    return torch.special.entr(shares).sum(-1).exp()


def rank(singular_values: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The number of singular values above σ_max · max(rows, cols) · eps, for `shape` (rows, cols) and the precision
    `dtype` in which the matrix was computed. From `singular_values` (..., k), descending; NaN where these are.
    """
    threshold = singular_values[..., :1] * (max(shape) * torch.finfo(dtype).eps)
    counts = (singular_values > threshold).sum(-1).to(singular_values.dtype)
    return counts.where(singular_values[..., 0].isfinite(), torch.full_like(counts, torch.nan))
