"""What sweeps say of runs that do not go well."""

import re

import pytest

from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, ROOT, parse_parameters

# A product of two equal numbers with target 10: from learning rate 0.1 on, gradient descent oscillates.
PRODUCT = {"dataset_path": ROOT / "data/dmf/completion_1x1_w_10.pt", "num_samples": 1, "depth": 2, "epochs": 3000}
PRODUCT |= {"weight_init_type": "identity", "init_alpha": 1.0, "dtype": "float64", "stop_on_zero_loss_tol": 0}
STILL = "all epochs done, but the loss did not fall in the second half; unless it has converged, give another -lr"


@pytest.mark.parametrize("validate_every", [1, 50, 700, 3000])
def test_loss_that_does_not_fall(tmp_path, capsys, validate_every):
    flags = {**PRODUCT, "validate_every": validate_every, "output_dir": tmp_path, "file_log": True}
    rates = {"slow": 1e-5, "oscillating": 0.11}
    experiments = [parse_parameters(**flags, lr=lr, experiment_name=name) for name, lr in rates.items()]
    run_sweep(KINDS["dmf"][0], experiments)
    _, oscillating, slow = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "slow" in line)[-3:]
    assert "all epochs done, epoch 2,999: " in slow
    # With one validation, there is no loss to compare with.
    assert (STILL in oscillating) == (validate_every < 3000)


@pytest.mark.parametrize("tol", [0, 1e-25])
def test_many_experiments_are_counted(tmp_path, capsys, tol):
    flags, rates = {**PRODUCT, "validate_every": 50, "output_dir": tmp_path}, [0.05 + 0.0015 * k for k in range(50)]
    flags["stop_on_zero_loss_tol"] = tol
    run_sweep(KINDS["dmf"][0], [parse_parameters(**flags, lr=lr) for lr in (*rates, 1e5)])
    first, *shown, last = capsys.readouterr().out.splitlines()
    assert first == "51 experiments"
    # Of those that used all of their epochs or stalled below the tolerance, none is shown.
    assert len(shown) > 1 if tol == 0 else len(shown) == 1
    assert all(re.match(r"\d+/51 \S+: (diverged|stalled)", line) for line in shown)
    assert sum(": diverged, epoch" in line for line in shown) == 1
    still = "; 16 with a loss that did not fall in the second half of the epochs"
    counts = r"1 diverged, \d+ with all epochs done, \d+ stalled(, \d+ with zero loss)?"
    assert re.match(rf"51 experiments: {counts}{still}; their numbers are in ", last)
    assert last.endswith(f" {tmp_path}/results.csv")
