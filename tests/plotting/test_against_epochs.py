from functools import partial

import numpy as np
import pytest

from common.plotting.against_epochs import draw_against_epochs, values_at
from common.plotting.histories import NotRecorded, read_history
from common.plotting.runs import Group, read_groups, require_matrix_run, require_tensor_run
from common.recorded_runs import RecordedRun
from common.training.history import Series
from tests.plotting.folders import make_matrix_run, make_run, texts_of


def series(epochs, values):
    return Series(np.array(epochs), np.array(values, dtype=np.float64))


def draw(groups, statistic="median", title=""):
    return draw_against_epochs(groups, {"statistic": statistic, "plot_title": title})


def test_runs_are_compared_at_equal_epochs():
    """A run has its last record's value until the next, and none after its end."""
    epochs, values = values_at([series([9, 19], [1, 2]), series([9, 14, 24], [5, np.nan, 7])])
    assert epochs.tolist() == [9, 19, 24]
    np.testing.assert_array_equal(values, [[1, 2, np.nan], [5, 5, 7]])


def test_long_histories_are_thinned_without_losing_the_peaks_of_one_run():
    ramp = np.zeros(50_000)
    ramp[31_234] = 9
    epochs, values = values_at([series(np.arange(50_000), ramp)])
    assert len(epochs) < 5000
    assert values.max() == 9
    epochs, _ = values_at([series(np.arange(50_000), ramp)] * 2)
    assert (epochs[0], epochs[-1], len(epochs)) == (0, 49_999, 1000)


def test_one_metric_has_a_line_for_each_group():
    runs = [{"mse_loss": series([9, 19, 29], [1, 0.1, value])} for value in (1e-3, 2e-3, 4e-3)]
    short = {"mse_loss": series([9], [2])}
    figure, rows = draw([Group("a", "", [*runs, short]), Group("b", "", runs[:1])], title="title")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "mse loss", "log")
    assert (texts_of(axes.get_legend()), figure.get_suptitle()) == (["a", "b"], "title")
    of_a = [row for row in rows if row["name"] == "a"]
    assert [(row["epoch"], row["median"], row["runs"]) for row in of_a] == [(9, 1, 4), (19, 0.1, 3), (29, 2e-3, 3)]
    assert all(row["runs_in_all"] == 4 for row in of_a)
    solid, dashed = axes.lines[:2]
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert (solid.get_xdata().tolist(), dashed.get_xdata().tolist()) == ([9], [9, 19, 29])
    text = "median, quartiles over 1 to 4 seeds; dashed: over those that are still in training"
    assert figure.get_supxlabel().replace("\n", " ") == text


def test_several_metrics_have_a_panel_for_each_group():
    runs = [{f"singular_value_{k}": series([9, 19], [k, seed]) for k in range(3)} for seed in range(2)]
    figure, rows = draw([Group("a", "", runs), Group("b", "", runs[:1])], "mean")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    (legend,) = figure.legends
    assert texts_of(legend) == [f"singular value {k}" for k in range(3)]
    assert [row["mean"] for row in rows if row["name"] == "singular value 2"] == [2, 0.5, 2, 0]
    assert rows[-1]["lower_95"] is None
    with pytest.raises(ValueError, match="there are 13 kinds of runs, and a panel is drawn for each"):
        draw([Group(str(number), "", runs) for number in range(13)])


def test_patterns_and_groups(tmp_path):
    for seed in range(2):
        metrics = {f"component_norm_{k}": ([9], [k + seed]) for k in (0, 1, 10)} | {"other": ([9], [0])}
        for std in (1e-2, 1e-3):
            parameters = {"num_samples": 50, "init_std": std, "random_seed": seed}
            make_run(tmp_path / f"{std}_{seed}", metrics, **parameters)
    (tmp_path / "matrix").mkdir()
    (tmp_path / "matrix/run_params.json").write_text('{"depth": 3}')
    groups, skipped = read_groups(
        str(tmp_path), require_tensor_run, partial(read_history, patterns=["component_norm_*"])
    )
    assert sorted(group.name for group in groups) == ["tf, init 1e-2", "tf, init 1e-3"]
    assert all(len(group.values) == 2 for group in groups)
    assert list(groups[0].values[0]) == ["component_norm_0", "component_norm_1", "component_norm_10"]
    assert skipped == ["matrix: a matrix factorization experiment; dmf_results_plotter.py draws it"]
    with pytest.raises(NotRecorded, match=r"nope_\* was not recorded; give one of component_norm_0, .*other"):
        read_groups(str(tmp_path), require_tensor_run, partial(read_history, patterns=["other", "nope_*"]))


def test_unobserved_entry_is_the_default_of_matrices(tmp_path):
    metrics = {"e2e_0_1_value": ([9], [-3.0]), "e2e_0_0_value": ([9], [-4.0])}
    make_matrix_run(tmp_path / "a", metrics, unobserved_entry=[0, 1])
    ((group,), _) = read_groups(str(tmp_path), require_matrix_run, read_history)
    assert group.values[0][""].values.tolist() == [3]
    path = tmp_path / "a/checkpoints/2020_epoch_9.pt"
    assert read_history(path, RecordedRun(tmp_path), entry=(0, 0))[""].values.tolist() == [4]
    figure, _ = draw([group])
    assert figure.axes[0].get_ylabel() == "|unobserved entry|"
