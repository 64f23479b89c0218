"""Tests of the datasets that the generator makes; tests/test_pages.py compares the shipped ones."""

import re

import pytest
import torch

from tests.test_scripts import assert_success, single_item


def test_dataset_generator(run_main, tmp_path):
    def generate(*flags):
        before = set(tmp_path.glob("data/dmf/*"))
        assert_success(run_main("dmf_data_generator.py", "-random_seed", 5, *flags))
        path = single_item(set(tmp_path.glob("data/dmf/*")) - before)
        return path.name, torch.load(path, weights_only=True)

    name, content = generate()
    assert re.fullmatch(r"sensing_rank_5_50x50_\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d\.pt", name)
    assert content["A"].shape == (2500, 50, 50)
    assert content["random_seed"] == 5
    target = content["target_matrix"]
    assert torch.linalg.matrix_rank(target) == 5
    assert target.norm().item() == pytest.approx(50, rel=1e-5)
    torch.testing.assert_close(content["y"], torch.einsum("nij,ij->n", content["A"], target), atol=1e-3, rtol=1e-4)
    assert content["A"].std().item() == pytest.approx(1, abs=1e-2)

    shape = ["-num_rows", 6, "-num_cols", 4, "-rank", 2]
    name, content = generate(*shape, "-task_type", "completion", "-num_samples", 20, "-custom_file_name", "mine")
    assert re.fullmatch(r"mine_.*\.pt", name)
    observed = content["A"].nonzero()
    assert len({(row, col) for _, row, col in observed.tolist()}) == 20
    assert torch.equal(content["y"], content["target_matrix"][observed[:, 1], observed[:, 2]])

    name, content = generate("-num_rows", 4, "-num_cols", 4, "-rank", 2, "-use_symmetric_target", "-num_samples", 7)
    assert name.startswith("sensing_rank_2_4x4_sym_")
    torch.testing.assert_close(content["target_matrix"], content["target_matrix"].T)

    entries = ["-num_rows", 2, "-num_cols", 2, "-target_entries", 1, "-2e-1", 0, 1, "-use_custom_sensing_matrices"]
    _, content = generate(*entries, "-unobserved_entry", 0, 1, "-file_name", "x.pt")
    assert content["y"].tolist() == [1, 0, 1]
    assert content["A"].flatten(1).argmax(1).tolist() == [0, 2, 3]
    torch.testing.assert_close(content["target_matrix"], torch.tensor([[1.0, -0.2], [0.0, 1.0]]))

    size = ["-num_rows", 3, "-num_cols", 3]
    _, content = generate(*size, "-use_custom_target", "-use_custom_sensing_matrices", "-file_name", "three.pt")
    assert content["target_matrix"].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert content["y"].tolist() == [1, 0, 1, 0, 0, 0, 0, 1]
