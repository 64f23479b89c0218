import csv
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from common.plotting.histories import NotRecorded, measure_matrix, measure_tensor
from common.plotting.maps import draw_map
from common.recorded_runs import RecordedRun, read_run
from tests.conftest import MATRIX
from tests.plotting.folders import METRICS, make_matrix_run, make_run, make_tensor_run


def map_run(value, finished=True, **parameters):
    """Returns a run and its value."""
    return RecordedRun(Path("a"), parameters, {"identity": {"run": parameters}}, {"finished": finished}), value


FLAGS = {"metric": "", "statistic": "median", "above": None, "below": None, "plot_title": "", "map_counts": False}


def draw(runs, names, **flags):
    return draw_map(runs, {**FLAGS, "map": names, **flags})


def values_of(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


COUNTS = "value", "runs", "finished", "valid"


def texts_of(figure):
    """Returns the label of the colours, and the caption."""
    return figure.axes[-1].get_ylabel().replace("\n", " "), figure.get_supxlabel().replace("\n", " ")


def test_medians_and_counts_of_cells():
    runs = [map_run(value, lr=0.1, depth=2) for value in (1.0, 2.0, 6.0)]
    runs += [map_run(None, lr=0.1, depth=2), map_run(None, finished=False, lr=0.1, depth=2)]
    runs += [map_run(None, lr=0.2, depth=2), map_run(None, finished=False, lr=0.1, depth=3)]
    figure, rows = draw(runs, ("lr", "depth"), metric="mse_loss", map_counts=True)
    assert values_of(rows, "lr", "depth") == [(0.1, 2), (0.2, 2), (0.1, 3), (0.2, 3)]
    assert values_of(rows, *COUNTS) == [(2, 5, 4, 3), (None, 1, 1, 0), (None, 1, 0, 0), (None, 0, 0, 0)]
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["4/5", "1", "0/1", ""]
    assert axes.collections[-1].get_array().tolist() == [[2, None], [None, None]]
    expected = "medians of 1 to 4 runs; 2 diverged: left out; without 2 that are not finished; numbers: runs, finished "
    expected += "/ all; grey: all runs diverged; white: no finished run"
    assert texts_of(figure) == ("median mse loss", expected)
    _, rows = draw(runs, ("lr", "depth"), statistic="mean")
    assert rows[0]["value"] == 3


@pytest.mark.parametrize("kind, value, share", [("above", 1.5, 2 / 4), ("below", 1.5, 1 / 4), ("above", 6.0, 0)])
def test_share_counts_diverged_runs_as_not_reaching(kind, value, share):
    runs = [map_run(value, lr=0.1, depth=2) for value in (1.0, 2.0, 6.0)]
    runs += [map_run(None, lr=0.1, depth=2), map_run(None, finished=False, lr=0.1, depth=2)]
    figure, rows = draw(runs, ("lr", "depth"), at_loss=1e-2, **{kind: value})
    assert values_of(rows, *COUNTS) == [(share, 5, 4, 3)]
    label, caption = texts_of(figure)
    assert label == f"share of runs with |unobserved entry| {'>' if kind == 'above' else '<'} {value:g} at loss 1e-2"
    assert f"1 diverged or did not reach the loss: counted as not {kind}" in caption
    figure, _ = draw(runs, ("lr", "depth"), metric="ratio_to_bound", above=1.0, at_loss=1e-4)
    assert texts_of(figure)[0] == "share of runs on the curve at loss 1e-4"


def test_values_on_the_axes():
    def ticks(name, values):
        figure, rows = draw([map_run(1.0, **{name: value, "depth": 2}) for value in values], (name, "depth"))
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["2"]
        return [row[name] for row in rows], [text.get_text() for text in figure.axes[0].get_xticklabels()]

    assert ticks("lr", [0.1, 1e-3, 1e-2]) == ([1e-3, 1e-2, 0.1], ["1e-3", "1e-2", "1e-1"])
    assert ticks("num_samples", [511, 50, 100]) == ([50, 100, 511], ["50", "100", "511"])
    values = ["float32", "float64", None]
    assert ticks("dtype", ["float64", "float32", "float64", None]) == (values, ["float32", "float64", "null"])
    assert ticks("nesterov", [True, False]) == ([False, True], ["false", "true"])


def test_runs_that_differ_in_other_parameters_are_in_other_panels():
    """Parameters that the cell determines, such as an initialization for each depth, make no panels."""
    combinations = product((1, 2), (2, 3), ("native", "torch"))
    runs = [map_run(1.0, lr=lr, depth=k, init_alpha=k / 10, engine=engine) for lr, k, engine in combinations]
    figure, rows = draw(runs, ("lr", "depth"))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["engine native", "engine torch"]
    assert [row["panel"] for row in rows] == ["engine native"] * 4 + ["engine torch"] * 4
    assert all(row["runs"] == 1 for row in rows)
    runs = [map_run(1.0, lr=1, depth=2, epochs=number) for number in range(13)]
    with pytest.raises(ValueError, match="the runs differ in epochs as well, which takes 13 maps"):
        draw(runs, ("lr", "depth"))


def test_colours_of_several_magnitudes_are_logarithmic():
    for values, log in ([(1e-6, 1.0), True], [(0.5, 1.0), False], [(-1.0, 100.0), False]):
        runs = [map_run(value, lr=lr, depth=2) for value, lr in zip(values, (1, 2), strict=True)]
        figure, _ = draw(runs, ("lr", "depth"))
        assert isinstance(figure.axes[0].collections[-1].norm, LogNorm) == log


@pytest.mark.parametrize(
    "axis, facts, formula", [("target_tensor_cp_rank", {}, "r(d₁"), ("mode_dim_size", {"order": 4}, "r(Σd")]
)
def test_free_parameters_of_tensors(axis, facts, formula):
    """r (3 d − 2) of order 3, r (4 d − 3) of order 4. The line goes through the middle of the cells that it meets."""
    facts = {"random_target": True, "order": 3, "mode_dim_size": 8, "target_tensor_cp_rank": 2, **facts}
    sizes = {2: 44, 5: 110} if axis == "target_tensor_cp_rank" else {4: 26, 8: 58}
    cells = product((1, *sizes, 9), (10, *sizes.values(), 500))
    runs = [map_run(1.0, **{**facts, axis: value, "num_samples": num_samples}) for value, num_samples in cells]
    for names in ((axis, "num_samples"), ("num_samples", axis)):
        figure, _ = draw(runs, names)
        (line,) = figure.axes[0].lines
        x, y = line.get_data() if names[0] == axis else line.get_data()[::-1]
        np.testing.assert_allclose(np.interp([1.5, 2.5], x, y), [1.5, 2.5], atol=0.02)
        assert f"red: free parameters, {formula}" in texts_of(figure)[1]
    facts |= {"order": 3, "num_samples": 5}
    different = [map_run(1.0, **{**facts, "target_tensor_cp_rank": rank, "mode_dim_size": rank}) for rank in (1, 2)]
    figure, _ = draw(different, ("target_tensor_cp_rank", "num_samples"))
    assert len(figure.axes[0].lines) == 0


PLAIN, OTHER = [{}, {"optimizer": "gd", "weight_decay": 0.0}], [{"optimizer": "momentum"}, {"weight_decay": 0.1}]
EDGES = [("1x1_w_10", others, others in PLAIN) for others in (*PLAIN, *OTHER)]


@pytest.mark.parametrize("dataset, others, drawn", [*EDGES, ("2x2_w_1_1_0", {}, False), ("missing", {}, False)])
def test_edge_of_stability(dataset, others, drawn):
    others = {"dataset_path": str(MATRIX.with_name(f"completion_{dataset}.pt")), **others}
    rates = [0.01, 0.0158, 0.0309, 0.1, 0.2]
    runs = [map_run(1.0, lr=lr, depth=depth, **others) for lr in rates for depth in (2, 3, 4)]
    for run, _ in runs[:7]:  # as recorded since run_params.json has the observations
        run.parameters.update({"shape": [1, 1], "observations": [10.0]} if "1x1" in dataset else {})
    for names in (("lr", "depth"), ("depth", "lr")):
        figure, _ = draw(runs, names)
        lines = [line.get_data() if names[0] == "lr" else line.get_data()[::-1] for line in figure.axes[0].lines]
        assert len(lines) == 3 * drawn
        for at_rates, depths in lines[:1]:  # 2 / sharpness
            np.testing.assert_allclose(at_rates, np.repeat([3.5, 2.5, 1.5], 3), atol=0.01)
            np.testing.assert_allclose(depths, [0, 1, np.nan, 1, 2, np.nan, 2, 3, np.nan])
        for (left, _), (right, _) in pairwise(lines):  # period 4, divergence
            assert (left <= right).all()


HISTORY = {"sse_loss_div_2": ([9, 19, 29], [1.0, 1e-2, 1e-4]), "e2e_0_0_value": ([9, 19, 29], [-1.0, -5.0, -9.0])}


@pytest.mark.parametrize(
    "metric, at_loss, value",
    [
        ("", None, 9),
        ("", 1e-2, 5),
        ("", 1e-5, None),
        ("e2e_0_0_value", None, -9),
        # s = √(2 · 10⁻²) is 0.1414, and the bound (1 − s)² / s is 5.2125.
        ("ratio_to_bound", 1e-2, 5 / 5.2125),
        ("ratio_to_bound", None, 9 * np.sqrt(2e-4) / (1 - np.sqrt(2e-4)) ** 2),
    ],
)
def test_metric_of_a_matrix(metric, at_loss, value, tmp_path):
    make_matrix_run(tmp_path / "a", HISTORY, dataset_path=str(MATRIX), num_samples=3)
    found = measure_matrix(read_run(tmp_path / "a"), metric, at_loss=at_loss)
    assert found == (None if value is None else pytest.approx(value, rel=1e-4))


def test_final_metrics_need_no_checkpoint(tmp_path):
    """At a loss, they are those of the runs that end below it."""
    metrics = {"sse_loss_div_2": 1e-4, "e2e_0_0_value": -7.0, "fro_e2e_norm": None}
    run = RecordedRun(tmp_path, {}, status={"finished": True, "stop_reason": "zero_loss", "metrics": metrics})
    assert (measure_matrix(run, ""), measure_matrix(run, "fro_e2e_norm")) == (7, None)
    assert (measure_matrix(run, "", at_loss=1e-4), measure_matrix(run, "", at_loss=9e-5)) == (7, None)
    with pytest.raises(ValueError, match="has no checkpoint; run it with -store_checkpoints"):
        measure_matrix(run, "e2e_rank")


def test_metric_of_a_tensor(tmp_path):
    make_run(tmp_path, {"component_norm_0": ([9, 19], [1.0, 3.0])}, num_samples=5, init_std=0.1)
    (tmp_path / METRICS).write_text('{"model_reconstruction_error": 0.5}')
    run = read_run(tmp_path)
    assert (measure_tensor(run, "component_norm_0"), measure_tensor(run, "reconstruction_error")) == (3, 0.5)
    with pytest.raises(NotRecorded, match="give one of component_norm_0, model_reconstruction_error"):
        measure_tensor(run, "nope")


@pytest.fixture
def map_rows(run_main, tmp_path):
    """Returns a function that runs a plotter on the folder "runs", and returns what it prints, and its data."""

    def draw(script, *flags):
        files = ["-save_plot_to", "x.png", "-save_data_to", "x.csv"]
        result = run_main(script, "-experiments_dir", "runs", "-map", *flags, *files)
        assert result.returncode == 0, result.stderr
        with open(tmp_path / "x.csv", newline="") as file:
            return result.stdout.splitlines(), list(csv.DictReader(file))

    return draw


def test_unfinished_and_diverged_runs_have_no_value(map_rows, tmp_path):
    statuses = [{"finished": True}, {"finished": False}, {"finished": True, "stop_reason": "diverged"}]
    for seed, status in enumerate(statuses):
        make_matrix_run(tmp_path / f"runs/{seed}", HISTORY, random_seed=seed, status=status)
    (tmp_path / "runs/foreign").mkdir()
    lines, rows = map_rows("dmf_results_plotter.py", "lr", "depth", "-list_skipped")
    assert lines[0] == "3 experiments, 2 of them finished, 1 folder skipped"
    assert lines[1] == "  foreign: no matrix factorization experiment"
    assert values_of(rows, *COUNTS) == [("9.0", "3", "2", "1")]


def test_map_of_tensors_with_random_targets(map_rows, tmp_path):
    for rank, seed in product((1, 2, 5), range(2)):
        parameters = {"num_samples": 5 * rank, "init_std": 1e-3, "random_seed": seed, "random_target": True}
        parameters |= {"target_tensor_cp_rank": rank, "mode_dim_size": 3, "order": 3}
        parameters["provenance"] = {"identity": {"run": {"target_tensor_cp_rank": 1, "num_samples": None}}}
        make_tensor_run(tmp_path / "runs", f"{rank}_{seed}", parameters, errors=(10.0 ** -(rank + seed), 0.5))
    lines, rows = map_rows("tc_results_plotter.py", "target_tensor_cp_rank", "num_samples", "-below", 0.02)
    assert lines[0] == "6 experiments, 6 of them finished, 0 folders skipped"
    assert list(rows[0]) == ["panel", "target_tensor_cp_rank", "num_samples", *COUNTS]
    assert len(rows) == 9
    cells = {(row["target_tensor_cp_rank"], row["num_samples"]): (row["value"], row["runs"]) for row in rows}
    assert [cells[key] for key in (("1", "5"), ("2", "10"), ("1", "10"))] == [("0.5", "2"), ("1.0", "2"), ("", "0")]
