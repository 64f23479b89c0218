import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.matrix_sensing import (
    all_entries_but,
    entry_sensing,
    gaussian_sensing,
    infinite_norm_target,
    load_matrix_sensing,
    random_entries,
    random_target,
    sense,
)


def make_generator(seed):
    return torch.Generator().manual_seed(seed)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), seed=st.integers(0, 100), data=st.data())
def test_observed_entries_are_recovered(rows, cols, seed, data):
    num_samples = data.draw(st.integers(1, rows * cols))
    entries = random_entries(num_samples, rows, cols, make_generator(seed))
    assert len(set(entries.tolist())) == num_samples
    problem = sense(entry_sensing(entries, rows, cols), torch.randn(rows, cols, generator=make_generator(seed)))
    assert torch.equal(problem.observed_entries, entries)
    assert torch.equal(problem.observations, problem.target_matrix.flatten()[entries])


@pytest.mark.parametrize(
    "matrices",
    [
        gaussian_sensing(3, 2, 2, 1.0, make_generator(0)),
        2 * entry_sensing(torch.tensor([0, 1]), 2, 2),
        -entry_sensing(torch.tensor([0, 1]), 2, 2),
        entry_sensing(torch.tensor([1, 1]), 2, 2),
        torch.zeros(1, 2, 2),
        torch.ones(1, 2, 2),
    ],
)
def test_observed_entries_is_none_for_general_sensing(matrices):
    assert sense(matrices, torch.ones(2, 2)).observed_entries is None


def test_all_entries_but():
    assert all_entries_but([(0, 1), (1, 0)], 2, 3).tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("symmetric", [False, True])
def test_random_target_rank_and_norm(symmetric):
    target = random_target(7, 7, 3, symmetric, make_generator(0))
    assert torch.linalg.matrix_rank(target) == 3
    assert target.norm().item() == pytest.approx(7, rel=1e-6)
    assert torch.equal(target, target.T) == symmetric


def test_infinite_norm_target():
    assert infinite_norm_target(2, 2).tolist() == [[0, 1], [1, 0]]
    assert infinite_norm_target(3, 4).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_stored_entries_are_the_same_problem(tmp_path):
    problem = sense(entry_sensing(torch.tensor([5, 0, 3]), 2, 3), torch.randn(2, 3))
    for name, store_entries in (("a.pt", False), ("b.pt", True)):
        torch.save(problem.state_dict(store_entries), tmp_path / name)
    read = [load_matrix_sensing(str(tmp_path / name)) for name in ("a.pt", "b.pt")]
    assert read[1].sensing_matrices is None
    for first, second in (read, [each.first(2) for each in read]):
        for field in ("observations", "target_matrix", "observed_entries"):
            assert torch.equal(getattr(first, field), getattr(second, field))


@pytest.mark.parametrize("entries", [[0, 0], [0, 6], [-1, 0], [[0, 1]], [0.0, 1.0], "01", [0]])
def test_wrong_entries_are_refused(entries, tmp_path):
    entries = torch.tensor(entries) if isinstance(entries, list) else entries
    content = {"observed_entries": entries, "y": torch.zeros(2), "target_matrix": torch.zeros(2, 3)}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"give a file made by dmf_data_generator\.py"):
        load_matrix_sensing(str(tmp_path / "x.pt"))
