import pytest
import torch

from common.datasets.tensor_completion import random_tensor


@pytest.mark.parametrize("cp_rank", [1, 2, 3])
@pytest.mark.parametrize("dims", [(5, 6), (4, 5, 6), (3, 4, 3, 4)])
def test_random_tensor_rank_and_norm(dims, cp_rank):
    tensor = random_tensor(dims, cp_rank, 2.5, torch.Generator().manual_seed(0)).double()
    assert tensor.norm().item() == pytest.approx(2.5, rel=1e-6)
    for mode in range(len(dims)):
        unfolding = tensor.movedim(mode, 0).flatten(1)
        assert torch.linalg.matrix_rank(unfolding, atol=1e-5) == min(cp_rank, dims[mode])


def test_random_tensor_without_rank_constraint():
    tensor = random_tensor((20, 20, 20), -1, 3.0, torch.Generator().manual_seed(0))
    assert tensor.norm().item() == pytest.approx(3.0, rel=1e-6)
    assert torch.linalg.matrix_rank(tensor.flatten(1)) == 20
