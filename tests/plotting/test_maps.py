import csv
import json

import numpy as np
import pytest
import torch
from common.plotting.curves import NoBound, require_matrix_run
from common.plotting.map_cells import Axis, Shown, is_log_spaced, panels_of, require_parameters
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm

from common.plotting.histories import NotRecorded
from common.plotting.map_runs import MapRun, measure_matrix, measure_tensor, read_map_runs
from common.plotting.maps import draw_map
from common.plotting.tensor_completion import require_tensor_run
from tests.conftest import MATRIX
from tests.plotting.test_against_epochs import make_run
from tests.plotting.test_tensor_completion import METRICS
from tests.plotting.test_tensor_completion import make_run_folder as make_tensor_run


def map_run(value, finished=True, diverged=False, **parameters):
    return MapRun(parameters, parameters, finished, diverged, value)


def values_of(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


COUNTS = "value", "runs", "finished", "valid"


def test_medians_and_counts_of_cells():
    runs = [map_run(value, lr=0.1, depth=2) for value in (1.0, 2.0, 6.0)]
    runs += [map_run(None, diverged=True, lr=0.1, depth=2), map_run(None, finished=False, lr=0.1, depth=2)]
    runs += [map_run(None, diverged=True, lr=0.2, depth=2), map_run(None, finished=False, lr=0.1, depth=3)]
    figure, rows = draw_map(runs, ("lr", "depth"), Shown("mse_loss"), "title", counts=True)
    assert values_of(rows, "lr", "depth") == [(0.1, 2), (0.2, 2), (0.1, 3), (0.2, 3)]
    assert values_of(rows, *COUNTS) == [(2, 5, 4, 3), (None, 1, 1, 0), (None, 1, 0, 0), (None, 0, 0, 0)]
    axes, bar = figure.axes
    assert [text.get_text() for text in axes.texts] == ["4/5", "1", "0/1", ""]
    assert bar.get_ylabel() == "median mse loss"
    image = axes.collections[-1].get_array()
    assert image.mask.tolist() == [[False, True], [True, True]]
    assert image[0, 0] == 2
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"all runs diverged", "no finished run"}
    caption = legend.get_title().get_text().replace("\n", " ")
    expected = "medians of 1 to 4 runs; 2 diverged: left out; without 2 that are not finished; "
    assert caption == expected + "numbers: runs, finished / all"
    _, rows = draw_map(runs, ("lr", "depth"), Shown("mse_loss", "mean"), "")
    assert rows[0]["value"] == 3
    plt.close("all")


@pytest.mark.parametrize("limit, share", [({"above": 1.5}, 2 / 4), ({"below": 1.5}, 1 / 4), ({"above": 6.0}, 0)])
def test_share_counts_diverged_runs_as_not_reaching(limit, share):
    runs = [map_run(value, lr=0.1, depth=2) for value in (1.0, 2.0, 6.0)]
    runs += [map_run(None, diverged=True, lr=0.1, depth=2), map_run(None, finished=False, lr=0.1, depth=2)]
    figure, rows = draw_map(runs, ("lr", "depth"), Shown("", at_loss=1e-2, **limit), "")
    assert values_of(rows, *COUNTS) == [(share, 5, 4, 3)]
    (kind, value) = next(iter(limit.items()))
    sign = ">" if kind == "above" else "<"
    label = f"share of runs with |unobserved entry| {sign} {value:g} at loss 1e-2"
    assert figure.axes[1].get_ylabel().replace("\n", " ") == label
    assert figure.axes[1].get_ylim() == (0, 1)
    assert f"1 diverged: counted as not {kind}" in figure.legends[0].get_title().get_text().replace("\n", " ")
    plt.close(figure)


@pytest.mark.parametrize(
    "values, log",
    [
        ([1e-3, 1e-2, 1e-1], True),
        ([1e-3, 3e-3, 1e-2, 3e-2], True),
        ([16, 32, 64, 128], True),
        ([1e-3, 1e-2], True),
        ([1e-6, 1e-5, 8e-3, 1.7e-2], True),
        ([1e-3, 2e-3], False),
        ([1, 2, 3, 4, 5, 6], False),
        ([50, 100, 150, 200, 250, 300, 350, 400, 450, 511], False),
        ([0, 1e-3, 1e-2], False),
        ([5], False),
    ],
)
def test_scale_of_axes(values, log):
    assert is_log_spaced(values) == log
    axis = Axis("x", values)
    assert axis.log == log
    assert (axis.edges[:-1] < axis.places).all()
    assert (axis.places < axis.edges[1:]).all()
    np.testing.assert_allclose(axis.places, values)


