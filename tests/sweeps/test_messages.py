"""What sweeps say of runs that do not go well, and of places where they cannot be."""

import os

import pytest

from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, ROOT, TENSOR, folders_in, parse_parameters

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


def test_many_losses_that_do_not_fall_are_counted(tmp_path, capsys):
    flags = {**PRODUCT, "validate_every": 50, "output_dir": tmp_path}
    run_sweep(KINDS["dmf"][0], [parse_parameters(**flags, lr=0.05 + 0.0015 * k) for k in range(50)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert " (16 with a loss that did not fall in the second half of its epochs); their numbers" in last


def test_folder_whose_name_is_not_utf_8(run_script, tmp_path):
    directory = f"{tmp_path}/\udcff"
    flags = "-epochs", 100, "-file_log", "-store_checkpoints", "-save_results", "-output_dir", directory
    done = run_script("dmf_experiment_runner.py", "-dataset_path", KINDS["dmf"][2], *flags)
    assert (done.returncode, done.stderr) == (0, "")
    files = {path.suffix for each in folders_in(tmp_path) for path in each.rglob("*")}
    assert {".log", ".pt", ".json", ".csv"} <= files
    saved = "-experiments_dir", directory, "-save_plot_to", f"{directory}/a.png", "-save_data_to", f"{directory}/a.csv"
    assert run_script("dmf_results_plotter.py", *saved).returncode == 0


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a file system in which no folder can be made")
def test_folder_that_cannot_be_made(run_script):
    done = run_script("tc_experiment_runner.py", "-dataset_path", TENSOR, "-output_dir", "/proc/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("tc_experiment_runner.py: -output_dir /proc/nowhere: cannot ")
