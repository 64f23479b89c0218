"""Short versions of `python -m tests.stress.kills` and `python -m tests.stress.fuzz`."""

import pytest

from tests.stress.fuzz import MAX_MEMORY, run_fuzz
from tests.stress.kills import run_kill_test


@pytest.mark.parametrize("name", ["dmf", "tc", "mixed"])
def test_killed_sweep_matches_uninterrupted_sweep(name, tmp_path):
    assert run_kill_test(name, 1, 0, tmp_path).total() == 1


@pytest.mark.filterwarnings("ignore")
def test_corrupted_files_are_read_or_refused(tmp_path):
    outcomes = run_fuzz(150, 1, tmp_path)
    assert outcomes["refused"] + outcomes["read"] == 150
    assert outcomes["refused"] > 60
    assert outcomes["peak_memory_bytes"] < MAX_MEMORY
