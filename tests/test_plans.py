"""Runs the plans of the paper's figures with few epochs, and the plot commands that they print, and those of
example_plots/README.md. tests/test_pages.py runs the other plans there.
"""

import csv
import json
import re
import shlex

import pytest

from tests.conftest import ROOT
from tests.pages import commands
from tests.test_scripts import PNG, assert_success


def plans(script):
    namespace = {"__name__": "script"}
    exec((ROOT / script).read_text(), namespace)
    return namespace["PLANS"]


DMF, TC = "dmf_multiple_experiments_runner.py", "tc_multiple_experiments_runner.py"
FIGURES = {
    DMF: [f"figure_1_depth_{depth}" for depth in (2, 3, 4)]
    + ["perturbed", "repositioned", "larger_matrices", "many_seeds", "float64"],
    TC: ["rank_1_order_3", "rank_1_order_4", "rank_3_order_3", "rank_3_order_4"],
}


@pytest.fixture(autouse=True)
def data(tmp_path, no_plots_of_runs):
    """Makes the datasets available in the working folder of the scripts."""
    (tmp_path / "data").symlink_to(ROOT / "data")


def run_plot_commands(output, name, run_main, tmp_path):
    """Runs the plot commands on the page, and the printed one; returns the latter's output and CSV rows."""
    (printed,) = [line.strip() for line in output.splitlines() if line.startswith("  python ")]
    on_page = [each for each in commands(ROOT / "example_plots/README.md") if re.search(rf"outputs/\w+/{name} ", each)]
    for command in [*on_page, printed]:
        _, script, *flags = shlex.split(command)
        result = run_main((tmp_path / script).resolve().name, *flags, "-save_data_to", "data.csv")
        assert_success(result)
        assert (tmp_path / flags[flags.index("-save_plot_to") + 1]).read_bytes().startswith(PNG)
    with open(tmp_path / "data.csv", newline="") as file:
        return result.stdout, list(csv.DictReader(file))


def recorded(folder, name):
    return [json.loads(path.read_text())[name] for path in folder.glob("*/run_params.json")]


def test_matrix_factorization_plans(run_main, tmp_path):
    small = ["-epochs", 3000, "-repetitions", 2, "-random_seed", 1000]
    plotted = {}
    for name in FIGURES[DMF]:
        plan, result = plans(DMF)[name], assert_success(run_main(DMF, "-plan", name, *small))
        plotted[name] = run_plot_commands(result.stdout, name, run_main, tmp_path)
        assert f"plan {name}: {plan.about}\n{2 * len(plan.experiments)} experiments\n" in result.stdout
        seeds = recorded(tmp_path / "outputs/dmf" / name, "random_seed")
        expected = [each["random_seed"] + 1000 + repetition for each in plan.experiments for repetition in (0, 1)]
        assert sorted(seeds) == sorted(expected)
        output, rows = plotted[name]
        assert output.startswith(f"{len(seeds)} experiments, 0 skipped\n")
        assert {row["runs_in_all"] for row in rows} == {"2"}
        assert {row["runs"] for row in rows} <= {"1", "2"}
        assert len({(row["panel"], row["name"]) for row in rows}) == len(plan.experiments)
    assert recorded(tmp_path / "outputs/dmf/repositioned", "unobserved_entry")[0] == [0, 1]
    names = {name: list(dict.fromkeys(row["name"] for row in rows)) for name, (_, rows) in plotted.items()}
    figure_1 = ["lr 6e-3 init 1e-5", "lr 3e-3 init 1e-6", "lr 6e-3 init 1e-5 (b)", "lr 3e-3 init 1e-6 (b)"]
    assert names["figure_1_depth_2"] == names["figure_1_depth_3"] == figure_1
    assert names["figure_1_depth_4"][::3] == ["lr 3e-3 init 1e-3", "lr 1.5e-3 init 1e-4 (b)"]
    assert names["perturbed"] == ["z = 0", "z = 0.01", "z = 0.05", "z = 0.1", "z = 0.5"]
    assert names["larger_matrices"] == ["3x3", "5x5", "10x10"]
    assert names["float64"] == ["float32", "float64"]
    assert {row["panel"] for row in plotted["many_seeds"][1]} == {"depth 2", "depth 3", "depth 4"}


@pytest.mark.parametrize("name", FIGURES[TC])
def test_tensor_completion_plans(name, run_main, tmp_path):
    small = ["-epochs", 200, "-repetitions", 1, "-random_seed", 7, "-tensor_rank_tol", "1e-3"]
    result = assert_success(run_main(TC, "-plan", name, *small))
    plan = plans(TC)[name]
    output, rows = run_plot_commands(result.stdout, name, run_main, tmp_path)
    assert output.startswith(f"{len(plan.experiments)} finished experiments, 0 folders skipped\n")
    samples = {str(each["num_samples"]) for each in plan.experiments}
    assert {row["num_samples"] for row in rows} == samples
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["linear", "tf, init 1e-2", "tf, init 1e-3"]
    assert set(recorded(tmp_path / "outputs/tc" / name, "random_seed")) == {7}
    rank, order = re.fullmatch(r"rank_(\d)_order_(\d)", name).groups()
    dataset = f"data/tc/tensor_rank_{rank}_fro_1_order_{order}_dim_8.pt"
    assert set(recorded(tmp_path / "outputs/tc" / name, "dataset_path")) == {dataset}
