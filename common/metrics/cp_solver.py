"""CP approximations of a tensor by the Levenberg-Marquardt method, from many starts at once.

A CP approximation of rank R writes T[a, b, c, ...] as the sum over r < R of F_1[a, r] F_2[b, r] F_3[c, r] ... Unlike
alternating least squares, the method makes progress in "swamps" (Tomasi & Bro 2006). The factors of all starts are one
tensor (starts, modes, largest dimension, rank), whose rows beyond a mode's dimension are zero and stay zero.

Sources: Kolda & Bader 2009, Tensor decompositions and applications (notation, Gram matrices); Tomasi & Bro 2006, A
comparison of algorithms for fitting the PARAFAC model; Nielsen 1999, Damping parameter in Marquardt's method.
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

# With 1.5 times as many steps, 7% more starts succeed.
MAX_STEPS = 100
# The curvature is of order 1, because tensors have norm 1 and columns are balanced.
INITIAL_DAMPING = 0.1
# With less damping, the normal matrix may be singular in float32.
MIN_DAMPING = 1e-7
# More accurate directions cost more than the steps that they save.
CG_ITERATIONS, CG_TOLERANCE = 30, 0.1
# Starts with an error above exp(13 / t) thresholds at step t are given up. On hard tensors of order 3, most starts that
# succeed stay below that. A patience of 16 takes 1.5 times as long and rarely finds a smaller rank.
PATIENCE, CHECK_EVERY = 13.0, 10
# The first check is skipped up to this rank, because on tensors of low rank the errors of starts that will succeed
# differ by orders of magnitude at step 10.
SMALL_RANK = 8


def unfold(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Returns the matrix whose rows are indexed by the modes `rows`, and whose columns by the other modes."""
    return tensor.movedim(tuple(rows), tuple(range(len(rows)))).flatten(len(rows)).flatten(0, len(rows) - 1)


def khatri_rao(matrices: Sequence[Tensor]) -> Tensor:
    """Returns the columnwise Kronecker product of matrices (starts, d_k, rank), the first index varying slowest."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = (result[:, :, None] * matrix[:, None]).flatten(1, 2)
    return result


def gaussian_starts(tensor: Tensor, count: int, rank: int, generator: torch.Generator) -> Tensor:
    """Returns Gaussian factors (count, modes, largest dimension, rank) of CP tensors of norm 1/2.

    The covariance of a mode's columns is the Gram matrix of the unfolding, so that they lie in its column space.
    """
    starts = tensor.new_zeros(count, tensor.ndim, max(tensor.shape), rank)
    for mode, dim in enumerate(tensor.shape):
        left, values, _ = torch.linalg.svd(unfold(tensor, [mode]), full_matrices=False)
        normal = torch.randn(count, left.shape[1], rank, generator=generator, dtype=torch.float64).to(tensor)
        starts[:, mode, :dim] = (left * values) @ normal
    starts = balance(starts)
    norms = squared_norms(cp_residual(torch.zeros_like(tensor), starts)).sqrt()
    return starts * (0.5 / norms).pow(1 / tensor.ndim)[:, None, None, None]


def append_rank_one(tensor: Tensor, factors: Tensor) -> Tensor:
    """Returns the factors with one more column: the leading singular vectors of the residual's unfoldings."""
    residual = -cp_residual(tensor, factors)
    column = factors.new_zeros(*factors.shape[:3], 1)
    for mode, dim in enumerate(tensor.shape):
        unfolding = residual.movedim(mode + 1, 1).flatten(2)
        column[:, mode, :dim] = torch.linalg.eigh(unfolding @ unfolding.mT).eigenvectors[..., -1:]
    weights = dot(residual.flatten(1), cp_residual(torch.zeros_like(tensor), column).flatten(1))
    column[:, 0] *= weights[..., None]
    return torch.cat([factors, balance(column)], -1)


def balance(factors: Tensor) -> Tensor:
    """Returns factors of the same CP tensors in which all columns of a component have the same norm."""
    norms = factors.norm(dim=2, keepdim=True).clamp_min(1e-30)
    return factors * (norms.log().mean(1, keepdim=True).exp() / norms)


def unstack(factors: Tensor, tensor: Tensor) -> list[Tensor]:
    """Returns the factors (starts, d_k, rank) of each mode, without the rows of zeros."""
    return [factors[:, mode, :dim] for mode, dim in enumerate(tensor.shape)]


def cp_residual(tensor: Tensor, factors: Tensor) -> Tensor:
    """Returns the CP tensors minus `tensor` (starts, d_1, ..., d_N), by one product of matrices with half the modes as
    rows.
    """
    modes, half = unstack(factors, tensor), tensor.ndim // 2
    left, right = khatri_rao(modes[:half]), khatri_rao(modes[half:])
    matrix = tensor.reshape(1, left.shape[1], right.shape[1])
    return torch.baddbmm(matrix, left, right.mT, beta=-1).view(-1, *tensor.shape)


def gradient(residual: Tensor, tensor: Tensor, factors: Tensor) -> Tensor:
    """Returns the gradient of half the squared residual: unfoldings times Khatri-Rao products of the other factors."""
    modes, result = unstack(factors, tensor), torch.zeros_like(factors)
    for mode, dim in enumerate(tensor.shape):
        unfolding = residual.movedim(mode + 1, 1).flatten(2)
        result[:, mode, :dim] = unfolding @ khatri_rao(modes[:mode] + modes[mode + 1 :])
    return result


