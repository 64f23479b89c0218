import math
from functools import reduce
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.matrix import (
    balancedness,
    component_norms,
    effective_rank,
    frobenius_norm,
    nuclear_norm,
    rank,
    reconstruction_error,
    schatten_quasi_norm,
    singular_values,
)
from tests.conftest import make_experiment, make_generator, train


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), seed=st.integers(0, 1000))
def test_norms_match_definitions(rows, cols, seed):
    matrices = gaussian(4, 5, rows, cols, seed=seed)
    values = singular_values(matrices)
    torch.testing.assert_close(frobenius_norm(values), matrices.square().sum((-1, -2)).sqrt())
    torch.testing.assert_close(nuclear_norm(values), torch.linalg.matrix_norm(matrices, "nuc"))
    assert (values.diff(dim=-1) <= 0).all()


@given(st.lists(st.floats(-1e150, 1e150) | st.sampled_from([0.0, 1.0, -1.0, 1e-300]), min_size=4, max_size=4))
def test_2x2_singular_values_match_svdvals(entries):
    matrix = torch.tensor(entries, dtype=torch.float64).view(2, 2)
    values, expected = singular_values(matrix), torch.linalg.svdvals(matrix)
    assert ((values - expected).abs() <= 1e-14 * expected[0]).all()
    assert values[0] >= values[1]


def test_effective_rank_and_rank_of_known_matrices():
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.25))
    assert math.isclose(effective_rank(torch.tensor([2.0, 1.0, 1.0, 0.0]).double()), math.exp(entropy))
    values = singular_values(torch.zeros(2, 2))
    assert effective_rank(values) == 1
    assert rank(values, (2, 2), torch.float32) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_counts_singular_values_above_precision(dtype):
    eps = torch.finfo(dtype).eps
    values = torch.tensor([1.0, 6 * eps, 4 * eps], dtype=torch.float64)
    assert rank(values, (3, 5), dtype) == 2


@pytest.mark.parametrize("size", [2, 3])
def test_non_finite_matrix_does_not_affect_rest_of_batch(size):
    matrices = 3 * torch.eye(size, dtype=torch.float64).repeat(4, 1, 1)
    matrices[1, 0, 1], matrices[2, 0, 0] = torch.nan, torch.inf
    values = singular_values(matrices)
    assert values.isnan().all(-1).tolist() == [False, True, True, False]
    for metric in (frobenius_norm(values), nuclear_norm(values), rank(values, (size, size), values.dtype)):
        assert metric.isfinite().tolist() == [True, False, False, True]
    torch.testing.assert_close(effective_rank(values)[[0, 3]], torch.full((2,), size, dtype=torch.float64))


def test_schatten_quasi_norm():
    values = singular_values(gaussian(5, 3, 4))
    torch.testing.assert_close(schatten_quasi_norm(values, 1), nuclear_norm(values))
    torch.testing.assert_close(schatten_quasi_norm(values, 2), frobenius_norm(values))
    expected = [sum(math.sqrt(value) for value in row) ** 2 for row in values.tolist()]
    assert schatten_quasi_norm(values, 0.5).tolist() == pytest.approx(expected)
    assert schatten_quasi_norm(torch.zeros(2), 0.5) == 0


@pytest.mark.parametrize("shape", [(6,), (3, 2), (2, 3, 4)])
def test_reconstruction_error(shape):
    tensors, target = gaussian(5, *shape), gaussian(*shape, seed=1)
    tensors[0] = torch.nan
    expected = [((tensor - target).norm() / target.norm()).item() for tensor in tensors]
    assert reconstruction_error(tensors, target).tolist() == pytest.approx(expected, nan_ok=True)


def test_reconstruction_error_does_not_depend_on_batch():
    tensors, target = gaussian(3, 200, 200), gaussian(200, 200, seed=1)
    assert torch.equal(reconstruction_error(tensors, target)[:1], reconstruction_error(tensors[:1], target))


def test_balancedness():
    factors = [gaussian(4, 3), gaussian(3, 3, seed=1), gaussian(3, 5, seed=2)]
    first, second = ((left.T @ left - right @ right.T).norm() for left, right in pairwise(factors))
    assert balancedness(factors) == pytest.approx(max(first, second).item())
    assert balancedness(factors[:2]) == pytest.approx(first.item())
    assert balancedness(factors[:1]) == 0
    assert balancedness([*factors, torch.full((5, 5), torch.nan).double()]).isnan()


def test_balancedness_is_constant_under_gradient_flow():
    """In the same time, half the learning rate changes it half as much: the change is of first order."""

    def change(lr):
        given = {"dtype": "float64", "init_alpha": 0.5, "validate_every": 50, "track_balancedness": True}
        experiment = make_experiment(depth=3, lr=lr, epochs=round(5 / lr), stop_on_zero_loss_tol=0, **given)
        start = balancedness(experiment.factors).item()
        train([experiment], native=True)
        changes = experiment.history.validation["balancedness"].values - start
        assert abs(changes).max() < 0.01 * start
        return changes[-1]

    assert change(2e-3) / change(1e-3) == pytest.approx(2, rel=0.02)


@given(rank=st.integers(1, 7), order=st.integers(2, 4), seed=st.integers(0, 1000))
def test_component_norms_match_definition(rank, order, seed):
    factors = [gaussian(dim, rank, seed=seed + dim) for dim in range(2, 2 + order)]
    norms = [reduce(torch.kron, (factor[:, r] for factor in factors)).norm().item() for r in range(rank)]
    assert component_norms(factors).tolist() == pytest.approx(sorted(norms, reverse=True))
