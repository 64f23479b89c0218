import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from common.datasets.tensor_completion import random_tensor
from common.metrics.cp_rank import estimate_cp_rank, unfolding_rank_bound
from tests.conftest import make_generator

TOL = 1e-6


def estimate_rank(tensor, tol=TOL, seed=0):
    (rank,) = estimate_cp_rank([tensor], tol, seed)
    return rank


def make_memorizer(num_samples, dims=(5, 5, 5)):
    """Returns some entries of a tensor of rank 1, with zeros elsewhere."""
    tensor = random_tensor(dims, 1, 1.0, make_generator(0)).flatten()
    tensor[torch.randperm(tensor.numel(), generator=make_generator(1))[num_samples:]] = 0
    return tensor.view(dims)


@pytest.mark.parametrize("dims", [(4, 4), (2, 3, 4, 5)])
def test_tensor_within_tolerance_of_zero_has_rank_0(dims):
    for tensor in (torch.zeros(dims), torch.full(dims, 1e-8)):
        assert estimate_rank(tensor, 1e-30) == unfolding_rank_bound(tensor, 1e-30) == 0
    assert estimate_rank(torch.full(dims, 2e-8)) == unfolding_rank_bound(torch.full(dims, 2e-8), TOL) == 1


@pytest.mark.parametrize("dims, cp_rank", [((8, 8, 8), 1), ((8, 8, 8), 6), ((5, 6, 7), 3), ((4, 4, 4, 4), 3)])
def test_rank_of_random_low_rank_tensor(dims, cp_rank):
    # With norm 100, every component is larger than the tolerance.
    tensor = random_tensor(dims, cp_rank, 100.0, make_generator(cp_rank))
    assert estimate_rank(tensor) == cp_rank
    assert unfolding_rank_bound(tensor, TOL) <= cp_rank


@pytest.mark.parametrize("dims", [(3, 7, 5), (1, 4, 3), (2, 3, 2, 4, 2), (1, 1, 1)])
def test_unequal_dimensions(dims):
    assert estimate_rank(random_tensor(dims, 1, 100.0, make_generator(0))) == 1
    tensor = random_tensor(dims, -1, 100.0, make_generator(1))
    assert unfolding_rank_bound(tensor, TOL) <= estimate_rank(tensor) <= math.prod(dims) // max(dims)


@given(rows=st.integers(1, 7), cols=st.integers(1, 7), seed=st.integers(0, 1000), tol=st.sampled_from([1e-3, 1e-1, 1]))
def test_matrix_rank_matches_eckart_young(rows, cols, seed, tol):
    matrix = torch.randn(rows, cols, generator=make_generator(seed), dtype=torch.float64)
    energies = torch.linalg.svdvals(matrix).square()
    expected = next(r for r in range(1, min(rows, cols) + 1) if energies[r:].sum() < tol * rows * cols)
    assert estimate_rank(matrix, tol) == unfolding_rank_bound(matrix, tol) == expected


def test_rank_of_known_tensors():
    """W = e₀⊗e₀⊗e₁ + e₀⊗e₁⊗e₀ + e₁⊗e₀⊗e₀ has rank 3 but border rank 2; the diagonal tensor has rank 2."""
    diagonal = torch.zeros(2, 2, 2)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = 1
    assert estimate_rank(diagonal) == unfolding_rank_bound(diagonal, TOL) == 2
    w = torch.zeros(2, 2, 2)
    w[0, 0, 1] = w[0, 1, 0] = w[1, 0, 0] = 1
    assert estimate_rank(w, 1e-3) == 2
    assert unfolding_rank_bound(w, 1e-3) == 2


def test_estimate_is_deterministic_and_independent_of_batch():
    tensors, tol = [make_memorizer(20), make_memorizer(60), random_tensor((5, 6, 7), 2, 1.0, make_generator(0))], 1e-4
    together = estimate_cp_rank(tensors, tol, 3)
    assert together == [estimate_rank(tensor, tol, 3) for tensor in tensors]
    assert together[::-1] == estimate_cp_rank(tensors[::-1], tol, 3)


def als_mse(tensor, rank, seed):
    """Returns the mean squared error of TensorLy's ALS from one random initialization."""
    target = tensor.double().numpy()
    found = parafac(target, rank, n_iter_max=300, init="random", tol=1e-9, random_state=seed)
    return float(np.mean((tensorly.cp_to_tensor(found) - target) ** 2))


@pytest.mark.parametrize("num_samples, tol", [(20, 1e-4), (60, 1e-4), (110, 1e-5)])
def test_memorizer_rank_is_stable_across_seeds_and_not_above_als(num_samples, tol):
    tensor = make_memorizer(num_samples)
    ranks = [estimate_rank(tensor, tol, seed) for seed in range(4)]
    assert max(ranks) - min(ranks) <= 1
    assert unfolding_rank_bound(tensor, tol) <= min(ranks)
    assert all(als_mse(tensor, max(ranks) - 1, seed) >= tol for seed in range(3))


def test_non_finite_tensor_raises():
    with pytest.raises(ValueError, match="finite"):
        estimate_rank(torch.tensor([[1.0, torch.nan]]))
