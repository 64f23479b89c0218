"""Bounds on the CP rank of a tensor: lower bounds from the ranks of its unfoldings, upper bounds from CP approximations
(see cp_solver.py).

Source: Kolda & Bader 2009, Tensor decompositions and applications (notation, unfoldings).
"""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from common.metrics import cp_solver
from common.metrics.cp_solver import cp_residual, squared_norms, unfold

# A tensor has rank 0 if no |entry| exceeds this.
ZERO_ENTRY = 1e-8
# The number of starts falls with the number of unknowns, because then their errors differ less and each costs more.
MAX_STARTS, MIN_STARTS, START_UNKNOWNS = 32, 6, 7200
# The number of best failed starts that are tried again with one more component.
KEPT_MISSES = 3
# After step t, the error of the best start falls by another factor of about exp(8 / t). This makes ranks
# comparable if their searches stopped at different steps.
EXPECTED_GAIN = 8.0
# Keeps secants away from the ends of their bracket if a margin is close to zero.
LEAST_MARGIN = 0.02
# Squared residuals of a unit tensor below this need float64; float32 is 1.5 times as fast.
FLOAT32_THRESHOLD = 1e-8


def unfolding_rank_bound(tensor: Tensor, tol: float) -> int:
    """Returns a lower bound on the rank of every CP approximation of `tensor` with mean squared error below `tol`.

    In every unfolding, a CP approximation of rank b is a matrix of rank at most b, so its squared error is at least the
    sum of the squared singular values beyond the first b (Eckart & Young). The bound is the smallest b, at least 1, for
    which this sum is below `tol * tensor.numel()` in all unfoldings; 0 if no |entry| exceeds 1e-8.
    """
    tensor = tensor.detach().double().cpu()
    if not tensor.abs().max() > ZERO_ENTRY:
        return 0
    tensor = tensor.squeeze()
    bound = 1
    for size in range(tensor.ndim - 1):
        # With mode 0 in the rows, because a transpose has the same singular values.
        for others in combinations(range(1, tensor.ndim), size):
            energies = torch.linalg.svdvals(unfold(tensor, (0, *others))).square()
            tails = energies.flip(0).cumsum(0)
            bound = max(bound, int((tails >= tol * tensor.numel()).sum()))
    return bound


@torch.inference_mode()
def estimate_cp_rank(tensors: Sequence[Tensor], tol: float = 1e-6, seed: int = 0) -> list[int]:
    """Returns for each tensor the smallest rank for which a CP approximation with mean squared error below `tol` is
    found: 0 if no |entry| exceeds 1e-8, and at most the product of all dimensions but the largest.

    `seed` seeds the random starts of every tensor, so that its rank does not depend on the other tensors. Raises
    ValueError if a tensor has an order below 2 or entries that are not finite.
    """
    return [_estimate(tensor.detach().double().cpu(), tol, seed) for tensor in tensors]


def _estimate(tensor: Tensor, tol: float, seed: int) -> int:
    if tensor.ndim < 2 or not tensor.isfinite().all() or not tol > 0:
        shape = tuple(tensor.shape)
        raise ValueError(f"expected tol > 0 and a finite tensor of order 2 or more, got {tol} and shape {shape}")
    bound = unfolding_rank_bound(tensor, tol)
    squeezed = tensor.squeeze()
    if bound == 0 or squeezed.ndim <= 2:
        return bound
    norm = squeezed.norm()
    threshold = tol * tensor.numel() / norm.square().item()
    return _search(squeezed / norm, threshold, bound, torch.Generator().manual_seed(seed))


def _search(tensor: Tensor, threshold: float, bound: int, generator: torch.Generator) -> int:
    """Returns the smallest rank, at least `bound`, at which a squared residual below `threshold` is found for a tensor
    of norm 1. Tries `bound` first, which is the rank of most tensors of low rank.
    """
    working = tensor.to(torch.float32 if threshold > FLOAT32_THRESHOLD else torch.float64)
    # Every tensor has a rank of at most the product of all dimensions but the largest, which needs no search.
    failed, found, rank = bound - 1, tensor.numel() // max(tensor.shape), bound
    # Rank → log of the expected squared residual after more steps, relative to the threshold.
    margins = {0: -math.log(threshold)}
    misses = working.new_zeros(1, tensor.ndim, max(tensor.shape), 0)
    while found - failed > 1:
        count = START_UNKNOWNS // (rank * sum(tensor.shape))
        starts = cp_solver.gaussian_starts(working, min(max(count, MIN_STARTS), MAX_STARTS), rank, generator)
        if misses.shape[-1] == rank - 1:
            starts = torch.cat([cp_solver.append_rank_one(working, misses), starts])
        factors, errors, steps = cp_solver.levenberg_marquardt(working, starts, threshold)
        margins[rank] = math.log(max(errors[0].item() / threshold, 1e-30)) - EXPECTED_GAIN / (steps + 1)
        if squared_norms(cp_residual(tensor, factors[:1].double())).item() < threshold:
            found = rank
        else:
            failed, misses = rank, factors[:KEPT_MISSES]
        rank = next_rank(margins, failed, found)
    return found


def next_rank(margins: dict[int, float], failed: int, found: int) -> int:
    """Returns the rank strictly between `failed` and `found` at which a secant through two margins is zero."""
    below = max(rank for rank in margins if rank <= failed)
    height = max(margins[below], LEAST_MARGIN)
    if found in margins:
        guess = below + (found - below) * height / (height + max(-margins[found], LEAST_MARGIN))
    else:
        before = max(rank for rank in margins if rank < below)
        slope = (margins[before] - height) / (below - before)
        # At most doubled, because the secant overshoots far below the answer, where the error falls slowly.
        guess = below + min(height / max(slope, 1e-3), below)
    return min(max(round(guess), failed + 1), found - 1)
