import pytest
import torch

from common.datasets.tensor_completion import load_tensor_completion, random_tensor
from tests.conftest import ROOT


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


@pytest.mark.parametrize("cp_rank", [1, 3])
@pytest.mark.parametrize("order", [3, 4])
def test_shipped_datasets(order, cp_rank):
    path = ROOT / f"data/tc/tensor_rank_{cp_rank}_fro_1_order_{order}_dim_8.pt"
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"target_tensor", "target_cp_rank", "train_indices_order", "random_seed"}
    assert content["target_tensor"].shape == (8,) * order
    assert content["target_tensor"].norm().item() == pytest.approx(1, rel=1e-6)
    assert content["target_cp_rank"] == cp_rank
    dataset = load_tensor_completion(str(path)).first(100)
    assert dataset.observed_entries.tolist() == content["train_indices_order"][:100]
    flat, memorizer = dataset.target_tensor.flatten(), dataset.memorizer.flatten()
    assert memorizer.count_nonzero() == 100
    assert torch.equal(memorizer[dataset.observed_entries], flat[dataset.observed_entries])