def gram_products(factors: Tensor) -> Tensor:
    """Returns the entrywise products of the Gram matrices of all modes but k and l (starts, k, l, rank, rank)."""
    grams = (factors.mT @ factors).unbind(1)
    products = {}
    for pair in combinations_with_replacement(range(len(grams)), 2):
        others = [gram for mode, gram in enumerate(grams) if mode not in pair]
        products[pair] = products[pair[::-1]] = math.prod(others[1:], start=others[0])
    stacked = torch.stack([products[pair] for pair in product(range(len(grams)), repeat=2)], 1)
    return stacked.unflatten(1, (len(grams), len(grams)))


def newton_step(factors: Tensor, slope: Tensor, damping: Tensor) -> Tensor:
    """Solves (J^T J + damping) step = -slope by conjugate gradients, preconditioned by the modes' diagonal blocks.

    J, the derivative of the CP tensor, is not formed. With G_kl from `gram_products`, block (k, k) of J^T J maps a
    direction D_k to D_k G_kk, and block (k, l) maps D_l to F_k (G_kl * F_l^T D_l)^T (Tomasi & Bro 2006).
    """
    products = gram_products(factors)
    blocks = products.diagonal(dim1=1, dim2=2).movedim(-1, 1).clone()
    blocks.diagonal(dim1=2, dim2=3).add_(damping.view(-1, 1, 1))
    products.diagonal(dim1=1, dim2=2).zero_()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(blocks).L).flatten(0, 1)
    # Few calls and views, which cost as much as the arithmetic at this size.
    matrices = factors.flatten(0, 1)
    transposed = matrices.mT.contiguous()
    residual = -slope.flatten(1)
    step = torch.zeros_like(residual)
    direction, image = torch.bmm(residual.view_as(matrices), inverse).view_as(step), residual
    power = dot(residual, direction)
    target = CG_TOLERANCE**2 * power
    for _ in range(CG_ITERATIONS):
        inner = torch.bmm(transposed, direction.view_as(matrices)).view_as(blocks)
        coupling = (products * inner[:, None]).sum(2).view_as(inverse)
        curved = torch.baddbmm(image.view_as(matrices), matrices, coupling.mT).view_as(step)
        length = power / dot(direction, curved)
        step = torch.addcmul(step, length, direction)
        residual = torch.addcmul(residual, length, curved, value=-1)
        scaled = torch.bmm(residual.view_as(matrices), inverse).view_as(step)
        previous, power = power, dot(residual, scaled)
        if (power < target).all():
            break
        # The diagonal blocks map the scaled residual to the residual, so their product with the direction is known.
        ratio = power / previous
        direction, image = torch.addcmul(scaled, ratio, direction), torch.addcmul(residual, ratio, image)
    return step.view_as(factors)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner products (n, 1) of the rows of two matrices (n, m)."""
    return (a * b).sum(1, keepdim=True)


def levenberg_marquardt(tensor: Tensor, factors: Tensor, threshold: float) -> tuple[Tensor, Tensor, int]:
    """Minimizes the squared residuals of all starts until one is below `threshold` or all are given up.

    `tensor` has norm 1; `factors` (starts, modes, largest dimension, rank) are the starts. Returns the factors of the
    starts that are left, best first, their squared residuals (starts,), and the number of steps.
    """
    factors = balance(factors)
    residual = cp_residual(tensor, factors)
    errors = squared_norms(residual)
    damping, growth = torch.full_like(errors, INITIAL_DAMPING), torch.full_like(errors, 2.0)
    step = 0
    while step < MAX_STEPS and errors.min() >= threshold:
        step += 1
        slope = gradient(residual, tensor, factors)
        change = newton_step(factors, slope, damping)
        trial = balance(factors + change)
        trial_residual = cp_residual(tensor, trial)
        trial_errors = squared_norms(trial_residual)
        predicted = (change * (damping.view(-1, 1, 1, 1) * change - slope)).flatten(1).sum(1)
        ratio = (errors - trial_errors) / predicted
        better = trial_errors < errors
        factors = torch.where(better.view(-1, 1, 1, 1), trial, factors)
        residual = torch.where(better.view(-1, *[1] * tensor.ndim), trial_residual, residual)
        errors = torch.where(better, trial_errors, errors)
        # Nielsen's rule: divided by up to 3 after a step that the model predicts well; after failed steps multiplied by
        # 2, 4, 8, …
        shrunk = damping * (1 - (2 * ratio - 1).pow(3)).clamp_min(1 / 3)
        damping = torch.where(better, shrunk, damping * growth).clamp_min(MIN_DAMPING)
        growth = torch.where(better, 2.0, 2 * growth)
        if step % CHECK_EVERY == 0 and (step > CHECK_EVERY or factors.shape[-1] > SMALL_RANK):
            kept = errors < threshold * math.exp(PATIENCE / step)
            if not kept.any():
                break
            factors, residual, errors, damping, growth = (
                state[kept] for state in (factors, residual, errors, damping, growth)
            )
    best_first = errors.argsort()
    return factors[best_first], errors[best_first], step


def squared_norms(tensors: Tensor) -> Tensor:
    """Returns the squared norms (n,) of tensors (n, ...)."""
    return tensors.flatten(1).square().sum(1)
