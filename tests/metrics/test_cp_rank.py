import math
from itertools import permutations

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from common.datasets.tensor_completion import load_tensor_completion, random_tensor
from common.metrics.cp_rank import estimate_cp_rank, unfolding_rank_bound
from tests.conftest import ROOT

TOL = 1e-6


def make_generator(seed):
    return torch.Generator().manual_seed(seed)


def estimate_rank(tensor, tol=TOL, seed=0):
    (rank,) = estimate_cp_rank([tensor], tol, seed)
    return rank


def make_memorizer(num_samples, order=3):
    path = ROOT / f"data/tc/tensor_rank_1_fro_1_order_{order}_dim_8.pt"
    return load_tensor_completion(str(path)).first(num_samples).memorizer


@pytest.mark.parametrize("dims", [(4, 4), (8, 8, 8), (2, 3, 4, 5)])
def test_tensor_within_tolerance_of_zero_has_rank_0(dims):
    for tensor in (torch.zeros(dims), torch.full(dims, 1e-8)):
        assert estimate_rank(tensor, 1e-30) == unfolding_rank_bound(tensor, 1e-30) == 0
    assert estimate_rank(torch.full(dims, 2e-8)) == unfolding_rank_bound(torch.full(dims, 2e-8), TOL) == 1


@pytest.mark.parametrize("dims", [(8, 8, 8), (8, 8, 8, 8)])
@pytest.mark.parametrize("cp_rank", range(1, 7))
def test_rank_of_random_low_rank_tensor(dims, cp_rank):
    # With norm 100, every component is larger than the tolerance.
    tensor = random_tensor(dims, cp_rank, 100.0, make_generator(cp_rank))
    assert estimate_rank(tensor) == cp_rank
    assert unfolding_rank_bound(tensor, TOL) <= cp_rank


@pytest.mark.parametrize("dims", [(3, 7, 5), (2, 2, 2), (1, 4, 3), (2, 3, 2, 4, 2), (1, 1, 1)])
def test_unequal_dimensions(dims):
    assert estimate_rank(random_tensor(dims, 1, 100.0, make_generator(0))) == 1
    full = math.prod(dims) // max(dims)
    rank = estimate_rank(random_tensor(dims, -1, 100.0, make_generator(1)))
    assert unfolding_rank_bound(random_tensor(dims, -1, 100.0, make_generator(1)), TOL) <= rank <= full


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


@given(seed=st.integers(0, 100))
@settings(max_examples=5)
def test_bound_is_invariant_to_mode_order(seed):
    tensor = random_tensor((2, 3, 4, 3), 4, 10.0, make_generator(seed))
    assert len({unfolding_rank_bound(tensor.permute(order), TOL) for order in permutations(range(4))}) == 1


def test_rank_is_invariant_to_scaling_tensor_and_tolerance():
    tensor = make_memorizer(100)
    assert estimate_rank(tensor) == estimate_rank(1000 * tensor, 1e6 * TOL)
    assert unfolding_rank_bound(tensor, TOL) == unfolding_rank_bound(1000 * tensor, 1e6 * TOL)


def test_estimate_is_deterministic_and_independent_of_batch():
    tensors = [make_memorizer(50), make_memorizer(100), random_tensor((8, 8, 8), 2, 1.0, make_generator(0))]
    together = estimate_cp_rank(tensors, TOL, 3)
    assert together == [estimate_rank(tensor, seed=3) for tensor in tensors]
    assert together[::-1] == estimate_cp_rank(tensors[::-1], TOL, 3)


def als_mse(tensor, rank, seed):
    """Returns the mean squared error of TensorLy's ALS from one random initialization."""
    target = tensor.double().numpy()
    found = parafac(target, rank, n_iter_max=300, init="random", tol=1e-9, random_state=seed)
    return float(np.mean((tensorly.cp_to_tensor(found) - target) ** 2))


@pytest.mark.parametrize("num_samples", [50, 200, 450])
def test_memorizer_rank_is_stable_across_seeds_and_not_above_als(num_samples):
    tensor = make_memorizer(num_samples)
    ranks = [estimate_rank(tensor, seed=seed) for seed in range(4)]
    assert max(ranks) - min(ranks) <= 1
    bound = unfolding_rank_bound(tensor, TOL)
    assert bound <= min(ranks)
    assert all(als_mse(tensor, max(ranks) - 1, seed) >= TOL for seed in range(3))


def test_exact_rank_agrees_with_als():
    tensor = random_tensor((6, 7, 8), 3, 10.0, make_generator(4))
    assert estimate_rank(tensor) == 3
    assert min(als_mse(tensor, 3, seed) for seed in range(3)) < TOL
    assert min(als_mse(tensor, 2, seed) for seed in range(3)) > TOL


def test_non_finite_tensor_raises():
    with pytest.raises(ValueError, match="finite"):
        estimate_rank(torch.tensor([[1.0, torch.nan]]))
