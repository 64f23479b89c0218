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


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def rank_of(tensor, tol=TOL, seed=0):
    (rank,) = estimate_cp_rank([tensor], tol, seed)
    return rank


def memorizer(num_samples, order=3):
    path = ROOT / f"data/tc/tensor_rank_1_fro_1_order_{order}_dim_8.pt"
    return load_tensor_completion(str(path)).first(num_samples).memorizer


@pytest.mark.parametrize("dims", [(4, 4), (8, 8, 8), (2, 3, 4, 5)])
def test_a_tensor_of_nothing_but_tiny_entries_has_rank_0(dims):
    for tensor in (torch.zeros(dims), torch.full(dims, 1e-8)):
        assert rank_of(tensor, 1e-30) == unfolding_rank_bound(tensor, 1e-30) == 0
    assert rank_of(torch.full(dims, 2e-8)) == unfolding_rank_bound(torch.full(dims, 2e-8), TOL) == 1


@pytest.mark.parametrize("dims", [(8, 8, 8), (8, 8, 8, 8)])
@pytest.mark.parametrize("cp_rank", range(1, 7))
def test_the_rank_of_a_random_low_rank_tensor_is_recovered(dims, cp_rank):
    # Of norm 100, so that no component is small enough for the tolerance to do without it.
    tensor = random_tensor(dims, cp_rank, 100.0, seeded(cp_rank))
    assert rank_of(tensor) == cp_rank
    assert unfolding_rank_bound(tensor, TOL) <= cp_rank


@pytest.mark.parametrize("dims", [(3, 7, 5), (2, 2, 2), (1, 4, 3), (2, 3, 2, 4, 2), (1, 1, 1)])
def test_unequal_dimensions(dims):
    assert rank_of(random_tensor(dims, 1, 100.0, seeded(0))) == 1
    full = math.prod(dims) // max(dims)
    rank = rank_of(random_tensor(dims, -1, 100.0, seeded(1)))
    assert unfolding_rank_bound(random_tensor(dims, -1, 100.0, seeded(1)), TOL) <= rank <= full


@given(rows=st.integers(1, 7), cols=st.integers(1, 7), seed=st.integers(0, 1000), tol=st.sampled_from([1e-3, 1e-1, 1]))
def test_the_rank_of_a_matrix_is_what_eckart_and_young_say(rows, cols, seed, tol):
    matrix = torch.randn(rows, cols, generator=seeded(seed), dtype=torch.float64)
    energies = torch.linalg.svdvals(matrix).square()
    expected = next(r for r in range(1, min(rows, cols) + 1) if energies[r:].sum() < tol * rows * cols)
    assert rank_of(matrix, tol) == unfolding_rank_bound(matrix, tol) == expected


def test_the_rank_of_a_tensor_by_hand():
    """W = e₀⊗e₀⊗e₁ + e₀⊗e₁⊗e₀ + e₁⊗e₀⊗e₀ has rank 3, but rank-2 tensors come arbitrarily close; diag has rank 2."""
    diagonal = torch.zeros(2, 2, 2)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = 1
    assert rank_of(diagonal) == unfolding_rank_bound(diagonal, TOL) == 2
    w = torch.zeros(2, 2, 2)
    w[0, 0, 1] = w[0, 1, 0] = w[1, 0, 0] = 1
    assert rank_of(w, 1e-3) == 2
    assert unfolding_rank_bound(w, 1e-3) == 2


@given(seed=st.integers(0, 100))
@settings(max_examples=5)
def test_the_bound_does_not_depend_on_the_order_of_the_modes(seed):
    tensor = random_tensor((2, 3, 4, 3), 4, 10.0, seeded(seed))
    assert len({unfolding_rank_bound(tensor.permute(order), TOL) for order in permutations(range(4))}) == 1


def test_scaling_a_tensor_and_its_tolerance_changes_nothing():
    tensor = memorizer(100)
    assert rank_of(tensor) == rank_of(1000 * tensor, 1e6 * TOL)
    assert unfolding_rank_bound(tensor, TOL) == unfolding_rank_bound(1000 * tensor, 1e6 * TOL)


def test_an_answer_is_repeatable_and_does_not_depend_on_its_neighbours():
    tensors = [memorizer(50), memorizer(100), random_tensor((8, 8, 8), 2, 1.0, seeded(0))]
    together = estimate_cp_rank(tensors, TOL, 3)
    assert together == [rank_of(tensor, seed=3) for tensor in tensors]
    assert together[::-1] == estimate_cp_rank(tensors[::-1], TOL, 3)


def als_mean_squared_error(tensor, rank, seed):
    """What an independent implementation of alternating least squares finds from one random start."""
    target = tensor.double().numpy()
    found = parafac(target, rank, n_iter_max=300, init="random", tol=1e-9, random_state=seed)
    return float(np.mean((tensorly.cp_to_tensor(found) - target) ** 2))


@pytest.mark.parametrize("num_samples", [50, 200, 450])
def test_ranks_of_memorizers_agree_over_seeds_and_are_below_what_alternating_least_squares_finds(num_samples):
    tensor = memorizer(num_samples)
    ranks = [rank_of(tensor, seed=seed) for seed in range(4)]
    assert max(ranks) - min(ranks) <= 1
    bound = unfolding_rank_bound(tensor, TOL)
    assert bound <= min(ranks)
    assert all(als_mean_squared_error(tensor, max(ranks) - 1, seed) >= TOL for seed in range(3))


def test_an_exact_rank_is_confirmed_by_alternating_least_squares():
    tensor = random_tensor((6, 7, 8), 3, 10.0, seeded(4))
    assert rank_of(tensor) == 3
    assert min(als_mean_squared_error(tensor, 3, seed) for seed in range(3)) < TOL
    assert min(als_mean_squared_error(tensor, 2, seed) for seed in range(3)) > TOL


def test_tensors_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        rank_of(torch.tensor([[1.0, torch.nan]]))
