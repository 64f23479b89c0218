import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.models.cp_factorization import CPFactorization, full_rank, initial_factors
from tests.conftest import make_generator


@given(dims=st.lists(st.integers(1, 4), min_size=2, max_size=5), rank=st.integers(1, 5), seed=st.integers(0, 1000))
def test_forward_and_gradients_match_autograd(dims, rank, seed):
    drawn = [initial_factors(dims, rank, 0.5, make_generator(100 * seed + b), torch.float64) for b in range(3)]
    factors = [torch.stack(each) for each in zip(*drawn, strict=True)]
    leaves, modes = [factor.clone().requires_grad_() for factor in factors], "abcde"[: len(dims)]
    # T[b, i, j, …] = Σ_r F_1[b, i, r] F_2[b, j, r] …
    tensor = torch.einsum(",".join(f"z{mode}r" for mode in modes) + f"->z{modes}", *leaves)
    output_gradient = torch.randn(tensor.shape, generator=make_generator(seed), dtype=torch.float64)
    expected = torch.autograd.grad(tensor, leaves, output_gradient)

    model = CPFactorization(factors)
    outputs = model.forward()
    torch.testing.assert_close(outputs.flatten(1), tensor.detach().flatten(1))
    model.backpropagate(output_gradient.reshape(outputs.shape))
    for gradient, wanted in zip(model.factor_gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dims, rank", [((8, 8, 8), 64), ((8, 8, 8, 8), 512), ((3, 7, 5), 15), ((4, 2), 2)])
def test_full_rank(dims, rank):
    assert full_rank(dims) == rank
