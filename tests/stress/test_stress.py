"""Short versions of `python -m tests.stress.kills` and `python -m tests.stress.fuzz`."""

import pytest

from tests.stress.fuzz import run_fuzz
from tests.stress.kills import run_kill_test


def test_killed_sweep_matches_uninterrupted_sweep(tmp_path):
    assert run_kill_test("many seeds", 1, 0, tmp_path) > 50


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(tmp_path):
    outcomes = run_fuzz(60, 1, tmp_path)
    assert outcomes["refused"] + outcomes["read"] == 60
    assert outcomes["refused"] > 20
