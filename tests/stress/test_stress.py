"""Short versions of what is run longer by `python -m tests.stress.kills` and `python -m tests.stress.fuzz`."""

import pytest

from tests.stress.fuzz import MOST_MEMORY, fuzzed
from tests.stress.kills import compared


@pytest.mark.parametrize("name", ["dmf", "tc", "mixed"])
def test_sweeps_that_are_killed_end_as_if_nothing_had_happened(name, tmp_path):
    assert compared(name, 2, 0, tmp_path).total() == 2


@pytest.mark.filterwarnings("ignore")
def test_bad_files_are_refused(tmp_path):
    outcomes = fuzzed(250, 1, tmp_path)
    assert outcomes["refused"] + outcomes["read"] == 250
    assert outcomes["refused"] > 100
    assert outcomes["bytes at most"] < MOST_MEMORY
