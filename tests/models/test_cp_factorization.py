import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.models.cp_factorization import CPFactorization, full_rank, initial_factors

LETTERS = "abcde"


def reference_tensor(factors):
    """Returns T[b, i, j, …] = Σ_r F_1[b, i, r] F_2[b, j, r] … for factors of shape (B, d_k, R)."""
    modes = LETTERS[: len(factors)]
    return torch.einsum(",".join(f"z{mode}r" for mode in modes) + f"->z{modes}", *factors)


def random_factors(dims, rank, seed, batch_size, dtype=torch.float64):
    generators = [torch.Generator().manual_seed(100 * seed + b) for b in range(batch_size)]
    drawn = [initial_factors(dims, rank, 0.5, generator, dtype) for generator in generators]
    return [torch.stack(each) for each in zip(*drawn, strict=True)]


@given(dims=st.lists(st.integers(1, 4), min_size=2, max_size=5), rank=st.integers(1, 5), seed=st.integers(0, 1000))
def test_forward_and_gradients_match_autograd(dims, rank, seed):
    factors = random_factors(dims, rank, seed, batch_size=3)
    leaves = [factor.clone().requires_grad_() for factor in factors]
    tensor = reference_tensor(leaves)
    output_gradient = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.autograd.grad(tensor, leaves, output_gradient)

    model = CPFactorization(factors)
    outputs = model.forward()
    torch.testing.assert_close(outputs.flatten(1), tensor.detach().flatten(1))
    model.backpropagate(output_gradient.reshape(outputs.shape))
    for gradient, wanted in zip(model.factor_gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dims", [(3, 7, 5), (8, 8, 8), (2, 3, 2, 2, 3)])
def test_results_do_not_depend_on_batch(dims):
    batch_size = 6
    factors = random_factors(dims, full_rank(dims), 1, batch_size, torch.float32)
    model = CPFactorization(factors)
    outputs = model.forward()
    output_gradients = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    model.backpropagate(output_gradients)
    for b in range(batch_size):
        alone = CPFactorization([factor[b : b + 1] for factor in factors])
        assert torch.equal(alone.forward()[0], outputs[b])
        alone.backpropagate(output_gradients[b : b + 1].clone())
        for gradient, wanted in zip(alone.factor_gradients, model.factor_gradients, strict=True):
            assert torch.equal(gradient[0], wanted[b])


@pytest.mark.parametrize(
    "dims, rank", [((8, 8, 8), 64), ((8, 8, 8, 8), 512), ((3, 7, 5), 15), ((4, 2), 2), ((1, 1), 1)]
)
def test_full_rank(dims, rank):
    assert full_rank(dims) == rank