def test_axis_of_other_values():
    axis = Axis("dtype", ["float64", "float32", "float64", None])
    assert axis.values == ["float32", "float64", None]
    assert [axis.index(value) for value in ("float32", "float64", None)] == [0, 1, 2]
    assert Axis("use_adaptive_lr", [True, False]).values == [False, True]
    figure, axes = plt.subplots()
    axis.draw(axes, "y")
    Axis("lr", [1e-3, 1e-2, 1e-1]).draw(axes, "x")
    assert [text.get_text() for text in axes.get_yticklabels()] == ["float32", "float64", "null"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1e-3", "1e-2", "1e-1"]
    assert axes.get_xscale() == "log"
    plt.close(figure)


def test_runs_that_differ_in_other_parameters_are_in_other_panels():
    """Parameters that the cell determines, such as an initialization for each depth, make no panels."""
    runs = [
        map_run(1.0, lr=lr, depth=depth, init_alpha=depth / 10, engine=engine)
        for lr in (1, 2)
        for depth in (2, 3)
        for engine in ("native", "torch")
    ]
    panels = panels_of(runs, ("lr", "depth"))
    assert {title: len(members) for title, members in panels.items()} == {"engine native": 4, "engine torch": 4}
    figure, rows = draw_map(runs, ("lr", "depth"), Shown(""), "")
    assert [axes.get_title() for axes in figure.axes[:2]] == list(panels)
    assert len(rows) == 8
    assert {row["panel"] for row in rows} == set(panels)
    runs = [map_run(1.0, lr=1, depth=2, epochs=number) for number in range(13)]
    with pytest.raises(ValueError, match="the runs differ in epochs as well, which takes 13 maps"):
        panels_of(runs, ("lr", "depth"))
    plt.close(figure)


def test_colours_of_several_magnitudes_are_logarithmic():
    for values, log in ([(1e-6, 1.0), True], [(0.5, 1.0), False], [(-1.0, 100.0), False]):
        runs = [map_run(value, lr=lr, depth=2) for value, lr in zip(values, (1, 2), strict=True)]
        figure, _ = draw_map(runs, ("lr", "depth"), Shown(""), "")
        assert isinstance(figure.axes[0].collections[0].norm, LogNorm) == log
        plt.close(figure)


def tensor_runs(axis, values, **facts):
    known = {"order": 3, "dimension": 8, "target_rank": 2, **facts}
    return [
        map_run(1.0, **{**known, axis: value, "num_samples": num_samples})
        for value in values
        for num_samples in (10, 200)
    ]


@pytest.mark.parametrize(
    "axis, values, facts, expected",
    [
        ("target_rank", [1, 2, 3], {}, {1: 22, 3: 66}),
        ("dimension", [4, 6, 8], {}, {4: 20, 8: 44}),
        ("target_rank", [1, 2, 3], {"order": 4}, {1: 29, 3: 87}),
    ],
)
def test_free_parameters_of_tensors(axis, values, facts, expected):
    """r (3 d − 2) of order 3, r (4 d − 3) of order 4."""
    runs = tensor_runs(axis, values, **facts)
    for names in ((axis, "num_samples"), ("num_samples", axis)):
        figure, _ = draw_map(runs, names, Shown(""), "")
        (line,) = figure.axes[0].lines
        x, y = line.get_data() if names[0] == axis else line.get_data()[::-1]
        for value, number in expected.items():
            assert np.interp(value, x, y) == pytest.approx(number)
        (text,) = figure.legends[0].get_texts()
        assert text.get_text().startswith("free parameters, r(")
        plt.close(figure)


def test_free_parameters_are_not_drawn_of_different_shapes():
    runs = tensor_runs("target_rank", [1, 2], dimension=4) + tensor_runs("target_rank", [3], dimension=5)
    figure, _ = draw_map(runs, ("target_rank", "num_samples"), Shown(""), "")
    assert len(figure.axes[0].lines) == 0
    plt.close(figure)


@pytest.mark.parametrize(
    "dataset, others, drawn",
    [
        ("1x1_w_10", {}, True),
        ("1x1_w_10", {"optimizer": "gd", "weight_decay": 0.0}, True),
        ("1x1_w_10", {"optimizer": "momentum"}, False),
        ("1x1_w_10", {"weight_decay": 0.1}, False),
        ("2x2_w_1_1_0", {}, False),
        ("missing", {}, False),
    ],
)
def test_edge_of_stability(dataset, others, drawn):
    others = {"dataset_path": str(MATRIX.with_name(f"completion_{dataset}.pt")), **others}
    runs = [map_run(1.0, lr=lr, depth=depth, **others) for lr in (1e-2, 0.2) for depth in (2, 3, 4)]
    for names in (("lr", "depth"), ("depth", "lr")):
        figure, _ = draw_map(runs, names, Shown(""), "")
        lines = [line.get_data() if names[0] == "lr" else line.get_data()[::-1] for line in figure.axes[0].lines]
        assert len(lines) == drawn
        for rates, depths in lines:
            np.testing.assert_allclose(rates, [0.1, 0.1, 0.0309, 0.0309, 0.0158, 0.0158], rtol=3e-3)
            np.testing.assert_allclose(depths, [1.5, 2.5, 2.5, 3.5, 3.5, 4.5])
        plt.close(figure)


MATRIX_RUN = {"lr": 1e-3, "init_alpha": 0.1, "depth": 3, "unobserved_entry": [0, 0], "num_samples": 3}
HISTORY = {"sse_loss_div_2": ([9, 19, 29], [1.0, 1e-2, 1e-4]), "e2e_0_0_value": ([9, 19, 29], [-1.0, -5.0, -9.0])}


def read_matrices(directory, metric="", at_loss=None, entry=None):
    measure = measure_matrix(metric, entry, at_loss)
    return read_map_runs(str(directory), require_matrix_run, measure, ("lr", "depth"))


@pytest.mark.parametrize(
    "metric, at_loss, value",
    [
        ("", None, 9),
        ("", 1e-2, 5),
        ("", 0.5, 5),
        ("", 1e-5, None),
        ("e2e_0_0_value", None, -9),
        # s = √(2 · 10⁻²) is 0.1414, and the bound (1 − s)² / s is 5.2125.
        ("ratio_to_bound", 1e-2, 5 / 5.2125),
        ("ratio_to_bound", None, 9 * np.sqrt(2e-4) / (1 - np.sqrt(2e-4)) ** 2),
    ],
)
def test_metric_of_a_matrix(metric, at_loss, value, tmp_path):
    make_run(tmp_path / "a", HISTORY, **MATRIX_RUN, dataset_path=str(MATRIX))
    ((run,), skipped) = read_matrices(tmp_path, metric, at_loss)
    assert run.value == (None if value is None else pytest.approx(value, rel=1e-4))
    assert (run.finished, run.diverged, skipped) == (True, False, [])


def test_final_metrics_need_no_checkpoint(tmp_path):
    (tmp_path / "a").mkdir()
    metrics = {"sse_loss_div_2": 1e-4, "e2e_0_0_value": -7.0, "fro_e2e_norm": None}
    status = {"finished": True, "stop_reason": "zero_loss", "metrics": metrics}
    (tmp_path / "a/run_params.json").write_text(json.dumps({**MATRIX_RUN, "status": status}))
    assert [run.value for run in read_matrices(tmp_path)[0]] == [7]
    assert [run.value for run in read_matrices(tmp_path, "fro_e2e_norm")[0]] == [None]
    with pytest.raises(ValueError, match="has no checkpoint; run it with -store_checkpoints"):
        read_matrices(tmp_path, at_loss=1e-2)


def test_unknown_metrics_entries_and_bounds(tmp_path):
    make_run(tmp_path / "a", HISTORY, **MATRIX_RUN)
    with pytest.raises(NotRecorded, match="this metric was not recorded; give one of sse_loss_div_2, e2e_0_0_value"):
        read_matrices(tmp_path, "nope")
    with pytest.raises(NotRecorded, match="give such an entry, or a run with -tracked_e2e_value_of 1 1"):
        read_matrices(tmp_path, entry=(1, 1))
    with pytest.raises(NoBound, match="needs the observations"):
        read_matrices(tmp_path, "ratio_to_bound")
    (runs, _) = read_matrices(tmp_path)
    with pytest.raises(
        ValueError, match="nope is not recorded of all runs; the parameters in which they differ are: none"
    ):
        require_parameters(runs, ("lr", "nope"))


def test_unfinished_and_diverged_runs_have_no_value(tmp_path):
    make_run(tmp_path / "good", HISTORY, **MATRIX_RUN, random_seed=1)
    for number, status in enumerate([{"finished": False}, {"finished": True, "stop_reason": "diverged"}]):
        make_run(tmp_path / str(number), HISTORY, **MATRIX_RUN)
        content = {**MATRIX_RUN, "random_seed": 2 + number, "status": status}
        (tmp_path / str(number) / "run_params.json").write_text(json.dumps(content))
    (tmp_path / "foreign").mkdir()
    runs, skipped = read_matrices(tmp_path)
    found = {(run.values["random_seed"], run.finished, run.diverged, run.value) for run in runs}
    assert found == {(1, True, False, 9), (2, False, False, None), (3, True, True, None)}
    assert skipped == ["foreign: no matrix factorization experiment"]


@pytest.fixture
def tensors(tmp_path):
    """Makes datasets of two ranks, and two runs on each: of one the dataset is missing."""
    for rank, dims in ((1, (3, 3, 3)), (2, (3, 3, 3)), (5, (2, 3, 4))):
        content = {"target_tensor": torch.ones(dims), "target_cp_rank": rank}
        content["train_indices_order"] = list(range(torch.ones(dims).numel()))
        torch.save(content, tmp_path / f"rank_{rank}.pt")
        for seed in range(2):
            parameters = {"num_samples": 5 * rank, "init_std": 1e-3, "random_seed": seed}
            parameters |= {"dataset_path": str(tmp_path / f"rank_{rank}.pt"), "provenance": {"commit": None}}
            error = 10.0 ** -(rank + seed)
            make_tensor_run(tmp_path / "runs", f"{rank}_{seed}", parameters, errors=(error, 0.5), target=None)
    return tmp_path


def test_facts_of_tensors(tensors):
    names = ("target_rank", "num_samples")
    runs, skipped = read_map_runs(
        str(tensors / "runs"), require_tensor_run, measure_tensor("reconstruction_error"), names
    )
    found = {(run.values["target_rank"], run.values["dimension"], run.values["order"], run.value) for run in runs}
    assert found == {
        (rank, "2x3x4" if rank == 5 else 3, 3, 10.0 ** -(rank + seed)) for rank in (1, 2, 5) for seed in (0, 1)
    }
    assert skipped == []
    assert len(panels_of(runs, names)) == 1
    # Without these facts, the datasets tell runs apart.
    runs, _ = read_map_runs(
        str(tensors / "runs"), require_tensor_run, measure_tensor("model_tensor_rank"), ("init_std", "lr")
    )
    assert all("dataset_path" in run.compared for run in runs)
    assert {run.value for run in runs} == {1}


def test_tensors_whose_dataset_is_missing_are_skipped(tensors):
    names, measure = ("target_rank", "num_samples"), measure_tensor("reconstruction_error")
    (tensors / "rank_2.pt").rename(tensors / "moved.pt")
    runs, skipped = read_map_runs(str(tensors / "runs"), require_tensor_run, measure, names)
    assert {run.values["target_rank"] for run in runs} == {1, 5}
    assert all("its dataset" in line and "cannot be read" in line for line in skipped)
    assert len(skipped) == 2


def test_metric_of_a_tensor_from_its_checkpoint(tmp_path):
    make_run(tmp_path / "a", {"component_norm_0": ([9, 19], [1.0, 3.0])}, num_samples=5, init_std=0.1)
    (tmp_path / "a" / METRICS).write_text('{"model_reconstruction_error": 0.5}')

    def values(metric):
        runs, _ = read_map_runs(str(tmp_path), require_tensor_run, measure_tensor(metric), ("num_samples", "init_std"))
        return [run.value for run in runs]

    assert (values("component_norm_0"), values("reconstruction_error")) == ([3], [0.5])
    with pytest.raises(NotRecorded, match="give one of component_norm_0, model_reconstruction_error"):
        values("nope")


def test_map_of_the_script(tensors, run_main):
    flags = ["-experiments_dir", "runs", "-map", "target_rank", "num_samples", "-below", 0.02, "-map_counts"]
    result = run_main("tc_results_plotter.py", *flags, "-save_plot_to", "x.png", "-save_data_to", "x.csv")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("6 experiments, 6 of them finished, 0 folders skipped\n")
    with open(tensors / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["panel", "target_rank", "num_samples", *COUNTS]
    assert len(rows) == 9
    cells = {(row["target_rank"], row["num_samples"]): (row["value"], row["runs"]) for row in rows}
    assert [cells[key] for key in (("1", "5"), ("2", "10"), ("1", "10"))] == [("0.5", "2"), ("1.0", "2"), ("", "0")]
