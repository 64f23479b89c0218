"""CP rank of a tensor, bounded from below by its unfoldings and from above by approximations that were found.

Approximations are found by the Levenberg-Marquardt method of cp_solver.py, from many starts at once.

Source: Kolda & Bader 2009, Tensor decompositions and applications (notation, unfoldings).
"""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from common.metrics.cp_solver import (
    append_rank_one,
    cp_residual,
    gaussian_starts,
    levenberg_marquardt,
    squared_norms,
    unfold,
)

# A tensor none of whose entries exceeds this has rank zero.
ZERO_ENTRY = 1e-8
# Many starts while they are cheap; with more unknowns the errors of different starts concentrate, and fewer will do.
MAX_STARTS, MIN_STARTS, START_UNKNOWNS = 32, 6, 7200
# The best failed starts of one rank, with a component more, are tried first at the next.
KEPT_MISSES = 3
# The best start gains another factor of about exp(8 / t) after step t; this compares ranks that were given up early.
EXPECTED_GAIN = 8.0
# Keeps secants off the ends of their bracket when a margin is close to zero.
LEAST_MARGIN = 0.02
# Squared residuals of a unit tensor this small need double precision; single is half again as fast.
FLOAT32_THRESHOLD = 1e-8


def unfolding_rank_bound(tensor: Tensor, tol: float) -> int:
    """Certified lower bound on the rank of every approximation with mean squared error below ``tol``.

    A CP approximation of rank b is, in every unfolding, a matrix of rank at most b, and so (Eckart & Young) leaves at
    least the energy beyond the first b singular values.

    Parameters
    ----------
    tensor : Tensor, any order
    tol : float
        Mean squared error over all entries that the approximation stays strictly below.

    Returns
    -------
    int
        Smallest b for which that energy is below ``tol * tensor.numel()`` in all groupings of the modes into two
        nonempty groups; 0 if no entry exceeds 1e-8 in size, and at least 1 otherwise.
    """
    tensor = tensor.detach().double().cpu()
    if not tensor.abs().max() > ZERO_ENTRY:
        return 0
    tensor = tensor.squeeze()
    bound = 1
    for size in range(tensor.ndim - 1):
        # Mode 0 stays in the rows: transposes have the same singular values.
        for others in combinations(range(1, tensor.ndim), size):
            energies = torch.linalg.svdvals(unfold(tensor, (0, *others))).square()
            tails = energies.flip(0).cumsum(0)
            bound = max(bound, int((tails >= tol * tensor.numel()).sum()))
    return bound


@torch.inference_mode()
def estimate_cp_rank(tensors: Sequence[Tensor], tol: float = 1e-6, seed: int = 0) -> list[int]:
    """Smallest ranks for which CP approximations with mean squared error below ``tol`` are found.

    Parameters
    ----------
    tensors : sequence of Tensor
        Real tensors of order 2 or more; an answer does not depend on the tensors beside it.
    tol : float
        Mean squared error over all entries that counts as exact.
    seed : int
        Seeds the random starts of every tensor.

    Returns
    -------
    list of int
        0 for tensors none of whose entries exceeds 1e-8 in size; never more than the product of all dimensions but
        the largest, which suffices for every tensor.

    Raises
    ------
    ValueError
        If a tensor has an order below 2 or entries that are not finite.
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
    """Smallest rank, ``bound`` or more, found to bring the squared residual of a unit tensor below ``threshold``.

    Tries the bound, which is all that a tensor of exactly low rank needs, and then brackets the answer.
    """
    working = tensor.to(torch.float32 if threshold > FLOAT32_THRESHOLD else torch.float64)
    # Unit vectors in all modes but the largest write any tensor exactly: that many components need no search.
    failed, found, rank = bound - 1, tensor.numel() // max(tensor.shape), bound
    # Log of squared residual over threshold, as far as more steps would take it.
    margins = {0: -math.log(threshold)}
    misses = working.new_zeros(1, tensor.ndim, max(tensor.shape), 0)
    while found - failed > 1:
        count = START_UNKNOWNS // (rank * sum(tensor.shape))
        starts = gaussian_starts(working, min(max(count, MIN_STARTS), MAX_STARTS), rank, generator)
        if misses.shape[-1] == rank - 1:
            starts = torch.cat([append_rank_one(working, misses), starts])
        factors, errors, steps = levenberg_marquardt(working, starts, threshold)
        margins[rank] = math.log(max(errors[0].item() / threshold, 1e-30)) - EXPECTED_GAIN / (steps + 1)
        if squared_norms(cp_residual(tensor, factors[:1].double())).item() < threshold:
            found = rank
        else:
            failed, misses = rank, factors[:KEPT_MISSES]
        rank = next_rank(margins, failed, found)
    return found


def next_rank(margins: dict[int, float], failed: int, found: int) -> int:
    """Rank strictly between ``failed`` and ``found`` where a secant through two margins crosses zero."""
    below = max(rank for rank in margins if rank <= failed)
    height = max(margins[below], LEAST_MARGIN)
    if found in margins:
        guess = below + (found - below) * height / (height + max(-margins[found], LEAST_MARGIN))
    else:
        before = max(rank for rank in margins if rank < below)
        slope = (margins[before] - height) / (below - before)
        # At most doubled: far below the answer the error falls slowly, and the secant overshoots.
        guess = below + min(height / max(slope, 1e-3), below)
    return min(max(round(guess), failed + 1), found - 1)
