import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.matrix import effective_rank, frobenius_norm, nuclear_norm, rank, singular_values


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), seed=st.integers(0, 1000))
def test_norms_match_definitions(rows, cols, seed):
    matrices = torch.randn(4, 5, rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = singular_values(matrices)
    torch.testing.assert_close(frobenius_norm(values), matrices.square().sum((-1, -2)).sqrt())
    torch.testing.assert_close(nuclear_norm(values), torch.linalg.matrix_norm(matrices, "nuc"))
    assert (values.diff(dim=-1) <= 0).all()


@given(
    st.lists(st.floats(-1e150, 1e150) | st.sampled_from([0.0, 1.0, -1.0, 1e-300]), min_size=4, max_size=4),
)
def test_2x2_singular_values_match_svdvals(entries):
    matrix = torch.tensor(entries, dtype=torch.float64).view(2, 2)
    values, expected = singular_values(matrix), torch.linalg.svdvals(matrix)
    assert ((values - expected).abs() <= 1e-14 * expected[0]).all()
    assert values[0] >= values[1]


def test_singular_values_of_non_finite_matrix_are_nan():
    for size in (2, 3):
        matrices = torch.eye(size).repeat(3, 1, 1)
        matrices[0, 0, 0], matrices[1, 1, 0] = torch.inf, torch.nan
        assert singular_values(matrices).isnan().all(-1).tolist() == [True, True, False]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_effective_rank_of_identity(size):
    values = singular_values(3 * torch.eye(size, dtype=torch.float64))
    assert math.isclose(effective_rank(values), size)


def test_effective_rank_known_value():
    shares = (0.5, 0.25, 0.25)
    entropy = -sum(p * math.log(p) for p in shares)
    assert math.isclose(effective_rank(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64)), math.exp(entropy))


@given(scale=st.floats(1e-30, 1e30))
def test_effective_rank_is_scale_invariant(scale):
    values = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)
    assert math.isclose(effective_rank(values * scale), effective_rank(values), rel_tol=1e-12)


def test_effective_rank_and_rank_of_zero_matrix():
    values = singular_values(torch.zeros(2, 2))
    assert effective_rank(values) == 1
    assert rank(values, (2, 2), torch.float32) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_counts_singular_values_above_precision(dtype):
    eps = torch.finfo(dtype).eps
    values = torch.tensor([1.0, 6 * eps, 4 * eps], dtype=torch.float64)
    assert rank(values, (3, 5), dtype) == 2


@pytest.mark.parametrize("true_rank", [0, 1, 3, 4])
def test_rank_of_random_products(true_rank):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, true_rank, generator=generator, dtype=torch.float64) for n in (6, 4))
    assert rank(singular_values(left @ right.T), (6, 4), torch.float64) == true_rank


def test_non_finite_matrix_does_not_affect_rest_of_batch():
    matrices = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    matrices[1, 0, 1] = torch.nan
    values = singular_values(matrices)
    for metric in (
        frobenius_norm(values),
        nuclear_norm(values),
        effective_rank(values),
        rank(values, (2, 2), values.dtype),
    ):
        assert metric.isfinite().tolist() == [True, False, True]
