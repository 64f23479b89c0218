import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.matrix_sensing import (
    as_matrix_sensing,
    completion_content,
    entry_sensing,
    gaussian_sensing,
    random_entries,
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
        entry_sensing(torch.tensor([1, 1]), 2, 2),
        torch.zeros(1, 2, 2),
        torch.ones(1, 2, 2),
    ],
)
def test_observed_entries_is_none_for_general_sensing(matrices):
    assert sense(matrices, torch.ones(2, 2)).observed_entries is None


def test_stored_entries_are_the_same_problem():
    entries, target = torch.tensor([5, 0, 3]), torch.randn(2, 3)
    contents = sense(entry_sensing(entries, 2, 3), target).state_dict(), completion_content(target, entries)
    made = [as_matrix_sensing(content) for content in contents]
    assert made[1].sensing_matrices is None
    for first, second in (made, [each.first(2) for each in made]):
        for field in ("observations", "target_matrix", "observed_entries"):
            assert torch.equal(getattr(first, field), getattr(second, field))
