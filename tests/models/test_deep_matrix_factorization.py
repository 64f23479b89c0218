from functools import reduce
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.models.deep_matrix_factorization import (
    DeepMatrixFactorization,
    balanced_factors,
    factor_shapes,
    initial_factors,
)
from tests.conftest import make_generator


def draw_factors(
    shape=(3, 3), depth=3, init_type="normal", alpha=0.1, balanced=False, seed=0, dtype=torch.float64, sign=0, width=0
):
    shapes = factor_shapes(*shape, depth, width)
    return initial_factors(shapes, init_type, alpha, balanced, make_generator(seed), dtype, sign)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(shape=shapes, depth=st.integers(1, 5), width=st.integers(0, 12), seed=st.integers(0, 1000))
def test_gradients_match_autograd(shape, depth, width, seed):
    generator = make_generator(seed)
    widths = factor_shapes(*shape, depth, width)
    batches = [torch.randn(3, *each, generator=generator, dtype=torch.float64) for each in widths]
    output_gradient = torch.randn(3, *shape, generator=generator, dtype=torch.float64)

    leaves = [factor.clone().requires_grad_() for factor in batches]
    product = reduce(torch.matmul, leaves)
    expected = torch.autograd.grad(product, leaves, output_gradient)

    model = DeepMatrixFactorization(batches)
    torch.testing.assert_close(model.forward(), product.detach())
    model.backpropagate(output_gradient)
    for gradient, wanted in zip(model.factor_gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@given(shape=shapes, depth=st.integers(1, 5), width=st.integers(0, 12), seed=st.integers(0, 1000))
def test_balanced_factors(shape, depth, width, seed):
    product = torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64)
    factors = balanced_factors(product, depth, width or min(shape))
    assert [tuple(factor.shape) for factor in factors] == factor_shapes(*shape, depth, width)
    if depth > 1 and width:
        # The best approximation of this rank (Eckart & Young 1936).
        left, singular_values, right = torch.linalg.svd(product, full_matrices=False)
        product = left[:, :width] * singular_values[:width] @ right[:width]
    torch.testing.assert_close(torch.linalg.multi_dot([*factors, torch.eye(shape[1], dtype=torch.float64)]), product)
    for left, right in pairwise(factors):
        torch.testing.assert_close(left.T @ left, right @ right.T)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size, alpha, width", [(2, 8e-3, 0), (10, 1e-5, 0), (5, 1.0, 9), (10, 1e-5, 11)])
def test_determinant_sign_is_enforced(size, alpha, width, sign, balanced):
    for seed in range(5):
        factors = draw_factors((size, size), 3, "normal", alpha, balanced, seed, torch.float32, sign, width)
        # Scaled, because the determinant of the product underflows.
        product = torch.linalg.multi_dot([factor.double() / factor.abs().max() for factor in factors])
        assert torch.linalg.slogdet(product).sign == sign


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("init_type, alpha, sign", [("identity", 0.1, -1), ("normal", 0.0, 1), ("normal", 1e-60, 1)])
def test_unreachable_determinant_sign_raises(init_type, alpha, sign, width):
    with pytest.raises(ValueError):
        draw_factors((2, 2), 3, init_type, alpha, init_type == "identity", 0, torch.float32, sign, width)


def test_standard_deviations():
    """Of each factor's entries or, if balanced, of the product's."""
    left, right = draw_factors((200, 200), 2, alpha=0.3, balanced=True)
    for matrix in (*draw_factors((200, 200), 2, alpha=0.3), left @ right):
        assert abs(matrix.std() / 0.3 - 1) < 0.02


def test_identity_init():
    factors = [*draw_factors((2, 4), 3, "identity", 0.5), *draw_factors((2, 4), 3, "identity", 0.5, width=3)]
    assert [tuple(factor.shape) for factor in factors] == [(2, 2), (2, 2), (2, 4), (2, 3), (3, 3), (3, 4)]
    for factor in factors:
        assert torch.equal(factor, 0.5 * torch.eye(*factor.shape, dtype=torch.float64))


def test_init_does_not_depend_on_dtype():
    for single, double in zip(draw_factors(dtype=torch.float32), draw_factors(dtype=torch.float64), strict=True):
        assert torch.equal(single, double.float())
