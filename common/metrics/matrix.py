"""Metrics of batches of matrices and tensors."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor


def singular_values(matrices: Tensor) -> Tensor:
    """Returns the singular values (..., min(rows, cols)) of `matrices` (..., rows, cols), descending; NaN for a matrix
    with an entry that is not finite. The bits of the result do not depend on the rest of the batch.
    """
    # x·0 is NaN if and only if x is not finite.
    finite = (matrices * 0).sum((-2, -1)) == 0
    svdvals = _svdvals_2x2 if matrices.shape[-2:] == (2, 2) else _svdvals
    if finite.all():
        return svdvals(matrices)
    values = svdvals(matrices.where(finite[..., None, None], 0))
    return values.where(finite[..., None], torch.nan)


def _svdvals(matrices: Tensor) -> Tensor:
    """torch.linalg.svdvals with an added column of zeros if the number of entries is odd, because the order of LAPACK's
    sums depends on whether a matrix starts at a multiple of 16 bytes.
    """
    rows, cols = matrices.shape[-2:]
    padded = torch.nn.functional.pad(matrices, (0, rows * cols % 2))
    return torch.linalg.svdvals(padded)[..., : min(rows, cols)]


def _svdvals_2x2(matrices: Tensor) -> Tensor:
    """Returns the singular values of 2×2 matrices, many times faster than LAPACK. [[a, b], [c, d]] is a rotation scaled
    by ½‖(a + d, c − b)‖ plus a reflection scaled by ½‖(a − d, c + b)‖; σ_1 is the sum of the scales. σ_2 is
    |ad − bc| / σ_1, where products of float32 numbers are exact in float64.
    """
    scale = _power_of_two(matrices.abs().amax((-2, -1)))
    (a, b), (c, d) = (row.unbind(-1) for row in (matrices / scale[..., None, None]).unbind(-2))
    first = (torch.hypot(a + d, c - b) + torch.hypot(a - d, c + b)) / 2
    # The scaled σ_1 is at least ½, or eps/2 if it was denormal, or 0.
    second = torch.minimum((a * d - b * c).abs_() / first.clamp_min(2.0**-60), first)
    # Each singular value is contiguous in memory, so that sums over them add long vectors.
    return torch.stack([first, second]).mul_(scale).movedim(0, -1)


def _power_of_two(largest: Tensor) -> Tensor:
    """Returns the powers of two with the exponents of `largest` (...). Dividing numbers x, |x| ≤ `largest`, by them is
    exact unless it underflows, and then products do not overflow.
    """
    return torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)


def frobenius_norm(singular_values: Tensor) -> Tensor:
    """Returns ‖W‖_F = (Σ σ_i²)^½ (...) from `singular_values` (..., k), without overflow of their squares."""
    return reduce(torch.hypot, singular_values.unbind(-1))


def nuclear_norm(singular_values: Tensor) -> Tensor:
    """Returns ‖W‖_* = Σ σ_i (...) from `singular_values` (..., k)."""
    return singular_values.sum(-1)


def schatten_quasi_norm(singular_values: Tensor, p: float) -> Tensor:
    """Returns the Schatten-p quasi-norm (Σ σ_i^p)^(1/p) (...) from `singular_values` (..., k), for p > 0."""
    return singular_values.pow(p).sum(-1).pow(1 / p)


def effective_rank(singular_values: Tensor) -> Tensor:
    """Returns exp of the entropy (natural logarithm) of `singular_values` (..., k) normalized to sum 1; 1 for the zero
    matrix (Roy & Vetterli 2007).
    """
    total = singular_values.sum(-1, keepdim=True)
    shares = singular_values / torch.where(total > 0, total, 1)
    return torch.special.entr(shares).sum(-1).exp()


def distance_from_rank_1(singular_values: Tensor) -> Tensor:
    """Returns the Frobenius distance (...) to the nearest matrix of rank 1, (Σ_{i≥2} σ_i²)^½ (Eckart & Young 1936), of
    descending `singular_values` (..., k).
    """
    if singular_values.shape[-1] == 1:
        return singular_values[..., 0] * 0
    return frobenius_norm(singular_values[..., 1:])


def rank(singular_values: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Returns the number (...) of descending `singular_values` (..., k) above σ_max · max(rows, cols) · eps, or NaN for
    NaN. `shape` is (rows, cols), and `dtype` is that in which the matrix was computed.
    """
    threshold = singular_values[..., :1] * (max(shape) * torch.finfo(dtype).eps)
    return (singular_values > threshold).sum(-1) + singular_values[..., 0] * 0


def reconstruction_error(tensors: Tensor, targets: Tensor) -> Tensor:
    """Returns ‖T − target‖_F / ‖target‖_F (n,) of `tensors` (n, ...) and `targets`, one (...) or a target for each
    (n, ...), which are not zero; NaN for a tensor with an entry that is not finite.
    """
    differences = (tensors - targets).flatten(1)
    scale = _power_of_two(differences.abs().amax(1))
    norms = torch.linalg.vector_norm(differences / scale[:, None], dim=1) * scale
    return norms / torch.linalg.vector_norm(targets, dim=tuple(range(1 - tensors.dim(), 0)))


def balancedness(factors: Sequence[Tensor]) -> Tensor:
    """Returns the largest ‖W_lᵀ W_l − W_{l+1} W_{l+1}ᵀ‖_F (...) of successive factors W_l (..., d_l, d_{l+1}), or 0 if
    there is one factor. Gradient flow on a loss of the product W_1 ⋯ W_L does not change it (Arora et al. 2018).
    """
    differences = [left.mT @ left - right @ right.mT for left, right in pairwise(factors)]
    norms = [torch.linalg.matrix_norm(difference) for difference in differences]
    return reduce(torch.maximum, norms, factors[0].new_zeros(factors[0].shape[:-2]))


def component_norms(factors: Sequence[Tensor]) -> Tensor:
    """Returns the norms (..., R) of the components of a CP factorization, descending: the products over the modes of
    the norms of the columns of factors (..., d_k, R).
    """
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=-2) for factor in factors])
    return norms.prod(0).sort(dim=-1, descending=True).values
