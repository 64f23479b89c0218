"""Runs the plotters on folders of finished, unfinished and other experiments."""

import csv
import os
import subprocess
import sys
from functools import partial

import pytest

from tests.conftest import MATRIX, ROOT
from tests.plotting.folders import make_matrix_run, make_tensor_run
from tests.test_scripts import PNG, assert_success

DMF, TC = "dmf_results_plotter.py", "tc_results_plotter.py"
OF_MATRICES = "a matrix factorization experiment; dmf_results_plotter.py draws it"
OF_TENSORS = "a tensor completion experiment; tc_results_plotter.py draws it"
NO_OBSERVATIONS = "needs the observations of dmf/plan/run_0, but no run_params.json names them; leave it out"
TENSOR = {"num_samples": 50, "init_std": 1e-3}


@pytest.fixture
def plot(run_main):
    """Returns a function that runs a plotter on a folder, and saves x.png and x.csv."""

    def plot(script, directory, *flags):
        files = ["-save_plot_to", "x.png", "-save_data_to", "x.csv"]
        return run_main(script, "-experiments_dir", directory, *files, *flags)

    return plot


def rows_of(folder):
    with open(folder / "x.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path):
    """Makes two experiments in `dmf/plan`, and two in `tc/plan`."""
    for number, lr in enumerate((1e-3, 2e-3)):
        make_matrix_run(tmp_path / f"dmf/plan/run_{number}", lr=lr)
        make_tensor_run(tmp_path / "tc/plan", f"run_{number}", {**TENSOR, "num_samples": 50 + number})
    return tmp_path


def assert_refused(result, script, message):
    assert (result.returncode, result.stderr) == (2, f"{script}: {message}\n")


def test_experiments_of_the_other_kind_are_refused(plot, folders):
    make_tensor_run(folders, "tc/plan/original_samples_60_init_1e-3")
    (folders / "tc/plan/unfinished").mkdir()
    (folders / "tc/plan/unfinished/run_params.json").write_text('{"num_samples": 5, "init_std": 0.1}')
    empty = "holds no experiment that can be drawn"
    assert_refused(plot(DMF, "tc/plan"), DMF, f"-experiments_dir tc/plan: {empty}; 4 folders: {OF_TENSORS}")
    assert_refused(plot(TC, "dmf/plan"), TC, f"-experiments_dir dmf/plan: {empty}; 2 folders: {OF_MATRICES}")
    assert_refused(plot(DMF, "tc/plan/run_0"), DMF, f"-experiments_dir tc/plan/run_0: {OF_TENSORS}")
    assert_refused(plot(TC, "dmf/plan/run_0"), TC, f"-experiments_dir dmf/plan/run_0: {OF_MATRICES}")
    make_matrix_run(folders / "dmf/run", status={"finished": False})
    assert_refused(plot(DMF, "dmf/run"), DMF, "-experiments_dir dmf/run: not finished; -resume continues it")


def test_folder_of_folders_of_experiments(plot, folders):
    make_matrix_run(folders / "dmf/another/run")
    for kind, script, names, count in (("dmf", DMF, "another, plan", "2 folders"), ("tc", TC, "plan", "1 folder")):
        expected = f"holds no experiments, but folders of experiments; give one of them: {names}"
        assert_refused(plot(script, kind), script, f"-experiments_dir {kind}: {expected}")
        # Beside experiments, they are skipped.
        (folders / kind / "plan/run_0").rename(folders / kind / "run_0")
        lines = assert_success(plot(script, kind)).stdout.splitlines()
        assert lines[1] == f"  {count}: a folder of experiments; give it to -experiments_dir"


def test_folder_of_one_experiment(plot, folders):
    assert assert_success(plot(DMF, "dmf/plan/run_0/")).stdout.startswith("1 experiment, 0 skipped\n")
    assert assert_success(plot(TC, "tc/plan/run_0")).stdout.startswith("1 finished experiment, 0 folders skipped\n")


def test_skipped_folders_are_counted_by_reason(plot, folders):
    for number in range(2):
        make_matrix_run(folders / f"dmf/plan/unfinished_{number}", status={"finished": False})
        make_matrix_run(folders / f"dmf/plan/damaged_{number}")
        checkpoint = folders / f"dmf/plan/damaged_{number}/checkpoints/2020_epoch_9.pt"
        checkpoint.write_text("x")
        checkpoint.rename(checkpoint.with_name(f"202{number}_epoch_9.pt"))
        make_tensor_run(folders / "tc/plan", f"diverged_{number}", {**TENSOR, "status": {"stop_reason": "diverged"}})
    (folders / "dmf/plan/foreign").mkdir()
    lines = assert_success(plot(DMF, "dmf/plan")).stdout.splitlines()
    assert lines[0] == "2 experiments, 5 skipped"
    assert lines[1].startswith("  2 folders: is not a torch.save file, is damaged, or holds more than plain data")
    assert lines[2:4] == [
        "  2 folders: not finished; -resume continues it",
        "  1 folder: no matrix factorization experiment",
    ]
    listed = assert_success(plot(DMF, "dmf/plan", "-list_skipped")).stdout.splitlines()
    assert listed[0] == lines[0]
    assert listed[1].startswith("  damaged_0: 2020_epoch_9.pt: is not a torch.save file")
    assert listed[4:6] == [f"  unfinished_{number}: not finished; -resume continues it" for number in range(2)]

    make_tensor_run(folders / "tc/plan", "rank", {**TENSOR, "num_samples": 60}, ranks=(-1, 9, 1))
    lines = assert_success(plot(TC, "tc/plan")).stdout.splitlines()
    left_out = "the rank of the model was not found; left out of the ranks"
    assert lines[:2] == ["3 finished experiments, 2 folders skipped", "  2 folders: diverged"]
    assert lines[2] == f"  1 folder: {left_out}"
    listed = assert_success(plot(TC, "tc/plan", "-list_skipped")).stdout.splitlines()
    assert listed[1:4] == ["  diverged_0: diverged", "  diverged_1: diverged", f"  rank: {left_out}"]


def test_names_are_printed_in_the_order_of_the_legend(plot, folders):
    series = dict.fromkeys(("sse_loss_div_2", "e2e_0_0_value"), ([9, 19], [1.0, 0.1]))
    for number, (depth, lr) in enumerate([(2, 3e-3), (2, 3e-3), (4, 1e-2)]):
        make_matrix_run(folders / f"dmf/names/run_{number}", series, depth=depth, lr=lr)

    def names(*flags):
        result = assert_success(plot(DMF, "dmf/names", *flags))
        return result.stdout.splitlines()[1:-2], list(dict.fromkeys(row["name"] for row in rows_of(folders)))

    printed, legend = names()
    assert printed == []
    assert legend == ["lr 3e-3 factor init 1e-1", "lr 1e-2 factor init 1e-1"]
    printed, renamed = names("-experiments_names", "two", "four")
    assert printed == [f"two: depth 2, {legend[0]} (2 runs)", f"four: depth 4, {legend[1]} (1 run)"]
    assert renamed == ["two", "four"]
    result = plot(DMF, "dmf/plan", "-experiments_names", "a")
    own = "lr 1e-3 factor init 1e-1; lr 2e-3 factor init 1e-1"
    message = f"-experiments_names a: there are 2 lines; give as many names, in the order of {own}"
    assert_refused(result, DMF, message)


def test_backend_of_a_notebook_and_missing_latex(folders):
    """A figure is saved without them. It cannot be shown."""
    (folders / "matplotlibrc").write_text("text.usetex: true\n")
    command = [sys.executable, str(ROOT / TC), "-experiments_dir", "tc/plan"]
    environment = {**os.environ, "PATH": "", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    run = partial(subprocess.run, cwd=folders, env=environment, capture_output=True)
    assert run([*command, "-save_plot_to", "x.png"]).stderr == b""
    result = run(command)
    assert (result.returncode, b"-save_plot_to: is needed" in result.stderr) == (2, True)


def test_figure_is_saved_if_standard_output_is_closed(folders):
    """As in `python tc_results_plotter.py … | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / TC), "-experiments_dir", "tc/plan", "-save_plot_to", "x.png"]
    result = subprocess.run(command, cwd=folders, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (folders / "x.png").read_bytes().startswith(PNG)


def test_flags_that_name_what_was_not_recorded(plot, folders):
    def refused(script, directory, flags, message):
        assert_refused(plot(script, directory, *flags.split()), script, message)

    metric = "nope was not recorded; give one of sse_loss_div_2, e2e_0_0_value"
    refused(DMF, "dmf/plan", "-map lr depth -metric nope", f"-metric nope: {metric}")
    refused(DMF, "dmf/plan", "-x epoch -y nope", f"-y nope: 2020_epoch_9.pt: {metric}")
    differing = "is not recorded of all runs; the parameters in which they differ are: lr"
    refused(DMF, "dmf/plan", "-map lr nope", f"-map lr nope: nope {differing}")
    refused(DMF, "dmf/plan", "-map lr depth -metric ratio_to_bound", f"-metric ratio_to_bound: {NO_OBSERVATIONS}")
    entry = "only e2e_0_0_value was recorded; plot another metric with -y, or give such an entry or a run with "
    entry += "-tracked_e2e_value_of 2 2"
    refused(DMF, "dmf/plan", "-unobserved_entry 2 2", f"-unobserved_entry 2 2: 2020_epoch_9.pt: {entry}")


def test_share_on_the_curve(plot, folders):
    metrics = {"sse_loss_div_2": ([9, 19], [1.0, 0.04]), "e2e_0_0_value": ([9, 19], [0.1, 0.2])}
    for seed in range(2):
        path = folders / f"dmf/shares/run_{seed}"
        make_matrix_run(path, metrics, dataset_path=str(MATRIX), num_samples=3, random_seed=seed)
    (folders / "dmf/shares/run_1/checkpoints/2020_epoch_9.pt").unlink()
    flags = ["-y", "on_the_curve"]
    result = assert_success(plot(DMF, "dmf/shares", *flags))
    reason = "has no checkpoint; run it with -store_checkpoints"
    assert result.stdout.splitlines()[:2] == ["1 experiment, 1 skipped", f"  1 folder: {reason}"]
    assert list(rows_of(folders)[0]) == ["panel", "name", "loss", "share", "runs"]
    assert {row["share"] for row in rows_of(folders)} == {"0.0"}
    result = plot(DMF, "dmf/shares", *flags, "-statistic", "mean")
    assert_refused(result, DMF, "-statistic mean: has no effect with -y on_the_curve; leave it out")
    result = plot(DMF, "dmf/plan", *flags)
    assert_refused(result, DMF, f"-y on_the_curve: 2020_epoch_9.pt: {NO_OBSERVATIONS}")


def test_figures_against_epochs_and_with_means(plot, folders):
    def column_names(*flags):
        assert_success(plot(*flags))
        assert (folders / "x.png").read_bytes().startswith(PNG)
        return list(rows_of(folders)[0])

    names = ["panel", "name", "epoch", "lower_quartile", "median", "upper_quartile", "runs", "runs_in_all"]
    assert column_names(DMF, "dmf/plan", "-x", "epoch") == names
    means = column_names(DMF, "dmf/plan", "-x", "epoch", "-y", "sse_loss_*", "e2e_*", "-statistic", "mean")
    assert means == [*names[:3], "lower_95", "mean", "upper_95", *names[6:]]
    columns = ["error_lower_95", "error_mean", "error_upper_95", "rank_lower_95", "rank_mean", "rank_upper_95"]
    assert column_names(TC, "tc/plan", "-statistic", "mean") == ["method", "num_samples", *columns, "repetitions"]
    path = "dmf/plan/run_0/checkpoints/2020_epoch_9.pt"
    flags = ["-experiments_checkpoint_paths", path, "-experiments_names", "a", "-x", "epoch"]
    assert column_names(DMF, "", *flags) == names
